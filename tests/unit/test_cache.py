"""What is made once, under .cache/, and made again only where what it depends on has changed."""

from pathlib import Path

import pytest

from loradrop_training import cache


def test_a_folder_is_made_once_for_what_it_depends_on(tmp_path: Path) -> None:
    made: list[str] = []

    def make(folder: Path) -> None:
        made.append(folder.name)
        (folder / "result").write_text(str(len(made)))

    folder = tmp_path / "cache" / "thing"
    for _ in range(2):
        assert cache.made_once(folder, "one", make) == folder
    assert (folder / "result").read_text() == "1"
    cache.made_once(folder, "two", make)
    assert (folder / "result").read_text() == "2"
    assert not list((tmp_path / "cache").glob(".thing-*"))


def test_who_is_interrupted_leaves_what_was_there(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "result").write_text("whole")

    def interrupted(folder: Path) -> None:
        (folder / "result").write_text("half")
        raise KeyboardInterrupt

    folder = tmp_path / "thing"
    with pytest.raises(KeyboardInterrupt):
        cache.made_once(folder, "one", interrupted)
    assert not folder.exists()
    cache.made_once(folder, "one", make)
    with pytest.raises(KeyboardInterrupt):
        cache.made_once(folder, "two", interrupted)
    assert (folder / "result").read_text() == "whole"
    assert cache.is_made(folder, "one")
    assert not list(tmp_path.glob(".thing-*"))


def test_the_digest_changes_with_each_thing_that_it_is_made_of(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text("1")
    first = cache.digest_of([source], ["torch"], "seed 1")
    assert cache.digest_of([source], ["torch"], "seed 1") == first
    others = [cache.digest_of([source], ["peft"], "seed 1"), cache.digest_of([source], ["torch"], "seed 2")]
    source.write_text("2")
    others.append(cache.digest_of([source], ["torch"], "seed 1"))
    assert len({first, *others}) == 4
