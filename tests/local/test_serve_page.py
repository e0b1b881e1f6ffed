"""The page in a real browser: Debian's Chromium, which these tests install where they may."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from loradrop.lifecycle import AdapterState, Outcome, UploadRecord
from loradrop.registry_items import record_item, state_item
from tests.adapters import good_tarball, wrapped_tarball

from .account import unique
from .conftest import StackUnderTest
from .test_serve import served

INSTALL_SECONDS = 240
SECONDS = 30_000  # of Playwright, in milliseconds
HOSTILE = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
WIDTHS = {"phone": (390, 844), "desk": (1280, 860)}


def chromium() -> str:
    """Its path. Skips where there is none and none can be installed."""
    with Path(tempfile.gettempdir(), "loradrop-chromium.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (found := shutil.which("chromium")) is None and shutil.which("apt-get") and os.geteuid() == 0:
            words = "apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium"
            subprocess.run(["sh", "-c", words], capture_output=True, check=False, timeout=INSTALL_SECONDS)
            found = shutil.which("chromium")
    if found is None:
        pytest.skip("There is no chromium here, and apt-get cannot install it: the page is not tested in a browser.")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(deployed: StackUnderTest, browser: Browser) -> Iterator[str]:
    with served(deployed) as url:
        yield url


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    yield from opened(browser, url)


def opened(browser: Browser, url: str, **settings: Any) -> Iterator[Page]:
    """A page that asks nobody but its server, and says nothing of errors."""
    width, height = WIDTHS["desk"]
    context = browser.new_context(base_url=url, viewport={"width": width, "height": height}, **settings)
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    expect.set_options(timeout=SECONDS)
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)

    def refuse(dialog: Any) -> None:
        wrong.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", refuse)
    yield page
    assert [one for one in asked if not one.startswith(f"{url}/")] == []
    assert wrong == []
    context.close()


@pytest.fixture(scope="module")
def adapter(deployed: StackUnderTest) -> str:
    """With two releases."""
    name = f"{unique('tenant')}/shown"
    for seed in (800, 801):
        assert deployed.drop(name, good_tarball(seed=seed)).status == "SUCCEEDED"
    return name


def row(page: Page, name: str) -> Any:
    return page.locator(".list .row").filter(has=page.get_by_text(name, exact=True))


def to_adapter(page: Page, name: str) -> None:
    page.goto(f"/#/adapter/{name.replace('/', '%2F')}")
    expect(page.locator("h1")).to_contain_text(name)


def test_the_fleet_is_found_filtered_and_changes_while_it_is_looked_at(
    stack: StackUnderTest, page: Page, adapter: str
) -> None:
    page.goto("/")
    expect(page.locator(".cards")).to_contain_text("InService")
    page.keyboard.press("/")
    page.keyboard.type(adapter)
    expect(page.locator(".list .row")).to_have_count(1)
    expect(row(page, adapter)).to_contain_text("live")
    page.get_by_label("Tenant").select_option(adapter.partition("/")[0])
    expect(page.locator(".list .row")).to_have_count(1)
    before = row(page, adapter).inner_text()
    body = good_tarball(seed=802)
    ended = stack.drop(adapter, body)
    live = stack.registry(adapter)["live"]["M"]["release"]["S"]
    assert ended.status == "SUCCEEDED"
    expect(row(page, adapter)).to_contain_text(live[:8])
    assert live[:8] not in before
    page.get_by_label("Search").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text(adapter)
    # And while the adapter itself is looked at.
    again = stack.drop(adapter, good_tarball(seed=803))
    expect(page.locator(".timeline > li").first).to_contain_text("live now")
    expect(page.locator("dl")).to_contain_text(again.output["component"])


def test_a_dropped_tarball_is_validated_uploaded_and_watched_to_live(
    stack: StackUnderTest, page: Page, tmp_path: Path
) -> None:
    name = unique("dropped")
    path = tmp_path / f"{name}.tar.gz"
    path.write_bytes(good_tarball(seed=810))
    page.goto("/#/drop")
    page.set_input_files("#drop-file", path)
    page.get_by_role("button", name="Validate and deploy").click()
    expect(page.locator(".steps")).to_contain_text("Accepted for tiny-llama")
    expect(page.locator(".steps")).to_contain_text(f"{name} is live.")
    assert stack.live(name) is not None
    page.get_by_role("link", name="Watch the execution").click()
    expect(page.locator(".badge").first).to_have_text("SUCCEEDED")
    expect(page.locator('.node[data-state="PromoteAdapter"]')).to_have_class(re.compile("g-done"))
    expect(page.locator('.node[data-state="CleanUpComponent"]')).not_to_have_class(re.compile("g-"))
    expect(page.locator(".states")).to_contain_text("AdapterDeployed")


def test_a_bad_tarball_is_rejected_with_its_fix_and_not_uploaded(
    stack: StackUnderTest, page: Page, tmp_path: Path
) -> None:
    path = tmp_path / "wrapped.tar.gz"
    path.write_bytes(wrapped_tarball())
    name = unique("wrapped")
    page.goto("/#/drop")
    page.set_input_files("#drop-file", path)
    page.fill("#drop-name", name)
    page.get_by_role("button", name="Validate and deploy").click()
    expect(page.locator(".steps")).to_contain_text("Rejected: 1 problem. Nothing was uploaded.")
    expect(page.locator(".problem")).to_contain_text("WRAPPING_FOLDER")
    expect(page.locator(".problem .command")).to_contain_text("loradrop package unpacked/")
    assert "Contents" not in stack.s3.list_objects_v2(Bucket=stack.uploads, Prefix=f"adapters/{name}")
    # What the stack itself rejects is red, and says why.
    rejected = stack.drop(name, wrapped_tarball())
    assert rejected.error == "AdapterRejected"
    to_adapter(page, name)
    expect(page.locator("h1")).to_contain_text("rejected")
    page.locator(".timeline summary").first.click()
    expect(page.locator(".problem")).to_contain_text("WRAPPING_FOLDER")
    page.get_by_role("link", name="Execution", exact=True).click()
    expect(page.locator('.node[data-state="AdapterRejected"]')).to_have_class(re.compile("g-failed"))
    expect(page.locator(".message")).to_contain_text("WRAPPING_FOLDER")


def test_a_button_shows_its_command_asks_first_and_does_it(stack: StackUnderTest, page: Page, adapter: str) -> None:
    before = stack.registry(adapter)["live"]["M"]["release"]["S"]
    to_adapter(page, adapter)
    page.get_by_role("button", name="Roll back…", exact=True).click()
    dialog = page.locator("dialog")
    expect(dialog).to_contain_text(f"loradrop rollback {adapter} --stack {stack.name}")
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).not_to_be_visible()
    assert stack.registry(adapter)["live"]["M"]["release"]["S"] == before
    page.get_by_role("button", name="Roll back…", exact=True).click()
    dialog.get_by_role("button", name="Roll back").click()
    expect(page.locator("#notes")).to_contain_text(f"{adapter} is live.")
    now = stack.registry(adapter)["live"]["M"]["release"]["S"]
    assert now != before
    expect(page.locator("dl code").first).to_have_text(now)


def test_an_adapter_and_its_base_are_asked_side_by_side(page: Page, adapter: str) -> None:
    page.goto(f"/#/ask/{adapter.replace('/', '%2F')}")
    page.fill("#ask-prompt", "Say in one sentence what you are for.")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(".columns .card")).to_have_count(2)
    expect(page.locator(".columns")).to_contain_text(re.compile(r"tokens in [\d.]+ s.*tokens in", re.DOTALL))
    said = page.locator(".said").all_inner_texts()
    assert said[0] != said[1]
    assert page.locator(".token").first.get_attribute("title", timeout=SECONDS)


def test_hostile_words_are_only_ever_text(stack: StackUnderTest, page: Page) -> None:
    name, table = unique("hostile"), stack.outputs["RegistryTable"]
    entry = {"failure": {"Error": HOSTILE, "Cause": HOSTILE}}
    record = UploadRecord(
        order="1",
        attempt="attempt",
        bucket="uploads",
        key=f"adapters/{name}.tar.gz",
        version_id="v",
        requester=HOSTILE,
        source_ip=HOSTILE,
        outcome=Outcome.FAILED,
        is_reported=True,
        release="0" * 64,
        summary=f"{name} could not be deployed.\n{HOSTILE}",
        entry=json.dumps(entry),
    )
    stack.dynamodb.put_item(TableName=table, Item=state_item(name, AdapterState(1)))
    stack.dynamodb.put_item(TableName=table, Item=record_item(name, record))
    token = {"token": HOSTILE, "logprob": -0.5, "bytes": [], "top_logprobs": []}
    choice = {"index": 0, "delta": {"content": HOSTILE}, "logprobs": {"content": [token]}, "finish_reason": "stop"}
    answer = f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=answer))
    try:
        page.goto("/")
        page.get_by_label("Search").fill(name)  # of a long list only what is in sight is there
        expect(row(page, name)).to_contain_text(HOSTILE)
        to_adapter(page, name)
        page.locator(".timeline summary").first.click()
        expect(page.locator(".timeline")).to_contain_text(f"{HOSTILE}: {HOSTILE}")
        page.goto(f"/#/ask/{name}")
        page.fill("#ask-prompt", HOSTILE)
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator(".said").first).to_have_text(HOSTILE)
        page.goto(f"/#/adapter/{HOSTILE}")
        expect(page.locator("main")).to_contain_text("is no adapter name")
        assert page.locator("img, main script").count() == 0
        assert "hacked" not in page.title().replace(HOSTILE, "")
    finally:
        for kind in ("state", "upload#1"):
            stack.dynamodb.delete_item(TableName=table, Key={"adapter": {"S": name}, "record": {"S": kind}})


def test_thousands_of_rows_stay_quick(page: Page) -> None:
    blank: dict[str, Any] = {
        "live_release": "0" * 64,
        "requester": "me",
        "reason": None,
        "adapter_ms": 30,
        "base_ms": 27,
        "proof": "",
    }
    blank |= {"full_at": None, "execution": None, "history": [["deployed", None]] * 8, "since": "2026-01-02T03:04:05Z"}
    rows = [
        blank | {"name": f"tenant-{n % 40}/adapter-{n:05}", "state": "live" if n % 9 else "failed"} for n in range(5000)
    ]
    event = f"event: fleet\ndata: {json.dumps({'rows': rows, 'gone': [], 'whole': True})}\n\n"
    page.route("**/api/events", lambda route: route.fulfill(content_type="text/event-stream", body=event))
    page.goto("/")
    expect(page.locator(".count")).to_have_text("5000 adapters")
    assert page.locator(".list .row").count() < 80
    took = page.evaluate(
        """() => { const at = performance.now(); const search = document.getElementById("search");
        search.value = "0499"; search.dispatchEvent(new Event("input")); return performance.now() - at; }"""
    )
    assert took < 500  # milliseconds, on a busy machine
    expect(page.locator(".list .row")).to_have_count(11)
    page.fill("#search", "")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(page.locator(".list")).to_contain_text("tenant-9/adapter-04969")


def test_a_page_to_read_has_nothing_that_changes_the_stack_and_asks_for_the_token(
    stack: StackUnderTest, browser: Browser, adapter: str, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-that-nobody-guesses")
    with served(stack, "--read-only", "--token-file", token) as url:
        signed_in = {"username": "anybody", "password": token.read_text()}
        for page in opened(browser, url, http_credentials=signed_in):
            to_adapter(page, adapter)
            expect(page.locator(".timeline")).to_contain_text("deployed")
            expect(page.locator("#link-state")).to_have_text("up to date")
            assert page.get_by_role("button", name=re.compile("Roll back|Remove|Try again")).count() == 0
            assert page.get_by_role("link", name="Drop", exact=True).count() == 0


@pytest.mark.parametrize(("width", "scheme"), [("phone", "dark"), ("desk", "light")])
def test_every_view_fits_and_can_be_read(
    stack: StackUnderTest, browser: Browser, url: str, adapter: str, width: str, scheme: Any
) -> None:
    wide, high = WIDTHS[width]
    arn = stack.states.list_executions(stateMachineArn=stack.machine)["executions"][0]["executionArn"]
    for page in opened(browser, url, color_scheme=scheme):
        page.set_viewport_size({"width": wide, "height": high})
        name = adapter.replace("/", "%2F")
        for path in ("", f"adapter/{name}", "executions", f"execution/{arn}", f"ask/{name}", "drop"):
            page.goto(f"/#/{path}")
            expect(page.locator("h1")).to_be_visible()
            expect(page.locator("main")).not_to_contain_text("Reading…")
            assert page.evaluate("document.documentElement.scrollWidth") <= wide, path
            ratio = page.evaluate(CONTRAST)
            assert ratio >= 4.5, f"{path}: the text has a contrast of {ratio:.1f}"


# WCAG's contrast of the page's plain and dim text to what lies behind it; the lesser of the two.
CONTRAST = """() => {
  const numbers = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((one) => { const c = one / 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; });
  const light = (text) => { const [r, g, b] = numbers(text); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const inks = [document.body, ...document.querySelectorAll(".dim, .badge, .bad")].map((one) => light(getComputedStyle(one).color));
  return Math.min(...inks.map((ink) => (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)));
}"""
