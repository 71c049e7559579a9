"""Names of files: what folders have, which are the same, how bytes that are no text are kept."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgejudge.bulk.names import (
    as_text,
    find_files,
    from_text,
    key_of,
    listing,
    normalised,
    own_files,
)

NAMES = st.binary(min_size=1).filter(lambda name: b"\0" not in name).map(os.fsdecode)


def test_folders_are_searched_whole_and_in_order(tmp_path: Path) -> None:
    for name in ("b", "a/2", "a/1", "a/deep/er/x", "c.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to("self")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "b")
    (tmp_path / "a" / "lost").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a" / "none").mkdir()
    os.mkfifo(tmp_path / "a" / "pipe")
    found = [os.path.relpath(path, tmp_path) for path in find_files(str(tmp_path))]
    assert found == ["a/1", "a/2", "a/deep/er/x", "a/link", "a/lost", "a/self", "b", "c.txt"]
    assert list(find_files(str(tmp_path / "a" / "loop")))[0].endswith("loop/a/1")
    assert list(find_files("nothing here")) == ["nothing here"]
    assert list(find_files("no\0file")) == ["no\0file"]


def test_a_folder_that_cannot_be_read_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shut").mkdir()
    (tmp_path / "z").write_bytes(b"")
    real = os.listdir

    def listdir(path: str) -> list[str]:
        if path.endswith("shut"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    assert [os.path.basename(path) for path in find_files(str(tmp_path))] == ["shut", "z"]


def test_every_file_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("d/a", "d/b", "d/e/c"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")
    again = ["d/b", "./d//b", "d", f"{tmp_path}/d/./a", "d/e", "d/e/c", "nothing", "nothing"]
    assert list(listing(again)) == ["d/b", "d/a", "d/e/c", "nothing"]
    assert list(listing(["d/e/../a", "d/a"])) == ["d/e/../a", "d/a"], "text cannot tell"


def test_a_results_file_is_no_picture_of_its_own_folder(tmp_path: Path) -> None:
    for name in ("a", "r.jsonl", "r.jsonl.lock", "r.jsonl.part", "sub/r.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = listing([str(tmp_path)], own_files(str(tmp_path / "r.jsonl")))
    assert [os.path.relpath(path, tmp_path) for path in found] == ["a", "sub/r.jsonl"]


def test_one_path_in_several_spellings() -> None:
    assert normalised("./a//b/./c/") == normalised("a/b/c") == "a/b/c"
    assert normalised("/./a") == "/a" and normalised("a/../b") == "a/../b"
    assert key_of("./a/b") == key_of("a//b") != key_of("/a/b")


@given(NAMES)
def test_any_name_comes_back(name: str) -> None:
    text, hexadecimal = as_text(name)
    assert text.encode("utf-8")  # which half a character has not
    assert from_text(text, hexadecimal) == name
    assert (hexadecimal is None) == (text == name)


def test_how_bytes_are_written_that_are_no_text() -> None:
    assert as_text("é\n.png") == ("é\n.png", None)
    assert as_text(os.fsdecode(b"a\xff.png")) == ("a\\xff.png", "61ff2e706e67")
    assert as_text("a\\xff.png") == ("a\\xff.png", None)
