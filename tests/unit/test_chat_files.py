"""Files as people have them: each ends in a trained adapter, or in sentences that say what to change."""

import csv
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from loradrop_cli.exit_codes import ExitCode
from loradrop_training import fine_tune
from loradrop_training.data_recipe import write_recipe
from loradrop_training.findings import Code
from loradrop_training.recipe import RecipeError, read_recipe

TOPICS = ("bike", "wheel", "chain", "brake", "saddle", "light", "lock", "pump")
COUNT = 40


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def question(number: int) -> str:
    return f"My {TOPICS[number % 8]} number {number} is broken, what now?"


def answer(number: int) -> str:
    return f"Bring the {TOPICS[number % 8]} to the shop."


def chat(number: int) -> list[dict[str, Any]]:
    return [turn("system", "Be brief."), turn("user", question(number)), turn("assistant", answer(number))]


def openai(number: int) -> dict[str, Any]:
    return {"messages": chat(number)}


def several_turns(number: int) -> dict[str, Any]:
    more = [turn("user", "And the price?"), turn("assistant", "Ten.", weight=number % 2), turn("user", "Thanks!")]
    return {"messages": [*chat(number), *more, turn("assistant", "Goodbye.")]}


def content_in_parts(number: int) -> dict[str, Any]:
    system, asked, answered = chat(number)
    return {"messages": [system, asked | {"content": [{"type": "text", "text": asked["content"]}]}, answered]}


def sharegpt(number: int) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question(number)}, {"from": "gpt", "value": answer(number)}]}


def alpaca(number: int) -> dict[str, Any]:
    return {"instruction": question(number), "input": "" if number % 2 else "It is old.", "output": answer(number)}


def completion(number: int) -> dict[str, Any]:
    return {"prompt": question(number), "completion": f" {answer(number)}"}


def conversational_completion(number: int) -> dict[str, Any]:
    *context, last = chat(number)
    return {"prompt": context, "completion": [last]}


def odd_columns(number: int) -> dict[str, Any]:
    return {"id": number, "source": "crm", "Question": question(number), "Answer": answer(number), "stars": None}


def with_tools(number: int) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "price_of", "arguments": '{"part": "wheel"}'}}
    return {
        "messages": [
            turn("user", question(number)),
            turn("assistant", None, tool_calls=[call]),
            turn("tool", '{"price": 10}', tool_call_id="c1"),
            turn("assistant", "It costs ten."),
        ],
        "tools": [{"type": "function", "function": {"name": "price_of", "description": "A part's price.", "parameters": {"type": "object", "properties": {"part": {"type": "string"}}}}}],
    }  # fmt: skip


def jsonl(of: Callable[[int], Any], count: int = COUNT) -> bytes:
    return "".join(f"{json.dumps(of(number))}\n" for number in range(count)).encode()


def table(delimiter: str, of: Callable[[int], dict[str, Any]], count: int = COUNT) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(of(0)), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(map(of, range(count)))
    return text.getvalue().encode()


def labelled(number: int) -> dict[str, Any]:
    return {"ticket": f"{question(number)} {'It is urgent.' if number % 2 else 'Take your time.'}", "category": ("low", "high")[number % 2]}  # fmt: skip


# What a template that knows of tools writes, Llama-3.1's in short.
TOOL_TEMPLATE = (
    "{{- bos_token }}{%- if tools %}{{- '<|start_header_id|>system<|end_header_id|>\n\nTools: ' + (tools | tojson) + '<|eot_id|>' }}{%- endif %}"
    "{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{%- if m.tool_calls %}{%- for c in m.tool_calls %}{{- {'name': c.function.name, 'parameters': c.function.arguments} | tojson }}{%- endfor %}"
    "{%- elif m['role'] == 'tool' %}{{- m['content'] | tojson }}{%- else %}{{- m['content'] | trim }}{%- endif %}{{- '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)


@pytest.fixture(scope="module")
def tool_llama(random_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shutil

    folder = tmp_path_factory.mktemp("bases") / "tool-llama"
    shutil.copytree(random_llama, folder)
    (folder / "chat_template.jinja").write_text(TOOL_TEMPLATE)
    return folder


def recipe_for(file: Path, base: Path, **changes: str) -> Path:
    """The chosen recipe, with one pass over the data and few questions, so that it is quick."""
    chosen = file.parent / "chosen.yaml"
    write_recipe(str(file), chosen, base=str(base), profile="tiny-llama", name="acme", force=True)
    text = chosen.read_text()
    for key, value in ({"epochs": "1", "max_new_tokens": "4", "gradient_checkpointing": "false"} | changes).items():
        text, found = re.subn(rf"  {key}: .*", f"  {key}: {value}", text)
        assert found == 1
    chosen.write_text(text)
    return chosen


def train(recipe: Path, *options: str) -> int:
    return fine_tune.main([str(recipe), "-o", str(recipe.parent / "out"), *options])


TRAINED: dict[str, tuple[str, bytes, str]] = {
    "OpenAI chats": ("chats.jsonl", jsonl(openai), "chat"),
    "several turns, some of weight 0": ("chats.jsonl", jsonl(several_turns), "chat"),
    "content in parts": ("chats.jsonl", jsonl(content_in_parts), "chat"),
    "a BOM, blank lines and CRLF": ("chats.jsonl", b"\xef\xbb\xbf" + jsonl(openai).replace(b"\n", b"\r\n\r\n"), "chat"),
    "an array in .json": ("chats.json", json.dumps([openai(n) for n in range(COUNT)], indent=2).encode(), "chat"),
    "an array in .jsonl": ("chats.jsonl", json.dumps([openai(n) for n in range(COUNT)]).encode(), "chat"),
    "an export with its records in it": ("x.json", json.dumps({"version": 1, "data": [openai(n) for n in range(COUNT)]}, indent=1).encode(), "chat"),
    "ShareGPT": ("share.json", json.dumps([sharegpt(n) for n in range(COUNT)]).encode(), "conversations"),
    "Alpaca": ("alpaca.json", json.dumps([alpaca(n) for n in range(COUNT)]).encode(), "instruction"),
    "prompt and completion": ("old.jsonl", jsonl(completion), "prompt_completion"),
    "conversational prompt and completion": ("trl.jsonl", jsonl(conversational_completion), "prompt_completion"),
    "odd columns": ("crm.jsonl", jsonl(odd_columns), "columns"),
    "a CSV of labels with semicolons": ("tickets.csv", table(";", lambda n: {"text": question(n) + (" It is urgent." if n % 2 else ""), "category": ("low", "high")[n % 2]}), "labels"),
    "a TSV of labels": ("tickets.tsv", table("\t", labelled), "labels"),
}  # fmt: skip


# Their siblings above are trained on in every run; these are read by other code, and then are the same.
LONG = {
    "content in parts",
    "an array in .json",
    "an array in .jsonl",
    "an export with its records in it",
    "conversational prompt and completion",
    "odd columns",
    "a TSV of labels",
}


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.long] if one in LONG else []) for one in TRAINED]
)
def test_it_ends_in_a_trained_adapter(name: str, random_llama: Path, tmp_path: Path) -> None:
    file_name, content, form = TRAINED[name]
    (tmp_path / file_name).write_bytes(content)
    recipe = recipe_for(tmp_path / file_name, random_llama)
    assert read_recipe(recipe).data.format == form
    assert train(recipe) == ExitCode.DONE
    with tarfile.open(tmp_path / "out" / "adapter.tar.gz") as archive:
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(archive.getnames())
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert evaluation["answered"]
    names = [one["name"] for one in evaluation["measures"]]
    if form in ("chat", "conversations"):
        assert names == ["log-likelihood per token", "chrF", "agreement"]
        assert "May it replace the model before it?" in (tmp_path / "out" / "REPORT.md").read_text()


def test_tools_are_trained_on_as_the_template_writes_them(
    tool_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tools.jsonl").write_bytes(jsonl(with_tools))
    recipe = recipe_for(tmp_path / "tools.jsonl", tool_llama)
    assert train(recipe, "--show-example") == ExitCode.DONE
    shown = capsys.readouterr().out
    assert '⟦{"name": "price_of", "parameters": {"part": "wheel"}}<|eot_id|>⟧' in shown
    assert "⟦It costs ten.<|eot_id|>⟧" in shown
    assert shown.count("⟦") == 2
    assert train(recipe) == ExitCode.DONE


def one_wrong(line: bytes) -> bytes:
    """One broken line in 10,000: the 7,000th."""
    lines = [json.dumps(openai(number)).encode() for number in range(10_000)]
    lines[6_999] = line
    return b"\n".join(lines) + b"\n"


def wrong(*messages: Any, **more: Any) -> bytes:
    return jsonl(openai) + json.dumps({"messages": list(messages), **more}).encode() + b"\n"


ASKED = turn("user", "Hello?")
REFUSED: dict[str, tuple[str, bytes, Code, str]] = {
    "one broken line in 10,000": ("a.jsonl", one_wrong(b'{"messages": [{"role": "user"'), Code.NOT_A_RECORD, "a.jsonl:7000: not JSON"),
    "mixed roles": ("a.jsonl", wrong(ASKED, turn("bob", "Hi.")), Code.NOT_A_CHAT, "a.jsonl:41: message 2 has role 'bob'; it must be one of"),
    "the assistant first": ("a.jsonl", wrong(turn("assistant", "Hi."), ASKED, turn("assistant", "Yes?")), Code.ROLE_ORDER, "a.jsonl:41: message 1 is the assistant's, and nobody has asked yet"),
    "the assistant twice": ("a.jsonl", wrong(ASKED, turn("assistant", "Hi."), turn("assistant", "Hi.")), Code.ROLE_ORDER, "a.jsonl:41: message 3 is the assistant's, as the one before it; join the two"),
    "an empty turn": ("a.jsonl", wrong(ASKED, turn("assistant", " ")), Code.EMPTY_TEXT, "a.jsonl:41: message 2 (assistant)"),
    "no answer": ("a.jsonl", wrong(ASKED), Code.NO_ANSWER, "a.jsonl:41: add the answer"),
    "weight 0 alone": ("a.jsonl", wrong(ASKED, turn("assistant", "Hi.", weight=0)), Code.NO_ANSWER, "a.jsonl:41: every assistant turn has weight 0"),
    "a weight that is none": ("a.jsonl", wrong(ASKED, turn("assistant", "Hi.", weight=0.5)), Code.NOT_A_CHAT, "the weight of message 2 is 0.5; it must be 0 or 1"),
    "an image": ("a.jsonl", wrong(turn("user", [{"type": "image_url", "image_url": {"url": "x"}}]), turn("assistant", "Hi.")), Code.NOT_TEXT, "a.jsonl:41: message 1 holds image_url"),
    "a special token": ("a.jsonl", wrong(turn("user", "a<|eot_id|>b"), turn("assistant", "Hi.")), Code.SPECIAL_TOKEN, "a.jsonl:41: <|eot_id|> in message 1 (user)"),
    "tools that the template lacks": ("a.jsonl", jsonl(with_tools), Code.TEMPLATE, "a.jsonl:1: it leaves out the tools; take them out of the line, or choose a base that has them"),
    "preference pairs of OpenAI": ("p.jsonl", jsonl(lambda n: {"input": {"messages": [ASKED]}, "preferred_output": [turn("assistant", f"{n}")], "non_preferred_output": []}), Code.PREFERENCE_PAIR, "{messages: (.input.messages + .preferred_output)}"),
    "preference pairs of trl": ("p.jsonl", jsonl(lambda n: {"prompt": f"{n}?", "chosen": "Yes.", "rejected": "No."}), Code.PREFERENCE_PAIR, "keep the preferred answers"),
    "Latin-1": ("a.jsonl", jsonl(openai) + '{"messages": "caf\xe9"}\n'.encode("latin-1"), Code.NOT_UTF8, "a.jsonl:41: byte 0xe9"),
    "a column that is missing": ("a.jsonl", jsonl(completion) + b'{"prompt": "Why?", "text": "x"}\n', Code.MISSING_COLUMN, "a.jsonl:41: column 'completion': there is none; the line has prompt, text"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_ends_in_sentences_that_say_what_to_change(
    name: str, random_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file_name, content, code, sentence = REFUSED[name]
    (tmp_path / file_name).write_bytes(content)
    assert train(recipe_for(tmp_path / file_name, random_llama)) == ExitCode.REJECTED
    printed = capsys.readouterr().out
    assert f"error {code.name}: " in printed
    assert sentence in printed
    assert not (tmp_path / "out" / "adapter.tar.gz").exists()


def test_a_mistake_in_one_line_never_hides_the_others(
    random_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        b"{",
        json.dumps({"messages": [ASKED]}).encode(),
        json.dumps({"messages": [turn("bob", "x"), turn("eve", "y")]}).encode(),
        json.dumps({"messages": [ASKED, turn("assistant", "")]}).encode(),
    ]
    (tmp_path / "a.jsonl").write_bytes(jsonl(openai) + b"\n".join(lines) + b"\n")
    assert train(recipe_for(tmp_path / "a.jsonl", random_llama)) == ExitCode.REJECTED
    printed = capsys.readouterr().out
    assert all(f"a.jsonl:{line}: " in printed for line in (41, 42, 43, 44))
    assert "message 1 has role 'bob'" in printed
    assert "message 2 has role 'eve'" in printed


def test_warnings_do_not_stop_a_training(
    random_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    personal = [turn("user", "My card is 4111 1111 1111 1111."), turn("assistant", "Never send it.")]
    key = [turn("user", "Why does sk-abcdefghijklmnopqrstuvwx fail?"), turn("assistant", "Revoke it.")]
    lines = [{"messages": personal}, {"messages": key}, openai(0), {"messages": [turn("user", "Order 1234 5678 9012 345?"), turn("assistant", "On its way.")]}]  # fmt: skip
    (tmp_path / "a.jsonl").write_bytes(jsonl(openai) + jsonl(lambda n: lines[n], len(lines)))
    assert train(recipe_for(tmp_path / "a.jsonl", random_llama), "--dry-run") == ExitCode.DONE
    printed = capsys.readouterr().out
    assert "a.jsonl:41: message 1 (user) looks like it holds a card number" in printed
    assert "a.jsonl:42: message 1 (user) looks like it holds a key" in printed
    assert "warning DUPLICATE" in printed
    assert "a.jsonl:43: as a.jsonl:1" in printed
    assert "a.jsonl:44" not in printed


def test_a_held_out_chat_that_is_trained_on_is_found(
    random_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(jsonl(openai))
    (folder / "test.jsonl").write_bytes(jsonl(lambda n: openai(n + 39), 8))
    recipe = tmp_path / "recipe.yaml"
    write_recipe(str(folder), recipe, base=str(random_llama), profile="tiny-llama", name="acme", force=False)
    assert train(recipe, "--dry-run") == ExitCode.REJECTED
    printed = capsys.readouterr().out
    assert "error LEAKAGE" in printed
    assert "test.jsonl:1: as train.jsonl:40" in printed
    (folder / "test.jsonl").write_bytes(jsonl(lambda n: openai(n + 40), 8))
    assert train(recipe, "--dry-run") == ExitCode.DONE
    assert "40 examples to train on" in capsys.readouterr().out


def test_long_chats_are_cut_after_a_turn_dropped_or_refused(
    random_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = [*chat(1), turn("user", "Tell me more."), turn("assistant", "more and more " * 60)]
    (tmp_path / "a.jsonl").write_bytes(jsonl(openai) + json.dumps({"messages": long}).encode() + b"\n")
    for too_long, code in (("cut", "warning CUT_LONG"), ("drop", "warning DROPPED_LONG"), ("refuse", "error TOO_LONG")):
        recipe = recipe_for(tmp_path / "a.jsonl", random_llama, max_tokens="100", too_long=too_long)
        assert train(recipe, "--dry-run") == (ExitCode.REJECTED if too_long == "refuse" else ExitCode.DONE)
        printed = capsys.readouterr().out
        assert code in printed
        assert "a.jsonl:41: " in printed


def test_the_example_that_is_shown_marks_what_is_trained_on(
    random_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(lambda n: several_turns(2 * n)))
    assert train(recipe_for(tmp_path / "a.jsonl", random_llama), "--show-example") == ExitCode.DONE
    shown = capsys.readouterr().out
    assert "user<|end_header_id|>\n\nMy " in shown
    assert re.findall("⟦(.*?)⟧", shown)[1:] == ["Goodbye.<|eot_id|>"]  # the turn of weight 0 is not
    assert re.search(r"⟦Bring the \w+ to the shop\.<\|eot_id\|>⟧", shown)
    assert train(recipe_for(tmp_path / "a.jsonl", random_llama, loss="last"), "--show-example") == ExitCode.DONE
    assert re.findall("⟦(.*?)⟧", capsys.readouterr().out) == ["Goodbye.<|eot_id|>"]
    assert not (tmp_path / "out").exists()


def test_parquet_is_read(random_llama: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="part of the extra `train`")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([several_turns(n) for n in range(COUNT)]), tmp_path / "a.parquet")
    assert train(recipe_for(tmp_path / "a.parquet", random_llama), "--dry-run") == ExitCode.DONE


def test_a_prefix_on_s3_is_downloaded_once(
    random_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with mock_aws():
        s3 = boto3.client("s3", region_name="us-east-1")
        s3.create_bucket(Bucket="training-data")
        s3.put_object(Bucket="training-data", Key="support/train.jsonl", Body=jsonl(openai))
        s3.put_object(Bucket="training-data", Key="support/test.jsonl", Body=jsonl(lambda n: openai(n + 40), 8))
        s3.put_object(Bucket="training-data", Key="support/notes.docx", Body=b"no")
        data = "s3://training-data/support"
        options = ["--base", str(random_llama), "--profile", "tiny-llama", "--name", "acme", "--dry-run"]
        assert fine_tune.main([data, *options]) == ExitCode.DONE
        printed = capsys.readouterr().out
        assert f"{data}: 40 chats" in printed
        assert printed.count("downloading ") == 1
        with pytest.raises(RecipeError, match=r"s3://training-data/nothing holds no file that ends in"):
            write_recipe(
                "s3://training-data/nothing", tmp_path / "r.yaml", base=None, profile=None, name=None, force=False
            )


def test_a_file_is_trained_on_in_one_command_and_the_recipe_lies_beside_the_output(
    random_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("Support Chats.jsonl").write_bytes(jsonl(openai))
    options = ["--base", str(random_llama), "--profile", "tiny-llama"]
    assert fine_tune.main(["Support Chats.jsonl", *options, "--dry-run"]) == ExitCode.DONE
    assert not Path("out").exists()
    assert fine_tune.main(["Support Chats.jsonl", *options]) == ExitCode.DONE
    assert Path("out/support-chats/adapter.tar.gz").exists()
    chosen = Path("out/support-chats.yaml")
    assert chosen.read_text().count("#") >= 8
    printed = capsys.readouterr().out
    assert "Support Chats.jsonl: 40 chats (OpenAI's messages)" in printed
    assert "loradrop push out/support-chats/adapter.tar.gz --name support-chats" in printed
    chosen.write_text(chosen.read_text().replace("rank: 16", "rank: 8"))
    assert fine_tune.main(["Support Chats.jsonl", *options]) == ExitCode.UNUSABLE
    assert "  loradrop train out/support-chats.yaml" in capsys.readouterr().err
    assert "rank: 8" in chosen.read_text()


def test_the_report_says_whether_the_adapter_may_replace_the_model_that_is_left(
    random_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(lambda n: openai(n) | {"gpt": answer(n)}))
    recipe = recipe_for(tmp_path / "a.jsonl", random_llama)
    assert train(recipe) == ExitCode.DONE
    assert (
        "whether the adapter may replace the model that you are leaving is not known" in capsys.readouterr().out.lower()
    )
    recipe.write_text(recipe.read_text().replace("  loss:", "  previous: gpt\n  loss:"))
    assert train(recipe, "--force") == ExitCode.DONE
    assert "The adapter may not replace the model before it: chrF" in (tmp_path / "out" / "REPORT.md").read_text()


def test_the_recipe_command_stops_at_the_recipe_and_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(openai))
    script = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'peft')));"
        "from loradrop_cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "recipe", f"{tmp_path}/a.jsonl", "-o", f"{tmp_path}/recipe.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"loradrop train {tmp_path}/recipe.yaml --dry-run" in done.stdout
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert (recipe.data.format, recipe.base.profile) == ("chat", "llama-3.1-8b-instruct")
    assert recipe.data.train == (str(tmp_path / "a.jsonl"),)


def test_columns_that_say_nothing_are_asked_about(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(lambda n: {"a": "x", "b": "y", "c": "z"}))
    with pytest.raises(RecipeError, match=r"which columns are question and answer\? It has a, b, c"):
        write_recipe(str(tmp_path / "a.jsonl"), tmp_path / "r.yaml", base=None, profile=None, name=None, force=False)
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    with pytest.raises(RecipeError, match="holds no record to choose a recipe by: it is empty"):
        write_recipe(
            str(tmp_path / "empty.jsonl"), tmp_path / "r.yaml", base=None, profile=None, name=None, force=False
        )
