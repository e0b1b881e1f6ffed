// The page of `loradrop serve`. Whatever comes from the stack (names, causes, answers) goes into the document as text only.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const STATES = ["live", "deploying", "waiting", "failed", "rejected", "removed"];
const main = document.getElementById("main");
const rows = new Map(); // adapter's name → its row
let names = []; // sorted
let stack = null;
let session = null;
let leave = () => {}; // of the view that is shown
let refresh = () => {}; // the view that is shown, when rows have changed
let isWhole = false;

// The document

function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((one) => one !== null && one !== undefined && one !== false));
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children);
  return node;
}

const title = (text, ...more) => el("h1", { tabindex: -1 }, text, ...more);
const badge = (state) => el("span", { class: `badge s-${STATES.includes(state) ? state : mapped(state)}` }, state);
const mapped = (outcome) =>
  ({ deployed: "live", running: "deploying", RUNNING: "deploying", SUCCEEDED: "live", superseded: "removed" })[outcome] ||
  (outcome === "removed" ? "removed" : "failed");
const short = (release) => (release ? release.slice(0, 8) : "–");
const adapterLink = (name) => `#/adapter/${encodeURIComponent(name)}`;
const executionLink = (arn) => `#/execution/${encodeURIComponent(arn)}`;

function ago(at) {
  if (!at) return "–";
  const seconds = Math.max(0, (Date.now() - Date.parse(at)) / 1000);
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.floor(seconds)} s`;
}

function clock(at) {
  return at ? new Date(at).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }) : "–";
}

function note(text, kind = "") {
  const box = el("div", { class: `note ${kind}` }, el("pre", {}, text));
  box.append(el("button", { class: "quiet", "aria-label": "Close", onclick: () => box.remove() }, "×"));
  document.getElementById("notes").append(box);
  if (kind !== "bad") setTimeout(() => box.remove(), 12000);
}

function command(line) {
  const copy = el("button", { class: "quiet copy", type: "button", onclick: () => copied(line, copy) }, "Copy");
  return el("div", { class: "command" }, el("code", {}, line), copy);
}

async function copied(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    const range = document.createRange();
    range.selectNodeContents(button.previousSibling);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

function pairs(listed) {
  const list = el("dl");
  for (const [label, value] of listed) {
    if (value !== null && value !== undefined && value !== "") list.append(el("dt", {}, label), el("dd", {}, value));
  }
  return list;
}

// The server

async function api(path, query = {}) {
  const answer = await fetch(`/api/${path}?${new URLSearchParams(query)}`);
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error ? said.error.message : `The server answered ${answer.status}.`);
  return said;
}

async function change(action, name, release) {
  const words = action === "remove" ? ["remove", name, "--yes"] : release ? [action, name, "--to", release] : [action, name];
  const verb = { rollback: "Roll back", retry: "Try again", remove: "Remove" }[action];
  const text = {
    rollback: `Make ${release ? `release ${short(release)}` : "the release before"} of ${name} live again, after another smoke test? What is live stays live until then.`,
    retry: `Deploy the newest upload of ${name} again?`,
    remove: `Take ${name} out of service? Its tarball is deleted; its releases are kept, and a roll back brings it back.`,
  }[action];
  if (!(await isSure(`${verb} ${name}`, text, `loradrop ${words.join(" ")} --stack ${session.stack}`, verb))) return;
  note(`loradrop ${words.join(" ")} is running.`);
  try {
    const answer = await fetch("/api/change", {
      method: "POST",
      headers: { "content-type": "application/json", "x-loradrop-token": session.token },
      body: JSON.stringify({ action, name, release }),
    });
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.error.message);
    note(said.message || `Ended with exit code ${said.code}.`, said.code === null ? undefined : said.code === 0 ? "good" : "bad");
  } catch (error) {
    note(error.message, "bad");
  }
}

function isSure(heading, text, line, verb) {
  const dialog = document.getElementById("sure");
  document.getElementById("sure-title").textContent = heading;
  document.getElementById("sure-text").textContent = text;
  document.getElementById("sure-command").textContent = line;
  const yes = document.getElementById("sure-yes");
  yes.textContent = verb;
  yes.classList.toggle("danger", verb === "Remove");
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }),
  );
}

function listen() {
  const shown = document.getElementById("link-state");
  const source = new EventSource("/api/events");
  const say = (text, kind) => {
    shown.textContent = text;
    shown.className = `link-state ${kind}`;
  };
  source.addEventListener("open", () => say("up to date", "good"));
  source.addEventListener("error", () => say("no connection", "bad"));
  source.addEventListener("trouble", (event) => {
    say("AWS does not answer", "bad");
    shown.title = JSON.parse(event.data).message;
  });
  source.addEventListener("well", () => say("up to date", "good"));
  source.addEventListener("fleet", (event) => {
    const said = JSON.parse(event.data);
    if (said.whole) rows.clear();
    said.gone.forEach((name) => rows.delete(name));
    said.rows.forEach((row) => rows.set(row.name, row));
    names = [...rows.keys()].sort();
    isWhole = true;
    refresh(new Set([...said.gone, ...said.rows.map((row) => row.name)]));
  });
  source.addEventListener("stack", (event) => {
    stack = JSON.parse(event.data);
    refresh(new Set());
  });
}

// Fleet

const filter = { text: "", tenant: "", state: "" };
const tenantOf = (name) => (name.includes("/") ? name.slice(0, name.indexOf("/")) : "");

function fleetView() {
  const top = el("section", { class: "cards", "aria-label": "The stack" });
  const search = el("input", {
    type: "search", id: "search", placeholder: "Search  /", "aria-label": "Search by name, release or who",
    oninput: () => { filter.text = search.value; draw(); },
  });
  search.value = filter.text;
  const tenant = el("select", { "aria-label": "Tenant", onchange: () => { filter.tenant = tenant.value; draw(); } });
  const chips = el("div", { class: "chips", role: "group", "aria-label": "State" });
  const count = el("p", { class: "dim count", role: "status" });
  const head = el("div", { class: "row head", "aria-hidden": "true" },
    ...["adapter", "state", "since", "release", "who", "latency", "uploads"].map((text) => el("span", {}, text)));
  const list = el("div", { class: "list", role: "list", "aria-label": "Adapters" });
  const window_ = el("div", { class: "window" });
  list.append(window_);
  main.replaceChildren(title("Fleet"), top, el("div", { class: "filters" }, search, tenant, chips), count, head, list);

  let shown = [];
  let drawn = new Map();
  const rowHeight = () => parseFloat(getComputedStyle(list).getPropertyValue("--row"));

  function draw() {
    drawTop(top);
    const tenants = [...new Set(names.map(tenantOf))].sort();
    tenant.replaceChildren(
      el("option", { value: "" }, "all tenants"),
      ...tenants.filter(Boolean).map((one) => el("option", { value: one, selected: one === filter.tenant }, one)),
    );
    tenant.hidden = !tenants.some(Boolean);
    const text = filter.text.trim().toLowerCase();
    const isFound = (row) =>
      !text || [row.name, row.live_release, row.requester, row.reason].some((one) => one && one.toLowerCase().includes(text));
    const found = names.map((name) => rows.get(name)).filter((row) => (!filter.tenant || tenantOf(row.name) === filter.tenant) && isFound(row));
    const counts = Object.fromEntries(STATES.map((state) => [state, 0]));
    found.forEach((row) => (counts[row.state] += 1));
    chips.replaceChildren(
      ...["", ...STATES].filter((state) => !state || counts[state] || state === filter.state).map((state) =>
        el("button", {
          type: "button", class: `chip ${state ? `s-${state}` : ""}`, "aria-pressed": String(filter.state === state),
          onclick: () => { filter.state = state; draw(); },
        }, state ? `${state} ${counts[state]}` : `all ${found.length}`)),
    );
    shown = filter.state ? found.filter((row) => row.state === filter.state) : found;
    count.textContent = !isWhole ? "Reading the registry…"
      : names.length === 0 ? "No adapters yet. Drop a tarball, or push one."
        : shown.length === names.length ? `${names.length} adapters` : `${shown.length} of ${names.length} adapters`;
    drawn.clear();
    window_.replaceChildren();
    scroll();
  }

  // Thousands of rows: only those in sight are in the document.
  function scroll() {
    const height = rowHeight();
    list.style.height = `${shown.length * height}px`;
    const first = Math.max(0, Math.floor(-list.getBoundingClientRect().top / height) - 10);
    const last = Math.min(shown.length, first + Math.ceil(innerHeight / height) + 20);
    window_.style.transform = `translateY(${first * height}px)`;
    const kept = new Map();
    for (let i = first; i < last; i++) kept.set(i, drawn.get(i) || rowNode(shown[i], i));
    const focused = document.activeElement;
    window_.replaceChildren(...kept.values());
    if (focused && focused.dataset && focused.dataset.index && kept.has(Number(focused.dataset.index))) {
      kept.get(Number(focused.dataset.index)).focus({ preventScroll: true });
    }
    drawn = kept;
  }

  function rowNode(row, index) {
    const history = el("span", { class: "marks", title: row.history.map(([outcome]) => outcome).join(", ") },
      ...row.history.map(([outcome]) => el("i", { class: `s-${mapped(outcome)}` })));
    const latency = row.adapter_ms === null || row.adapter_ms === undefined ? "–" : `${row.adapter_ms} ms, base ${row.base_ms}`;
    return el("a", { class: "row", href: adapterLink(row.name), role: "listitem", "data-index": index, "aria-setsize": shown.length, "aria-posinset": index + 1 },
      el("span", { class: "name", title: row.name }, row.name),
      el("span", {}, badge(row.state)),
      el("span", { class: "since", title: clock(row.since) }, ago(row.since)),
      el("span", { class: "mono" }, short(row.live_release)),
      el("span", { class: "who", title: row.requester || "" }, row.requester || "–"),
      el("span", { class: "latency", title: row.proof }, row.reason ? el("em", { title: row.reason }, row.reason) : latency),
      history);
  }

  function onKey(event) {
    if (event.target.closest && event.target.closest("dialog")) return;
    if (event.key === "/" && !/INPUT|TEXTAREA|SELECT/.test(document.activeElement.tagName)) {
      event.preventDefault();
      search.focus();
    }
    const isOnRow = document.activeElement.classList.contains("row");
    if ((event.key === "ArrowDown" || event.key === "ArrowUp") && (isOnRow || document.activeElement === search)) {
      event.preventDefault();
      const index = isOnRow ? Number(document.activeElement.dataset.index) + (event.key === "ArrowDown" ? 1 : -1) : 0;
      if (index < 0) return search.focus();
      if (index >= shown.length) return;
      const place = list.getBoundingClientRect().top + index * rowHeight();
      if (place < 120 || place > innerHeight - 120) scrollBy(0, place - innerHeight / 2);
      scroll();
      drawn.get(index)?.focus({ preventScroll: true });
    }
  }

  addEventListener("scroll", scroll, { passive: true });
  addEventListener("resize", scroll);
  addEventListener("keydown", onKey);
  leave = () => {
    removeEventListener("scroll", scroll);
    removeEventListener("resize", scroll);
    removeEventListener("keydown", onKey);
  };
  refresh = draw;
  draw();
}

function drawTop(top) {
  if (!stack) return top.replaceChildren(el("div", { class: "card dim" }, "Reading the stack…"));
  const standing = Object.entries(stack.components).map(([state, number]) => `${number} ${state}`).join(", ") || "none";
  const full = stack.endpoint_was_full_at === null ? "" : `; the endpoint was full at ${stack.endpoint_was_full_at}`;
  const counted = (state) => [...rows.values()].filter((row) => row.state === state).length;
  const [deploying, waiting] = [counted("deploying"), counted("waiting")];
  const inLine = stack.creates.waiting;
  const turns = inLine ? `${inLine} wait for their turn, the last for ${stack.creates.last_turn_in_seconds} s` : "for room on the endpoint";
  const card = (label, value, state, more) =>
    el("div", { class: "card" }, el("span", { class: "label" }, label), el("strong", { class: state ? `t-${state}` : "" }, value), more ? el("span", { class: "dim" }, more) : null);
  top.replaceChildren(
    card("endpoint", stack.endpoint.status, stack.endpoint.status === "InService" ? "live" : "failed", stack.endpoint.name),
    card("base", stack.base.status, stack.base.status === "InService" ? "live" : "failed", stack.base.profile),
    card("components", standing, "", `beside the base${full}`),
    card("in line", `${deploying} deploying, ${waiting} waiting`, waiting ? "waiting" : "", turns),
    stack.alarms.length
      ? card("alarms", stack.alarms.map((one) => one.name).join(", "), "failed", stack.alarms.map((one) => one.description).join(" "))
      : card("alarms", "none", "live", ""),
  );
}

// Adapter

async function adapterView(name) {
  const body = el("div", {}, el("p", { class: "dim" }, "Reading…"));
  main.replaceChildren(el("p", { class: "back" }, el("a", { href: "#/" }, "← Fleet")), body);
  const open = new Set();
  let isGone = false;
  leave = () => (isGone = true);

  async function draw() {
    let found;
    try {
      found = await api("adapter", { name });
    } catch (error) {
      if (!isGone) body.replaceChildren(title(name), el("p", { class: "bad" }, error.message));
      return;
    }
    if (isGone) return;
    const live = found.live;
    const isChangeable = !session.read_only;
    const buttons = el("div", { class: "buttons" },
      live ? el("a", { class: "button", href: `#/ask/${encodeURIComponent(name)}` }, "Ask") : null,
      isChangeable && found.uploads.some((one) => one.outcome === "deployed" && one.release !== found.live_release)
        ? el("button", { onclick: () => change("rollback", name) }, "Roll back…") : null,
      isChangeable && ["failed", "waiting", "rejected"].includes(found.state) ? el("button", { onclick: () => change("retry", name) }, "Try again…") : null,
      isChangeable && (live || found.state !== "removed") ? el("button", { class: "danger", onclick: () => change("remove", name) }, "Remove…") : null);
    const facts = live
      ? pairs([
        ["release", el("code", {}, live.release)],
        ["live since", `${clock(live.since)} (${ago(live.since)})`],
        ["component", el("span", {}, el("code", {}, live.component), " ", el("span", { class: live.status === "InService" ? "t-live" : "t-failed" }, live.status))],
        ["endpoint", `${live.endpoint}, base ${live.base}`],
        ["proof", found.proof],
        ["latency", found.adapter_ms === null || found.adapter_ms === undefined ? "" : `median ${found.adapter_ms} ms, base ${found.base_ms} ms`],
        ["standbys", found.standbys.map((one) => `${short(one.release)} until ${new Date(one.until * 1000).toLocaleTimeString()}`).join(", ")],
      ])
      : el("p", {}, "Nothing of it is live.");
    const line = el("ol", { class: "timeline" }, ...found.uploads.map((one) => uploadNode(name, one, open, isChangeable)));
    const focused = document.activeElement && document.activeElement.id;
    body.replaceChildren(title(name, " ", badge(found.state)), found.reason ? el("p", { class: "reason" }, found.reason) : "",
      buttons, el("section", { class: "card wide" }, facts),
      live ? el("section", { class: "card wide" }, el("p", { class: "label" }, "OpenAI's API"), command(`curl ${location.origin}/v1/chat/completions -H 'Content-Type: application/json' -d '${JSON.stringify({ model: name, messages: [{ role: "user", content: "Hello" }] })}'`)) : "",
      el("h2", {}, "History"), line);
    if (focused) document.getElementById(focused)?.focus();
  }

  refresh = (changed) => { if (changed.has(name)) draw(); };
  await draw();
}

function uploadNode(name, one, open, isChangeable) {
  const outcome = one.outcome || "running";
  const took = one.uploaded_at && one.finished_at ? `${Math.round((Date.parse(one.finished_at) - Date.parse(one.uploaded_at)) / 1000)} s` : "";
  const summary = el("summary", { id: `u-${one.order}` }, badge(outcome), one.live ? el("span", { class: "badge plain" }, "live now") : null,
    el("span", { class: "when" }, clock(one.uploaded_at || one.finished_at)), el("code", {}, short(one.release)),
    el("span", { class: "dim" }, [took, one.requester ? `by ${one.requester}` : one.heals ? "healed" : "", one.repeats ? "a copy of an earlier upload" : ""].filter(Boolean).join(" · ")));
  const inner = el("div", { class: "inner" });
  const details = el("details", { open: open.has(one.order) }, summary, inner);
  const fill = () => inner.replaceChildren(...uploadParts(name, one, isChangeable));
  details.addEventListener("toggle", () => {
    if (details.open) { open.add(one.order); if (!inner.firstChild) fill(); } else open.delete(one.order);
  });
  if (details.open) fill();
  return el("li", { class: `s-${mapped(outcome)}` }, details);
}

function uploadParts(name, one, isChangeable) {
  const parts = [];
  if (one.message && !(one.report && one.report.problems.length)) parts.push(el("pre", { class: "message" }, one.message));
  if (one.failure && one.failure.Cause) parts.push(el("pre", { class: "message" }, `${one.failure.Error}: ${one.failure.Cause}`));
  if (one.report) parts.push(...problemNodes(one.report));
  const links = el("div", { class: "buttons" });
  if (one.execution) links.append(el("a", { class: "button", href: executionLink(one.execution) }, "Execution"));
  if (isChangeable && one.outcome === "deployed" && !one.live && one.release) {
    links.append(el("button", { onclick: () => change("rollback", name, one.release) }, `Roll back to ${short(one.release)}…`));
  }
  parts.push(links);
  if (one.report && one.report.manifest) parts.push(manifestNode(one.report.manifest));
  if (one.has_answers) {
    const answers = el("div", { class: "answers" });
    parts.push(el("details", { class: "plain", ontoggle: () => answers.firstChild || answersInto(answers, name, one.order) }, el("summary", {}, "Smoke answers beside the base's"), answers));
  }
  return parts;
}

function problemNodes(report) {
  const node = (problem) =>
    el("article", { class: `problem ${problem.severity}` }, el("h3", {}, problem.code), el("p", {}, problem.message),
      el("p", { class: "dim" }, problem.consequence), el("p", {}, problem.fix), ...problem.commands.map(command));
  const left = report.left_out ? [el("p", { class: "dim" }, `And ${report.left_out} more.`)] : [];
  return [...report.problems.map(node), ...report.warnings.map(node), ...left];
}

function manifestNode(manifest) {
  return el("details", { class: "plain" }, el("summary", {}, "Manifest"), pairs([
    ["base", manifest.base_model], ["rank", manifest.ranks.join(", ")], ["scaling", manifest.scalings.join(", ")],
    ["modules", manifest.modules.join(", ")], ["layers", manifest.layers], ["parameters", manifest.parameters.toLocaleString()],
    ["dtype", manifest.dtypes.join(", ")], ["PEFT", manifest.peft_version], ["SHA-256", el("code", {}, manifest.sha256)],
    ["files", manifest.files.map((file) => `${file.name} (${file.size.toLocaleString()} bytes)`).join(", ")],
  ]));
}

async function answersInto(box, name, order) {
  box.replaceChildren(el("p", { class: "dim" }, "Reading…"));
  try {
    const found = await api("document", { name, order, kind: "smoke" });
    box.replaceChildren(...found.prompts.map((one) => el("article", { class: "answer" },
      el("p", { class: "prompt" }, one.inputs),
      el("div", { class: "pair" },
        el("div", {}, el("span", { class: "label" }, `adapter, ${one.adapter_ms} ms`), el("p", {}, one.adapter)),
        el("div", {}, el("span", { class: "label" }, `base, ${one.base_ms} ms`), el("p", {}, one.base))),
      one.problem ? el("p", { class: "bad" }, one.problem) : el("p", { class: "dim" }, one.differs ? "They differ." : "They do not differ."))));
  } catch (error) {
    box.replaceChildren(el("p", { class: "bad" }, error.message));
  }
}

// Executions

async function executionsView() {
  const list = el("div", { class: "plain-list" }, el("p", { class: "dim" }, "Reading…"));
  main.replaceChildren(title("Executions"), list);
  let isGone = false;
  leave = () => (isGone = true);
  const draw = async () => {
    try {
      const found = await api("executions");
      if (isGone) return;
      list.replaceChildren(...found.map((one) => el("a", { class: "line", href: executionLink(one.arn) },
        badge(one.status), el("span", {}, one.machine), el("code", {}, one.arn.split(":").pop().slice(0, 18)),
        el("span", { class: "dim" }, `${ago(one.started_at)} ago`,
          one.stopped_at ? `, took ${((Date.parse(one.stopped_at) - Date.parse(one.started_at)) / 1000).toFixed(1)} s` : ""))));
      if (!found.length) list.replaceChildren(el("p", { class: "dim" }, "None yet."));
    } catch (error) {
      if (!isGone) list.replaceChildren(el("p", { class: "bad" }, error.message));
    }
  };
  refresh = draw;
  await draw();
}

async function executionView(arn) {
  const body = el("div", {}, el("p", { class: "dim" }, "Reading…"));
  main.replaceChildren(el("p", { class: "back" }, el("a", { href: "#/executions" }, "← Executions")), body);
  let isGone = false;
  let timer;
  leave = () => { isGone = true; clearTimeout(timer); };
  refresh = () => {};
  let graph = null;
  let isTitled = false;

  async function draw() {
    let found;
    try {
      found = await api("execution", { arn });
    } catch (error) {
      if (!isGone && !graph) body.replaceChildren(title("Execution"), el("p", { class: "bad" }, error.message));
      if (!isGone && graph) timer = setTimeout(draw, 3000);
      return;
    }
    if (isGone) return;
    graph = graph || drawnGraph(found.definition);
    graph.paint(found.states);
    const cause = found.cause ? el("section", { class: "card wide" }, el("p", { class: "label" }, found.error || "message"), el("pre", { class: "message" }, found.cause)) : "";
    const line = (name, one) => el("tr", { class: `g-${one.status}` },
      el("th", { scope: "row" }, name), el("td", {}, `${one.entered.toFixed(1)} s`),
      el("td", {}, one.left === null ? "…" : `${(one.left - one.entered).toFixed(1)} s`),
      el("td", {}, one.tries > 1 ? `${one.tries} tries` : one.entries > 1 ? `${one.entries} polls` : ""),
      el("td", { class: "failure" }, one.failure || ""));
    const entered = Object.entries(found.states).sort((a, b) => a[1].entered - b[1].entered);
    const table = el("table", { class: "states" }, el("thead", {}, el("tr", {}, ...["state", "at", "took", "", "failure"].map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, ...entered.map(([name, one]) => line(name, one))));
    const link = session.console ? el("a", { class: "button", href: `${session.console}/v2/executions/details/${encodeURIComponent(arn)}`, rel: "noreferrer", target: "_blank" }, "Open in the AWS console") : "";
    const head = el("p", { class: "dim" }, `${clock(found.started_at)}, ${found.seconds === null ? "running" : `${found.seconds.toFixed(1)} s`}`);
    const machine = found.machine.includes("Reconcile") ? "ReconcileFleet" : "DeployAdapter";
    const [scrolled] = body.getElementsByClassName("graph");
    const place = scrolled ? [scrolled.scrollLeft, scrolled.scrollTop] : null;
    const box = el("div", { class: "graph", tabindex: 0, role: "img", "aria-label": `${machine}: ${entered.map(([name, one]) => `${name} ${one.status}`).join(", ")}` }, graph.node);
    body.replaceChildren(title(machine, " ", badge(found.status)), el("p", { class: "mono small" }, found.name), head, link, cause, el("div", { class: "split" }, box, el("div", { class: "scroll" }, table)));
    if (place) [box.scrollLeft, box.scrollTop] = place;
    else graph.reveal(box, entered.at(-1)?.[0]);
    if (!isTitled) { isTitled = true; body.querySelector("h1").focus({ preventScroll: true }); }
    if (found.status === "RUNNING") timer = setTimeout(draw, 1000);
  }

  await draw();
}

// Layers by the longest way from the start; an edge that passes a layer gets a place in it, so that none runs through a state.
function drawnGraph(definition) {
  const WIDTH = 164, HEIGHT = 32, GAP = 18, LAYER = 62, THIN = 10;
  const states = definition.states;
  const depth = new Map();
  const backward = new Set();
  const onWay = new Set();
  const visit = (name, at) => {
    if ((depth.get(name) ?? -1) >= at) return;
    depth.set(name, at);
    onWay.add(name);
    for (const [next] of states[name].ways) {
      if (!states[next]) continue;
      if (onWay.has(next)) backward.add(`${name}\0${next}`);
      else visit(next, at + 1);
    }
    onWay.delete(name);
  };
  if (states[definition.start]) visit(definition.start, 0);
  const layers = [];
  const place = (item, layer) => (layers[layer] = layers[layer] || []).push(item);
  const items = new Map();
  for (const [name, layer] of depth) {
    const item = { name, layer, width: WIDTH, before: [], after: [] };
    items.set(name, item);
    place(item, layer);
  }
  const edges = [];
  for (const [name, item] of items) {
    for (const [next, kind] of states[name].ways) {
      const target = items.get(next);
      if (!target) continue;
      if (backward.has(`${name}\0${next}`) || target.layer <= item.layer) {
        edges.push({ kind: "back", points: [item, target] });
        continue;
      }
      const points = [item];
      for (let layer = item.layer + 1; layer < target.layer; layer++) {
        const thin = { name: null, layer, width: THIN, before: [points[points.length - 1]], after: [] };
        points[points.length - 1].after.push(thin);
        place(thin, layer);
        points.push(thin);
      }
      points[points.length - 1].after.push(target);
      target.before.push(points[points.length - 1]);
      points.push(target);
      edges.push({ kind, points });
    }
  }
  layers.forEach((layer) => layer.forEach((item, at) => (item.x = (at - (layer.length - 1) / 2) * WIDTH)));
  const mean = (list, fallback) => (list.length ? list.reduce((sum, one) => sum + one.x, 0) / list.length : fallback);
  for (let round = 0; round < 24; round++) {
    for (const layer of round % 2 ? [...layers].reverse() : layers) {
      layer.forEach((item) => (item.wish = mean(round % 2 ? item.after : item.before, item.x)));
      layer.sort((a, b) => a.wish - b.wish);
      // As near to its wish as its neighbours allow: pushed from the left, pushed from the right, and the mean of both.
      const room = (a, b) => (a.width + b.width) / 2 + GAP;
      const fromLeft = [], fromRight = [];
      layer.forEach((item, at) => fromLeft.push(at ? Math.max(item.wish, fromLeft[at - 1] + room(layer[at - 1], item)) : item.wish));
      for (let at = layer.length - 1; at >= 0; at--) {
        fromRight[at] = at < layer.length - 1 ? Math.min(layer[at].wish, fromRight[at + 1] - room(layer[at], layer[at + 1])) : layer[at].wish;
      }
      layer.forEach((item, at) => (item.x = (fromLeft[at] + fromRight[at]) / 2));
    }
  }
  const all = layers.flat();
  const left = Math.min(...all.map((one) => one.x - one.width / 2)) - 24;
  const right = Math.max(...all.map((one) => one.x + one.width / 2)) + 24;
  const y = (item) => item.layer * LAYER + HEIGHT;
  const node = svg("svg", { viewBox: `${left} 0 ${right - left} ${layers.length * LAYER + HEIGHT}`, width: right - left, height: layers.length * LAYER + HEIGHT, "aria-hidden": "true" });
  const arrow = svg("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto-start-reverse" }, svg("path", { d: "M0,0 L8,4 L0,8 z", class: "arrow" }));
  node.append(svg("defs", {}, arrow));
  for (const { kind, points } of edges) {
    let d;
    if (kind === "back") {
      const [from, to] = points;
      const side = Math.max(from.x, to.x) + WIDTH / 2 + 16;
      d = `M${from.x + WIDTH / 2},${y(from)} C${side + 20},${y(from)} ${side + 20},${y(to)} ${to.x + WIDTH / 2},${y(to)}`;
    } else {
      d = `M${points[0].x},${y(points[0]) + HEIGHT / 2}`;
      for (let i = 1; i < points.length; i++) {
        const [from, to] = [points[i - 1], points[i]];
        const top = from.name === null ? y(from) : y(from) + HEIGHT / 2;
        const bottom = to.name === null ? y(to) : y(to) - HEIGHT / 2;
        d += ` C${from.x},${(top + bottom) / 2} ${to.x},${(top + bottom) / 2} ${to.x},${bottom}`;
      }
    }
    node.append(svg("path", { d, class: `edge e-${kind}`, "marker-end": "url(#arrow)" }));
  }
  const boxes = new Map();
  for (const [name, item] of items) {
    const text = svg("text", { x: item.x, y: y(item) + 1, "text-anchor": "middle", "dominant-baseline": "middle" });
    text.textContent = name.length > 22 ? `${name.slice(0, 21)}…` : name;
    const hint = svg("title");
    hint.textContent = `${name}: ${states[name].comment}`;
    const group = svg("g", { class: "node", "data-state": name },
      svg("rect", { x: item.x - WIDTH / 2, y: y(item) - HEIGHT / 2, width: WIDTH, height: HEIGHT, rx: states[name].type === "Choice" ? 16 : 5 }), text, hint);
    boxes.set(name, [group, text, item]);
    node.append(group);
  }
  const paint = (found) => {
    for (const [name, [group, text]] of boxes) {
      const one = found[name];
      const isBadEnd = one && states[name].type === "Fail";
      group.setAttribute("class", `node k-${states[name].type} ${one ? `g-${isBadEnd ? "failed" : one.status}` : ""}`);
      text.textContent = name.length > 22 ? `${name.slice(0, 21)}…` : name;
    }
  };
  const reveal = (box, name) => {
    const item = boxes.get(name)?.[2];
    const share = node.getBoundingClientRect().height / (layers.length * LAYER + HEIGHT);
    if (item) box.scrollTo((item.x - left) * share - box.clientWidth / 2, y(item) * share - box.clientHeight / 2);
  };
  return { node, paint, reveal };
}

// Ask

async function askView(name) {
  const which = el("input", { id: "ask-adapter", list: "ask-names", autocomplete: "off", required: true });
  which.value = name || "";
  const known = el("datalist", { id: "ask-names" });
  const earlier = el("select", { id: "ask-earlier" });
  const prompt = el("textarea", { id: "ask-prompt", rows: 3, required: true, placeholder: "What would you ask it?" });
  const most = el("input", { id: "ask-tokens", type: "number", min: 1, max: 4096, value: 128 });
  const heat = el("input", { id: "ask-temperature", type: "number", min: 0, max: 2, step: 0.1, value: 0 });
  const send = el("button", { class: "primary", type: "submit" }, "Ask");
  const stop = el("button", { type: "button", disabled: true, onclick: () => ended?.abort() }, "Stop");
  const out = el("div", { class: "columns" });
  let ended = null;
  const field = (label, input) => el("label", {}, el("span", { class: "label" }, label), input);
  const form = el("form", { class: "ask", onsubmit: (event) => { event.preventDefault(); ask(); } },
    el("div", { class: "fields" }, field("adapter", which), field("beside the base and", earlier), field("tokens at most", most), field("temperature", heat)),
    field("prompt", prompt), el("div", { class: "buttons" }, send, stop), known);
  main.replaceChildren(title("Ask"), form, el("p", { class: "dim small" }, "The fainter a token's shade, the surer the model was of it."), out);

  const drawNames = () => known.replaceChildren(...names.filter((one) => rows.get(one).live_release).map((one) => el("option", { value: one })));
  async function drawReleases() {
    earlier.replaceChildren(el("option", { value: "" }, "no earlier release"));
    if (!rows.has(which.value)) return;
    try {
      const found = await api("adapter", { name: which.value });
      const standing = new Set(found.standbys.map((one) => one.release));
      earlier.append(...[...standing].map((release) => el("option", { value: release }, `release ${short(release)}`)));
      if (standing.size) earlier.selectedIndex = 1;
    } catch { /* the question itself will say why */ }
  }

  async function ask() {
    ended?.abort();
    ended = new AbortController();
    const models = [which.value.trim(), "base", ...(earlier.value ? [`${which.value.trim()}@${earlier.value}`] : [])];
    const boxes = models.map((model) => {
      const text = el("div", { class: "said", "aria-live": "off" });
      const foot = el("p", { class: "dim small" });
      const heading = model === "base" ? "base" : model.includes("@") ? `release ${short(earlier.value)}` : model;
      return [model, text, foot, el("section", { class: "card" }, el("h2", {}, heading), text, foot)];
    });
    out.replaceChildren(...boxes.map((one) => one[3]));
    send.disabled = true;
    stop.disabled = false;
    await Promise.all(boxes.map(([model, text, foot]) => answer(model, text, foot, ended.signal)));
    send.disabled = false;
    stop.disabled = true;
  }

  async function answer(model, text, foot, signal) {
    const began = performance.now();
    let first = null, count = 0;
    try {
      const answered = await fetch("/v1/chat/completions", {
        method: "POST", signal, headers: { "content-type": "application/json" },
        body: JSON.stringify({ model, messages: [{ role: "user", content: prompt.value }], max_tokens: Number(most.value), temperature: Number(heat.value), stream: true, logprobs: true }),
      });
      if (!answered.ok) throw new Error((await answered.json()).error.message);
      for await (const event of eventsIn(answered.body)) {
        if (event.error) throw new Error(event.error.message);
        const choice = event.choices && event.choices[0];
        if (!choice || !choice.delta) continue;
        first ??= performance.now() - began;
        const tokens = choice.logprobs && choice.logprobs.content;
        if (tokens && tokens.length) { tokens.forEach((one) => text.append(tokenNode(one))); count += tokens.length; }
        else if (choice.delta.content) { text.append(choice.delta.content); count += 1; }
        if (choice.finish_reason === "length") foot.dataset.cut = "yes";
      }
      const took = (performance.now() - began) / 1000;
      foot.textContent = `${count} tokens in ${took.toFixed(1)} s, the first after ${Math.round(first ?? 0)} ms${foot.dataset.cut ? "; cut at the limit" : ""}`;
    } catch (error) {
      foot.textContent = error.name === "AbortError" ? "stopped" : error.message;
      foot.className = error.name === "AbortError" ? "dim small" : "bad";
    }
  }

  which.addEventListener("change", drawReleases);
  refresh = () => { drawNames(); };
  leave = () => ended?.abort();
  drawNames();
  await drawReleases();
  (name ? prompt : which).focus();
}

function tokenNode(token) {
  const chance = Math.exp(token.logprob);
  const shade = Math.min(5, Math.floor(-token.logprob * 2));
  return el("span", { class: `token p${Number.isFinite(shade) ? Math.max(0, shade) : 5}`, title: `${(chance * 100).toFixed(1)} %` }, token.token);
}

async function* eventsIn(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    let end;
    while ((end = held.indexOf("\n\n")) >= 0) {
      const data = held.slice(0, end).replace(/^data: /, "");
      held = held.slice(end + 2);
      if (data === "[DONE]") return;
      if (data.startsWith("{")) yield JSON.parse(data);
    }
  }
}

// Drop

function dropView() {
  if (session.read_only) return main.replaceChildren(title("Drop"), el("p", {}, "This page was started with --read-only."));
  const input = el("input", { type: "file", id: "drop-file", accept: ".gz,.tgz,application/gzip", onchange: () => take(input.files[0]) });
  const name = el("input", { id: "drop-name", autocomplete: "off", placeholder: "acme or tenant/acme", required: true });
  const zone = el("label", { class: "zone", for: "drop-file", id: "zone" }, el("strong", {}, "Drop an adapter's tarball here"), el("span", {}, "or choose one"), input);
  const go = el("button", { class: "primary", disabled: true, onclick: () => upload() }, "Validate and deploy");
  const steps = el("ol", { class: "steps", "aria-live": "polite" });
  const report = el("div");
  let file = null;
  let request = null;
  main.replaceChildren(title("Drop"), zone, el("div", { class: "fields" }, el("label", {}, el("span", { class: "label" }, "adapter's name"), name), go), steps, report);

  function take(chosen) {
    if (!chosen) return;
    file = chosen;
    zone.querySelector("strong").textContent = `${file.name}, ${(file.size / 1e6).toFixed(1)} MB`;
    if (!name.value) name.value = file.name.replace(/(\.tar\.gz|\.tgz)$/, "");
    go.disabled = false;
    name.focus();
  }
  for (const kind of ["dragenter", "dragover"]) zone.addEventListener(kind, (event) => { event.preventDefault(); zone.classList.add("over"); });
  for (const kind of ["dragleave", "drop"]) zone.addEventListener(kind, () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => { event.preventDefault(); take(event.dataTransfer.files[0]); });

  function step(id, text, state, share) {
    let line = steps.querySelector(`[data-step="${id}"]`);
    if (!line) steps.append((line = el("li", { "data-step": id }, el("span"), el("progress", { max: 1, hidden: true }))));
    line.className = state;
    line.firstChild.textContent = text;
    line.lastChild.hidden = share === undefined || state === "done";
    if (share !== undefined) line.lastChild.value = share;
  }

  function upload() {
    steps.replaceChildren();
    report.replaceChildren();
    go.disabled = true;
    request = new XMLHttpRequest();
    let read = 0;
    request.upload.onprogress = (event) => step("sent", "Sending it to this page's server", "now", event.loaded / event.total);
    request.upload.onload = () => { step("sent", "Sent to this page's server", "done"); step("validated", "Validating", "now"); };
    request.onprogress = () => lines();
    request.onload = () => {
      if (request.status === 200) lines();
      else { steps.replaceChildren(); step("failed", errorIn(request.responseText), "bad"); }
      go.disabled = false;
    };
    request.onerror = () => { step("failed", "The connection broke. What was uploaded is deployed all the same.", "bad"); go.disabled = false; };
    const lines = () => {
      const end = request.responseText.lastIndexOf("\n") + 1;
      request.responseText.slice(read, end).split("\n").filter(Boolean).forEach((line) => said(JSON.parse(line)));
      read = end;
    };
    request.open("POST", `/api/drop?${new URLSearchParams({ name: name.value.trim() })}`);
    request.setRequestHeader("x-loradrop-token", session.token);
    request.setRequestHeader("content-type", "application/gzip");
    request.send(file);
  }

  function said(one) {
    if (one.step === "validated") {
      step("validated", one.accepted ? `Accepted for ${one.profile}` : `Rejected: ${one.problems.length} problem${one.problems.length === 1 ? "" : "s"}. Nothing was uploaded.`, one.accepted ? "done" : "bad");
      report.replaceChildren(...problemNodes(one));
      if (one.accepted) step("uploading", "Uploading to S3", "now", 0);
    } else if (one.step === "uploading") step("uploading", "Uploading to S3", "now", one.of ? one.bytes / one.of : 1);
    else if (one.step === "uploaded") { step("uploading", `Uploaded as version ${one.version}`, "done"); step("started", "Waiting for the deployment to start", "now"); }
    else if (one.step === "started" && one.execution) {
      step("started", "The deployment has started", "done");
      watch(name.value.trim(), one.execution);
    } else if (one.step === "started") step("started", "It has not started yet; EventBridge goes on trying for a day.", "bad");
    else if (one.step === "failed") step("failed", one.message, "bad");
  }

  async function watch(adapter, arn) {
    const line = el("a", { href: executionLink(arn) }, "Watch the execution");
    report.replaceChildren(el("p", {}, line));
    while (!isGone) {
      const found = await api("execution", { arn }).catch(() => null);
      if (found && found.status !== "RUNNING") {
        step("ended", found.cause || found.status, found.status === "SUCCEEDED" ? "done" : "bad");
        report.append(el("p", {}, el("a", { href: adapterLink(adapter) }, `See ${adapter}`)));
        return;
      }
      const now = found && Object.entries(found.states).filter(([, one]) => one.status === "running").map(([state]) => state).pop();
      if (now) step("ended", `In ${now}`, "now");
      await new Promise((resolve) => setTimeout(resolve, 700));
    }
  }

  let isGone = false;
  leave = () => (isGone = true);
  refresh = () => {};
}

function errorIn(text) {
  try { return JSON.parse(text).error.message; } catch { return "The server did not answer."; }
}

// The address

async function route() {
  leave();
  leave = refresh = () => {};
  const [view, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  const argument = decodeURIComponent(rest.join("/"));
  const views = { "": fleetView, adapter: adapterView, executions: executionsView, execution: executionView, ask: askView, drop: dropView };
  const current = { "": "fleet", adapter: "fleet", execution: "executions" }[view] || view;
  document.querySelectorAll("nav a").forEach((link) => link.toggleAttribute("aria-current", link.dataset.view === current));
  document.querySelectorAll("nav a[aria-current]").forEach((link) => link.setAttribute("aria-current", "page"));
  document.title = [argument.split(":").pop(), current, session.stack].filter(Boolean).join(" · ");
  scrollTo(0, 0);
  await (views[view] || fleetView)(argument);
  if (view !== "ask") main.querySelector("h1")?.focus({ preventScroll: true });
}

async function start() {
  try {
    session = await api("session");
  } catch (error) {
    main.replaceChildren(title("loradrop"), el("p", { class: "bad" }, error.message));
    return;
  }
  document.getElementById("stack-name").textContent = session.stack;
  document.getElementById("nav-drop").hidden = session.read_only;
  addEventListener("hashchange", route);
  listen();
  await route();
}

start();
