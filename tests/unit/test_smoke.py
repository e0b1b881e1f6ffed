import json
import math
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loradrop.smoke import (
    Answer,
    ContainerKind,
    SmokePrompt,
    SmokePromptsInvalidError,
    compare,
    health_problem,
    meets_expectation,
    parse_answer,
    parse_smoke_prompts,
)


def test_prompts_are_read_line_by_line() -> None:
    data = b'{"inputs": "a"}\n\n{"inputs": "b", "parameters": {"max_new_tokens": 3}, "expect": "x", "note": 1}\r\n'
    assert parse_smoke_prompts(data) == (SmokePrompt("a"), SmokePrompt("b", {"max_new_tokens": 3}, "x"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nonsense", "line 1: not JSON"),
        ("[1]", "line 1: a JSON list"),
        ("[" * 100_00 + "]" * 100_00, "line 1"),
        ('{"inputs": ""}', "'inputs' must be a string"),
        ('{"inputs": 3}', "'inputs' must be a string"),
        ('{"inputs": "\\ud800"}', "surrogate"),
        ('{"inputs": "a", "parameters": {"adapters": "x"}}', "only max_new_tokens, stop"),
        ('{"inputs": "a", "parameters": []}', "'parameters' must be an object"),
        ('{"inputs": "a", "parameters": {"max_new_tokens": 1e9}}', "'max_new_tokens'"),
        ('{"inputs": "a", "parameters": {"max_new_tokens": true}}', "'max_new_tokens'"),
        ('{"inputs": "a", "parameters": {"stop": "x"}}', "'stop' must be a list"),
        ('{"inputs": "a", "expect": 1}', "'expect' must be a string"),
        ('{"inputs": "a", "expect": "/(/"}', "not a regular expression"),
        ("", "holds 0 prompts"),
    ],
)
def test_a_wrong_line_is_named_with_what_is_allowed(line: str, reason: str) -> None:
    with pytest.raises(SmokePromptsInvalidError) as caught:
        parse_smoke_prompts(line.encode())
    assert reason in str(caught.value)


def test_too_much_is_refused() -> None:
    with pytest.raises(SmokePromptsInvalidError, match="holds 17 prompts"):
        parse_smoke_prompts(b'{"inputs": "a"}\n' * 17)
    with pytest.raises(SmokePromptsInvalidError, match="bytes"):
        parse_smoke_prompts(b" " * 70_000)
    with pytest.raises(SmokePromptsInvalidError, match="not UTF-8"):
        parse_smoke_prompts(b'{"inputs": "\xff"}')


@given(st.binary(max_size=300))
def test_any_bytes_are_prompts_or_have_a_reason(data: bytes) -> None:
    try:
        assert parse_smoke_prompts(data)
    except SmokePromptsInvalidError as error:
        assert str(error).endswith(".")  # noqa: PT017


def test_what_the_stack_sets_wins_over_the_prompt() -> None:
    payload = SmokePrompt("hi", {"max_new_tokens": 5}).payload()
    assert payload == {"inputs": "hi", "parameters": {"max_new_tokens": 5, "temperature": 0, "details": True}}


def test_the_vllm_container_is_asked_in_the_schema_that_it_has() -> None:
    prompt = SmokePrompt("hi", {"max_new_tokens": 5, "stop": ["."]})
    assert prompt.payload(ContainerKind.VLLM) == {
        "prompt": "hi",
        "max_tokens": 5,
        "temperature": 0,
        "stop": ["."],
        "logprobs": 1,
    }
    assert SmokePrompt("hi").payload(ContainerKind.VLLM)["max_tokens"] == 32


def test_a_completion_is_read_with_its_log_probabilities() -> None:
    choice: dict[str, Any] = {
        "index": 0,
        "text": " hi there",
        "logprobs": {"text_offset": [0, 3], "token_logprobs": [-0.25, None], "tokens": [" hi", " there"]},
    }
    read = parse_answer(json.dumps({"object": "text_completion", "choices": [choice]}).encode())
    assert (read.text, read.tokens, read.logprobs[0]) == (" hi there", (" hi", " there"), -0.25)
    assert health_problem(read) is not None  # a null is no number
    del choice["logprobs"]
    assert parse_answer(json.dumps({"choices": [choice]}).encode()) == Answer(" hi there")


@pytest.mark.parametrize(
    ("text", "expect", "met"),
    [
        ("all positive", "positive", True),
        ("all positive", "negative", False),
        ("42 km", r"/^\d+ km$/", True),
        ("km", r"/^\d+ km$/", False),
        ("/x/", "/", True),
        ("anything", None, True),
    ],
)
def test_expectations(text: str, expect: str | None, met: bool) -> None:
    assert meets_expectation(text, expect) is met


def test_a_pattern_that_backtracks_without_end_is_given_up() -> None:
    started = time.monotonic()
    assert not meets_expectation("a" * 60 + "b", "/(a+)+$/")
    assert time.monotonic() - started < 10


# 480 characters that take half a second to compile, and sixteen that differ.
DEAR = ["(?i)" + f"[\0-{chr(0xFFFF - number)}]" * 95 for number in range(16)]


def test_patterns_that_are_dear_to_compile_are_bounded_together() -> None:
    re.purge()
    lines = "\n".join(json.dumps({"inputs": "x", "expect": f"/{pattern}/"}) for pattern in DEAR)
    started = time.monotonic()
    with pytest.raises(SmokePromptsInvalidError, match="take more than 1 s to compile"):
        parse_smoke_prompts(lines.encode())
    assert time.monotonic() - started < 3


def test_compiling_counts_into_the_time_of_a_match() -> None:
    pattern = "(?i)" + "|".join(pattern.removeprefix("(?i)") for pattern in DEAR)
    re.purge()
    started = time.monotonic()
    assert not meets_expectation("x", f"/{pattern}/")
    assert time.monotonic() - started < 3


def test_smoke_prompts_are_read_in_any_thread() -> None:
    with ThreadPoolExecutor(1) as threads:
        (prompt,) = threads.submit(parse_smoke_prompts, b'{"inputs": "x", "expect": "/y/"}').result()
        assert threads.submit(meets_expectation, "y", prompt.expect).result()


def test_a_byte_order_mark_is_read_over() -> None:
    assert parse_smoke_prompts(b'\xef\xbb\xbf{"inputs": "Hi"}\r\n') == (SmokePrompt("Hi"),)


def answer(*logprobs: float, tokens: str = "abc") -> Answer:
    return Answer("".join(tokens[: len(logprobs)]), tuple(tokens[: len(logprobs)]), logprobs)


BASE = answer(-1.0, -2.0, -0.5)


@pytest.mark.parametrize(
    ("adapter", "base_again", "differs"),
    [
        (BASE, BASE, False),
        (answer(-1.0, -2.0, -0.5 + 5e-5), BASE, False),  # below what a float's last digits make
        (answer(-1.0, -2.0, -0.6), BASE, True),
        (answer(-1.0, -2.0, -0.6), answer(-1.05, -2.0, -0.5), False),  # within the base's own noise
        (answer(-1.0, -2.0, -0.9), answer(-1.05, -2.0, -0.5), True),
        (answer(-1.0, -2.0, tokens="ab"), BASE, True),  # it stopped earlier
        (answer(-1.0, -2.0, -0.5, tokens="abx"), BASE, True),
        (answer(-1.0, -2.0, -0.5, tokens="abx"), answer(-1.0, -2.0, -0.5, tokens="abx"), False),  # the base wavers
        (answer(-1.0, -2.0, -0.5, tokens="xyz"), answer(-1.0, -2.0, -0.5, tokens="abx"), True),
        (Answer("other"), BASE, True),
        (Answer("abc"), BASE, False),
        (answer(math.nan, math.nan, math.nan, tokens="!!!"), BASE, False),
        (answer(-1.0, -math.inf, tokens="xy"), BASE, False),
        (answer(-1.0, -2.0, -0.6), answer(math.nan, -2.0, -0.5), False),
    ],
)
def test_an_adapter_differs_by_more_than_the_base_from_itself(
    adapter: Answer, base_again: Answer, differs: bool
) -> None:
    assert compare(adapter, BASE, base_again).differs is differs


def test_answers_of_both_of_the_containers_handlers_are_read() -> None:
    for name in ("logprob", "log_prob"):
        body = {"generated_text": "hi", "details": {"tokens": [{"id": 1, "text": "hi", name: -0.25}]}}
        assert parse_answer(json.dumps(body).encode()) == Answer("hi", ("hi",), (-0.25,))
    assert parse_answer(b'{"generated_text": "hi"}') == Answer("hi")
    assert parse_answer(b'[{"generated_text": "hi", "details": null}]') == Answer("hi")


@pytest.mark.parametrize("said", ["NaN", "-Infinity", "null", '"NaN"'])
def test_an_answer_that_was_not_computed_in_numbers_proves_no_health(said: str) -> None:
    read = parse_answer(
        f'{{"generated_text": "!!", "details": {{"tokens": [{{"text": "!", "logprob": {said}}}]}}}}'.encode()
    )
    assert "not finite" in (health_problem(read) or "")
    assert not compare(read, BASE, BASE).differs


def test_one_token_again_and_again_is_garbage_and_a_short_repetition_is_not() -> None:
    assert health_problem(answer(*[-0.1] * 32, tokens="!" * 32)) is not None
    assert health_problem(answer(*[-0.1] * 4, tokens="ha" * 2)) is None
    assert health_problem(Answer("text alone")) is None


@pytest.mark.parametrize("details", ['"none"', "[]", '{"tokens": 3}', '{"tokens": ["a"]}', '{"tokens": null}'])
def test_details_of_another_form_are_no_log_probabilities(details: str) -> None:
    assert parse_answer(f'{{"generated_text": "hi", "details": {details}}}'.encode()) == Answer("hi")


@pytest.mark.parametrize(
    "body", [b'{"error": "no such adapter", "code": 424}', b"[]", b"oops", b'{"generated_text": 1}']
)
def test_an_error_sent_as_an_answer_is_no_answer(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"generated_text|Expecting value"):
        parse_answer(body)
