"""`edgejudge watch`: files that come slowly, move, come by the hundred, vanish, or are links."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgejudge.bulk.lock import Lock
from edgejudge.watching.tree import Tree
from edgejudge.watching.writers import being_written
from watch_runs import Runs, Watch, picture_of, quick, wait_for
from watch_runs import runs as runs_in

LEASES = os.uname().sysname == "Linux"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with runs_in(tmp_path_factory.mktemp("bundle")) as runs:
        yield runs


def test_what_is_there_and_what_comes(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "first.png").write_bytes(picture_of("safe"))
    with Watch(runs, tmp_path) as watch:
        watch.until({"first.png": "safe"})
        watch.put("second.png", picture_of("unsafe"))
        watch.put("new/deep/third.png", picture_of("uncertain"))
        (watch.seen / "empty").mkdir()
        wanted = {"first.png": "safe", "second.png": "unsafe", "new/deep/third.png": "uncertain"}
        watch.until(wanted)
        watch.put("first.png", picture_of("unsafe", 1))  # another picture under an old name
        watch.until({**wanted, "first.png": "unsafe"})
        told = watch.stop()
    assert "4 judged" in told and "1 judged again because the file changed" in told
    lines = [line.split()[:2] for line in (tmp_path / "stdout").read_text().splitlines()]
    assert lines[0] == ["safe", "in/first.png"] and lines[3] == ["unsafe", "in/first.png"]
    assert sorted(lines[1:3]) == [
        ["uncertain", "in/new/deep/third.png"],
        ["unsafe", "in/second.png"],
    ]


def test_a_file_that_is_written_slowly_is_waited_for(runs: Runs, tmp_path: Path) -> None:
    """Pieces come faster than --settle, and at last the picture is whole."""
    data = picture_of("unsafe", 399)
    with Watch(runs, tmp_path, "--settle", "0.4") as watch:
        path = watch.seen / "slow.png"
        for end in range(0, len(data), len(data) // 12):
            with open(path, "ab") as stream:  # closed between pieces, so that only rest tells
                stream.write(data[end : end + len(data) // 12])
            time.sleep(0.05)
            assert watch.rows() == {}
        watch.until({"slow.png": "unsafe"})
        assert "0 failed" in watch.stop()
    assert len((tmp_path / "stdout").read_text().splitlines()) == 1


@pytest.mark.skipif(not LEASES, reason="only Linux says who has a file open")
def test_an_open_file_is_waited_for(runs: Runs, tmp_path: Path) -> None:
    """Its writer pauses for longer than --settle."""
    data = picture_of("unsafe")
    with Watch(runs, tmp_path) as watch:
        with open(watch.seen / "open.png", "wb") as stream:
            stream.write(data[:40])
            stream.flush()
            assert being_written(stream.name)
            watch.put("other.png", picture_of("safe"))
            watch.until({"other.png": "safe"})
            time.sleep(0.3)
            assert watch.rows() == {"other.png": "safe"}
            stream.write(data[40:])
        assert not being_written(stream.name)
        watch.until({"other.png": "safe", "open.png": "unsafe"})


def test_a_temporary_name_becomes_no_row(runs: Runs, tmp_path: Path) -> None:
    data = picture_of("unsafe", 399)
    with Watch(runs, tmp_path, "--settle", "0.3") as watch:
        part = watch.seen / "download.part"
        part.write_bytes(data[:100])
        time.sleep(0.1)
        with open(part, "ab") as stream:
            stream.write(data[100:])
        part.rename(watch.seen / "download.png")
        watch.until({"download.png": "unsafe"})


def test_a_file_that_moves_takes_its_verdict_along(runs: Runs, tmp_path: Path) -> None:
    with Watch(runs, tmp_path) as watch:
        path = watch.put("a.png", picture_of("unsafe"))
        watch.until({"a.png": "unsafe"})
        (watch.seen / "sub").mkdir()
        path.rename(watch.seen / "sub" / "b.png")
        watch.until({"a.png": "unsafe", "sub/b.png": "unsafe"})  # the old row is history
        (watch.seen / "sub" / "b.png").unlink()
        watch.put("c.png", picture_of("safe"))
        watch.until({"a.png": "unsafe", "sub/b.png": "unsafe", "c.png": "safe"})
        assert "1 decided by equal bytes" in watch.stop()


def test_a_burst(runs: Runs, tmp_path: Path) -> None:
    words = ("unsafe", "uncertain", "safe")
    wanted = {f"{number % 7}/{number}.png": words[number % 3] for number in range(300)}
    with Watch(runs, tmp_path) as watch:
        for number, (name, word) in enumerate(wanted.items()):
            watch.put(name, picture_of(word, number))
        wait_for(lambda: (tmp_path / "stdout").read_bytes().count(b"\n") == 300)
        assert watch.rows() == wanted
        assert "300 judged" in watch.stop()
    assert len((tmp_path / "stdout").read_text().splitlines()) == 300


def test_files_that_vanish_are_a_note(runs: Runs, tmp_path: Path) -> None:
    """They are due when the first one is judged, and gone when it is their turn."""
    (tmp_path / "in").mkdir()
    for number in range(5):
        (tmp_path / "in" / f"{number}.png").write_bytes(picture_of("safe", number))
    with Watch(runs, tmp_path, picture_s=0.4) as watch:
        watch.until({"0.png": "safe"})  # the next one has been read by now
        for number in (3, 4):
            (watch.seen / f"{number}.png").unlink()
        watch.until({f"{number}.png": "safe" for number in range(3)})
        told = watch.stop()
    assert "0 failed" in told


def test_gone_between_the_look_and_the_judging(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that the tree gives and nobody finds: no row, and a count of it."""
    from bulk_runs import make_bundle
    from edgejudge.bundle import Bundle
    from edgejudge.judge import Judge
    from edgejudge.watching import watch_folder
    from fake_judge import ColourEngine

    make_bundle(tmp_path)
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_bytes(picture_of("safe"))
    due = Tree.due

    def and_then_gone(tree: Tree) -> Iterator[str]:
        for path in due(tree):
            if path.endswith("a.png"):
                os.unlink(path)
            yield path

    monkeypatch.setattr(Tree, "due", and_then_gone)
    judge = Judge(Bundle.open(tmp_path), ColourEngine())
    out = tmp_path / "rows.jsonl"
    found = watch_folder(judge, tmp_path / "in", out=out, settle_s=0.01, once=True)
    assert (found.vanished, found.screened.judged, found.screened.outcomes["failed"]) == (1, 1, 0)
    assert len(out.read_text().splitlines()) == 1


def test_links_and_loops(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "target.png").write_bytes(picture_of("unsafe"))
    with Watch(runs, tmp_path) as watch:
        (watch.seen / "loop").symlink_to(watch.seen)
        (watch.seen / "self").symlink_to("self")
        (watch.seen / "folder").symlink_to(tmp_path / "elsewhere")
        (watch.seen / "file.png").symlink_to(tmp_path / "elsewhere" / "target.png")
        (watch.seen / "nowhere").symlink_to("later.png")
        os.mkfifo(watch.seen / "pipe")
        wanted = {"file.png": "unsafe", "nowhere": "missing", "self": "missing"}
        watch.until(wanted)
        watch.put("later.png", picture_of("safe"))  # now the link leads somewhere
        watch.until({**wanted, "nowhere": "safe", "later.png": "safe"})


def test_a_file_that_cannot_be_judged_is_never_safe(runs: Runs, tmp_path: Path) -> None:
    with Watch(runs, tmp_path) as watch:
        watch.put("text.png", b"no picture")
        watch.put("empty.png", b"")
        watch.until({"text.png": "not_an_image", "empty.png": "empty"})
        watch.put("text.png", picture_of("safe"))
        watch.until({"text.png": "safe", "empty.png": "empty"})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_finishes_the_picture_in_hand(
    runs: Runs, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "in").mkdir()
    for place in range(20):
        (tmp_path / "in" / f"{place:02}.png").write_bytes(picture_of("unsafe", place))
    with Watch(runs, tmp_path, picture_s=0.05) as watch:
        wait_for(lambda: len(watch.rows()) > 1)
        told = watch.stop(number)
        there = len(watch.rows())
        assert f"stopped, {there} judged" in told and 1 < there < 20
        assert f"{20 - there} not judged yet" in told
    with Watch(runs, tmp_path) as watch:
        watch.until({f"{place:02}.png": "unsafe" for place in range(20)})
        assert f"{there} kept from rows.jsonl" in watch.stop()


def test_once(runs: Runs, tmp_path: Path) -> None:
    asked = ("in", "--out", "in/rows.sqlite", "--once", *quick)
    told = runs.run(tmp_path, *asked, code=2)
    assert told == "error: in is no folder; give one to watch\n"
    (tmp_path / "in").mkdir()
    assert "0 judged" in runs.run(tmp_path, *asked, code=0)
    (tmp_path / "in" / "a.png").write_bytes(picture_of("safe"))
    assert "1 judged" in runs.run(tmp_path, *asked, code=0)
    (tmp_path / "in" / "b.png").write_bytes(picture_of("uncertain"))
    runs.run(tmp_path, *asked, code=3)
    (tmp_path / "in" / "c.png").write_bytes(picture_of("unsafe"))
    told = runs.run(tmp_path, *asked, code=1)
    assert "3 judged" in told and "2 kept from in/rows.sqlite" in told
    # The results file and what lies beside it are no pictures, and `screen` goes on with them.
    assert sorted(os.listdir(tmp_path / "in")) == ["a.png", "b.png", "c.png", "rows.sqlite"]


@pytest.mark.skipif(not LEASES, reason="only Linux says who has a file open")
def test_once_tells_what_it_left(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(picture_of("safe"))
    with open(tmp_path / "in" / "b.png", "wb"):
        told = runs.run(tmp_path, "in", "--out", "rows.jsonl", "--once", *quick, code=3)
    assert "1 judged" in told and "1 not judged yet" in told


def test_a_second_watcher_is_refused(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    lock = Lock(str(tmp_path / "rows.jsonl"))
    told = runs.run(tmp_path, "in", "--out", "rows.jsonl", code=2)
    assert "another process writes to" in told.splitlines()[-1]
    lock.release()
    (tmp_path / "held").mkdir()
    lock = Lock(str(tmp_path / "held" / "quarantine.jsonl"))
    asked = ("in", "--out", "rows.jsonl", "--on", "unsafe=quarantine:held")
    told = runs.run(tmp_path, *asked, code=2)
    assert "another watcher moves files into held" in told
    lock.release()


def test_a_folder_that_goes_and_comes_back(runs: Runs, tmp_path: Path) -> None:
    with Watch(runs, tmp_path) as watch:
        watch.put("a.png", picture_of("safe"))
        watch.until({"a.png": "safe"})
        watch.seen.rename(tmp_path / "away")
        wait_for(lambda: "waiting for it" in (tmp_path / "stderr").read_text())
        (tmp_path / "away").rename(watch.seen)
        watch.put("b.png", picture_of("unsafe"))
        watch.until({"a.png": "safe", "b.png": "unsafe"})
        told = watch.stop()
    assert told.count("in is gone") == told.count("in is there again") == 1


def test_folders_that_are_left_out(runs: Runs, tmp_path: Path) -> None:
    with Watch(runs, tmp_path, "--except", "in/thumbs") as watch:
        watch.put("thumbs/a.png", picture_of("unsafe"))
        watch.put("thumbs2/b.png", picture_of("safe"))
        watch.until({"thumbs2/b.png": "safe"})


def test_looks_at_a_tree(tmp_path: Path) -> None:
    """What is known of files is in a temporary database, and forgotten when they go."""
    files = [tmp_path / f"{number:03}" for number in range(500)]
    for file in files:
        file.touch()
    tree = Tree(str(tmp_path), settle_s=0.0)
    assert list(tree.due()) == []  # it takes two looks
    assert tree.waiting == 500
    assert list(tree.due()) == list(map(str, files))
    assert list(tree.due()) == []
    files[7].write_bytes(b"more")
    for file in files[10:]:
        file.unlink()
    assert list(tree.due()) == []
    assert tree.waiting == 1
    assert list(tree.due()) == [str(files[7])]
