"""Results files by themselves: what they keep, mend, refuse and lock."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bulk_rows import IDENTITY, OTHER, small_row
from edgejudge.bulk import files
from edgejudge.bulk.rows import content_key, to_line
from edgejudge.bulk.store import Found, open_store, read_rows
from edgejudge.errors import EdgeJudgeError, InputError

FORMS = ("jsonl", "parquet", "sqlite")


def refused(file: Path, identity: Any = IDENTITY) -> str:
    """The sentence; the file is as it was, and nothing lies beside it."""
    before = file.read_bytes() if file.is_file() else None
    with pytest.raises(InputError) as caught:
        open_store(file, identity)
    if before is not None:
        assert file.read_bytes() == before
        assert [each.name for each in file.parent.glob(f"{file.name}*")] == [file.name]
    return str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_kept_replaced_and_found(tmp_path: Path, form: str) -> None:
    file = tmp_path / f"rows.{form}"
    raw = os.fsdecode(b"d/\xfe\n.png")
    with open_store(file, IDENTITY) as store:
        store.put(small_row("a.png", "1" * 64))
        store.put(small_row(raw, "2" * 64, "unsafe"))
        store.put(small_row("c.png", "3" * 64, None))
        assert store.find("./a.png") == Found(content_key("1" * 64, None), "safe")
        assert store.find("b.png") is None
        content = content_key("2" * 64, None)
        assert content is not None
        assert (store.same(content) or {})["path"] == "d/\\xfe\n.png"
        failed = content_key("3" * 64, None)
        assert failed is not None and store.same(failed) is None
        assert len(list(read_rows(file))) == 3, "while it is written"
        store.sync()
    with open_store(file, IDENTITY) as store:
        assert store.repairs == []
        assert store.find(raw) == Found(content, "unsafe")
        store.put(small_row("c.png", "4" * 64))
        store.put(small_row("c.png", "5" * 64))
        store.put(small_row("e.png", None, None))
        assert (store.same(content) or {})["verdict"] == "unsafe", "of an earlier run"
    rows = {row["path"]: row for row in read_rows(file)}
    assert rows.keys() == {"a.png", "d/\\xfe\n.png", "c.png", "e.png"}
    assert rows["c.png"]["sha256"] == "5" * 64
    assert rows["d/\\xfe\n.png"] == small_row(raw, "2" * 64, "unsafe")
    assert [each.name for each in tmp_path.iterdir()] == [file.name]


def test_the_columns_of_tables(tmp_path: Path) -> None:
    for form in FORMS[1:]:
        with open_store(tmp_path / f"rows.{form}", IDENTITY) as store:
            store.put(small_row("a.png", "1" * 64, "unsafe"))
            store.put(small_row("b.png", None, None))
    table = pyarrow.parquet.read_table(tmp_path / "rows.parquet")
    one, two = table.to_pylist()
    assert (one["verdict"], one["broken"], one["error"]) == ("unsafe", ["weapons"], None)
    assert (two["verdict"], two["broken"], two["error"]) == (None, [], "truncated")
    assert json.loads(table.schema.metadata[b"edgejudge"]) == IDENTITY.to_json()
    with closing(sqlite3.connect(tmp_path / "rows.sqlite")) as database:
        found = database.execute("SELECT path, verdict, broken, error FROM verdicts").fetchall()
        (kept,) = database.execute("SELECT identity FROM run").fetchone()
    assert found == [("a.png", "unsafe", '["weapons"]', None), ("b.png", None, "[]", "truncated")]
    assert json.loads(kept) == IDENTITY.to_json()


@settings(deadline=None, max_examples=100)
@given(
    names=st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=6, unique=True),
    data=st.data(),
)
def test_any_prefix_of_a_file_has_its_whole_rows(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], data: st.DataObject
) -> None:
    names = [name.replace("\0", "_").replace("/", "_") + str(n) for n, name in enumerate(names)]
    rows = [small_row(name) for name in names if os.fsencode(name)]
    lines = [to_line(row) for row in rows]
    cut = data.draw(st.integers(0, sum(map(len, lines))))
    zeros = data.draw(st.sampled_from((0, 0, 1, 700)))
    file = tmp_path_factory.mktemp("cut") / "rows.jsonl"
    file.write_bytes(b"".join(lines)[:cut] + bytes(zeros))
    ends = [sum(map(len, lines[: n + 1])) for n in range(len(lines))]
    # A row is whole without its line break too, unless what a power cut leaves is behind it.
    whole = sum(end - (0 if zeros else 1) <= cut for end in ends)
    assert [row["path"] for row in read_rows(file)] == [row["path"] for row in rows[:whole]]
    with open_store(file, IDENTITY) as store:
        assert sum(store.find(name) is not None for name in names) == whole
        for row in rows[whole:]:
            store.put(row)
    assert list(read_rows(file)) == rows
    assert len(file.read_bytes().splitlines()) == len(rows)


def test_what_a_power_cut_leaves_in_the_middle(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    one, two = to_line(small_row("a")), to_line(small_row("b"))
    file.write_bytes(one + bytes(64) + two[20:] + two)
    with open_store(file, IDENTITY) as store:
        assert "1 damaged lines" in store.repairs[0]
    assert file.read_bytes() == one + two


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_another_run_are_refused(tmp_path: Path, form: str) -> None:
    file = tmp_path / f"rows.{form}"
    with open_store(file, IDENTITY) as store:
        store.put(small_row("a.png"))
    message = refused(file, OTHER)
    assert f"bundle 'small' ({'b' * 12})" in message and f"bundle 'large' ({'c' * 12})" in message


def test_what_is_no_results_file_is_refused(tmp_path: Path) -> None:
    for line in ('{"path": "a.png", "label": 1}', "[1]", "text", '{"path": "a.png"', '"a'):
        for end in ("", "\n"):
            file = tmp_path / "rows.jsonl"
            file.write_text(line + end)
            if (line, end) == ('{"path": "a.png"', ""):
                continue  # which is how a row of ours begins
            assert "line 1: it is no row of" in refused(file)
    plain = small_row("a.png")
    del plain["settings"]  # as rows had it before, and as `edgejudge calibrate` keeps them
    file.write_bytes(to_line(small_row("b.png")) + to_line(plain))
    assert "line 2: it is no row of" in refused(file)
    table = tmp_path / "rows.parquet"
    table.write_bytes(b"PAR1 and no more")
    assert "rows.parquet cannot be read" in refused(table)
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), table)
    assert "is no Parquet file of `edgejudge screen --out`" in refused(table)
    base = tmp_path / "rows.sqlite"
    base.write_bytes(b"hello")
    assert "is no database of" in refused(base)
    base.unlink()
    with closing(sqlite3.connect(base)) as database:
        database.execute("CREATE TABLE mine (a)")
    assert "is no database of" in refused(base)
    with pytest.raises(InputError, match=r"rows\.txt ends in '\.txt', and a results file in"):
        open_store(tmp_path / "rows.txt", IDENTITY)
    with pytest.raises(InputError, match="there is no such folder"):
        open_store(tmp_path / "none" / "rows.jsonl", IDENTITY)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_not_there_is_told(tmp_path: Path, form: str) -> None:
    with pytest.raises(InputError, match="cannot be read: there is no such file"):
        list(read_rows(tmp_path / f"rows.{form}"))


@pytest.mark.parametrize("log", [False, True])
def test_a_database_killed_while_it_was_made_has_no_rows(tmp_path: Path, log: bool) -> None:
    file = tmp_path / "rows.sqlite"
    with closing(sqlite3.connect(file)) as database:
        if log:  # its head is written, its tables are not
            database.execute("PRAGMA journal_mode = WAL")
    assert list(read_rows(file)) == []
    with open_store(file, IDENTITY) as store:
        store.put(small_row("a.png"))
    assert [row["path"] for row in read_rows(file)] == ["a.png"]


def test_a_damaged_database_is_told(tmp_path: Path) -> None:
    file = tmp_path / "rows.sqlite"
    with open_store(file, IDENTITY) as store:
        for number in range(300):
            store.put(small_row(f"{number}.png"))
    data = bytearray(file.read_bytes())
    data[100:8192] = b"\xaa" * (8192 - 100)
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"rows\.sqlite is damaged: "):
        open_store(file, IDENTITY)


@pytest.mark.parametrize("form", FORMS)
def test_a_second_writer_is_refused(tmp_path: Path, form: str) -> None:
    file = tmp_path / f"rows.{form}"
    script = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from bulk_rows import IDENTITY\nfrom edgejudge.bulk import open_store\n"
        "open_store(sys.argv[1], IDENTITY)"
    )
    Path(f"{file}.lock").touch()  # as a kill leaves it
    link = tmp_path / f"link.{form}"
    link.symlink_to(file)
    with open_store(file, IDENTITY) as store:
        store.put(small_row("a.png"))
        with pytest.raises(InputError, match="another process writes to"):
            open_store(link, IDENTITY)
        if form == "jsonl":
            command = [sys.executable, "-c", script, str(file), str(Path(__file__).parent)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert "another process writes to" in done.stderr
    assert not Path(f"{file}.lock").exists()
    with open_store(link, IDENTITY) as store:
        assert store.find("a.png") is not None
    assert link.is_symlink() and len(list(read_rows(file))) == 1


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import edgejudge.evaluation.extra as extra

    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    with pytest.raises(EdgeJudgeError, match=r"pyarrow; install it with `pip install"):
        open_store(tmp_path / "rows.parquet", IDENTITY)


@pytest.mark.parametrize("form", FORMS)
def test_an_error_leaves_the_rows_before_it(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"rows.{form}"
    with pytest.raises(RuntimeError, match="of the judge"):
        with open_store(file, IDENTITY) as store:
            store.put(small_row("a.png"))
            raise RuntimeError("of the judge")
    assert [row["path"] for row in read_rows(file)] == ["a.png"]
    with pytest.raises(KeyboardInterrupt):
        with open_store(file, IDENTITY) as store:
            store.put(small_row("b.png"))
            raise KeyboardInterrupt
    assert Path(f"{file}.journal").exists() == (form == "parquet"), "it stopped at once"
    with open_store(file, IDENTITY) as store:
        assert store.find("b.png") is not None
    assert [row["path"] for row in read_rows(file)] == ["a.png", "b.png"]

    def full(one: str, other: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    if form != "sqlite":
        with pytest.raises(InputError, match="cannot be written: No space left on device"):
            with open_store(file, IDENTITY) as store:
                store.put(small_row("b.png", "9" * 64))
        monkeypatch.undo()
        assert {row["sha256"] for row in read_rows(file)} == {"0" * 64, "9" * 64}
        open_store(file, IDENTITY).close()
        assert [each.name for each in tmp_path.iterdir()] == [file.name]
