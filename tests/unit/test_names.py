import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loradrop.names import (
    AdapterNameInvalidError,
    adapter_name,
    component_name,
    nameless_adapter,
    order_behind,
    order_of,
    release_key,
    report_key,
    upload_key,
)

SAGEMAKER_NAME = re.compile(r"[a-zA-Z0-9]([\-a-zA-Z0-9]*[a-zA-Z0-9])?")

_segments = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?", fullmatch=True)
adapter_names = st.lists(_segments, min_size=1, max_size=4).map("/".join)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("adapters/acme.tar.gz", "acme"),
        ("adapters/tenant/acme.tar.gz", "tenant/acme"),
        ("adapters/a.b_c-1.tar.gz", "a.b_c-1"),
        ("adapters/adapters/x.tar.gz", "adapters/x"),
        ("adapters/x.tar.gz.tar.gz", "x.tar.gz"),
    ],
)
def test_a_key_names_its_adapter(key: str, name: str) -> None:
    assert adapter_name(key) == name


@pytest.mark.parametrize(
    "key",
    [
        "adapters/.tar.gz",
        "adapters/a b.tar.gz",
        "adapters/a+b.tar.gz",
        "adapters/a%20b.tar.gz",
        "adapters/../x.tar.gz",
        "adapters/x/.tar.gz",
        "adapters//x.tar.gz",
        "adapters/-x.tar.gz",
        "adapters/ümlaut.tar.gz",
        "adapters/x\n.tar.gz",
        "adapters/" + "x" * 129 + ".tar.gz",
    ],
)
def test_another_key_is_refused_with_the_rule(key: str) -> None:
    with pytest.raises(AdapterNameInvalidError, match=r"letters, digits, '\.', '_' and '-'"):
        adapter_name(key)


@given(adapter=adapter_names, release=st.text(alphabet="0123456789abcdef", min_size=64, max_size=64))
def test_a_component_name_is_one_that_sagemaker_takes(adapter: str, release: str) -> None:
    name = component_name(adapter, release, endpoint="endpoint", base="base", attempt="arn:1")
    assert SAGEMAKER_NAME.fullmatch(name)
    assert len(name) <= 63
    assert name == component_name(adapter, release, endpoint="endpoint", base="base", attempt="arn:1")


def test_a_component_name_distinguishes_adapters_releases_endpoints_and_attempts() -> None:
    names = {
        component_name(adapter, release, endpoint=endpoint, base=base, attempt=attempt)
        for adapter in ("a-b", "a/b", "a.b", "A-b")
        for release in ("1" * 64, "2" * 64)
        for endpoint in ("e1", "e2")
        for base in ("b1", "b2")
        for attempt in ("a1", "a2")
    }
    assert len(names) == 64


def test_keys_of_releases_and_reports() -> None:
    assert release_key("t/a", "f" * 64) == "releases/t/a/" + "f" * 64 + ".tar.gz"
    assert report_key("adapters/t/a.tar.gz") == "reports/t/a.json"
    assert report_key("adapters/no name!.tar.gz") == "reports/no name!.json"
    assert report_key("adapters/.tar.gz") == "reports/(no name).json"
    assert report_key("elsewhere/acme.tgz") == "reports/elsewhere/acme.tgz.json"


def test_a_key_that_names_no_adapter_is_kept_apart_from_every_name() -> None:
    with pytest.raises(AdapterNameInvalidError):
        adapter_name(upload_key(nameless_adapter("adapters/.tar.gz")))


@given(st.integers(0, 16**18), st.integers(0, 2**42))
def test_a_decision_without_an_event_stands_right_behind_what_it_repairs(number: int, milliseconds: int) -> None:
    repaired, next_event = order_of(f"{number:X}"), order_of(f"{number + 1:X}")
    behind = order_behind(repaired, milliseconds)
    assert repaired < behind < order_behind(behind, milliseconds + 1) < next_event


@given(st.integers(0, 16**24), st.integers(0, 16**24))
def test_sequencers_sort_as_numbers(one: int, other: int) -> None:
    assert (order_of(f"{one:X}") < order_of(f"{other:x}")) == (one < other)


@pytest.mark.parametrize("sequencer", ["", "xyz", "1" * 41, "-1", "0x1"])
def test_what_is_no_sequencer_is_refused(sequencer: str) -> None:
    with pytest.raises(ValueError, match="hexadecimal digits"):
        order_of(sequencer)


@given(st.text(alphabet=string.printable, max_size=200))
def test_any_key_has_a_name_or_a_reason(stem: str) -> None:
    try:
        name = adapter_name(f"adapters/{stem}.tar.gz")
    except AdapterNameInvalidError as error:
        assert str(error)  # noqa: PT017
    else:
        assert name == stem
