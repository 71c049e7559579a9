"""What `edgejudge watch` does about files: it moves them, or writes blurred copies."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgejudge.bulk.rows import content_key
from edgejudge.errors import InputError
from edgejudge.images import DEFAULT_LIMITS
from edgejudge.watching import Action, read_action
from edgejudge.watching.actions import Actions
from edgejudge.watching.blur import blurred
from edgejudge.watching.quarantine import Quarantine
from edgejudge.watching.unchanged import look_again
from watch_runs import Runs, Watch, kept, picture_of, quick, wait_for
from watch_runs import runs as runs_in

MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with runs_in(tmp_path_factory.mktemp("bundle")) as runs:
        yield runs


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system."""
    if not MEMORY.is_dir() or MEMORY.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one file system only")
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def content(data: bytes) -> bytes | None:
    return content_key(sha256(data), None)


def take(quarantine: Quarantine, path: Path, data: bytes) -> str | None:
    sight = look_again(str(path), content(data), DEFAULT_LIMITS)
    assert sight is not None
    return quarantine.take(str(path), sight, "unsafe")


def test_quarantine_while_watching(runs: Runs, tmp_path: Path) -> None:
    asked = ("--on", "unsafe=quarantine:held", "--on", "failed=quarantine:odd")
    with Watch(runs, tmp_path, *asked, "--on", "uncertain=report") as watch:
        watch.put("a.png", picture_of("unsafe"))
        watch.put("sub/a.png", picture_of("unsafe"))  # the same bytes and the same name
        watch.put("b.png", picture_of("uncertain"))
        watch.put("c.png", picture_of("safe"))
        watch.put("d.txt", b"no picture")
        wanted = {"a.png": "unsafe", "sub/a.png": "unsafe", "b.png": "uncertain", "c.png": "safe"}
        watch.until({**wanted, "d.txt": "not_an_image"})
        wait_for(lambda: sorted(os.listdir(watch.seen)) == ["b.png", "c.png", "sub"])
        wait_for(lambda: os.listdir(watch.seen / "sub") == [])
        watch.put("a.png", picture_of("unsafe"))  # once more the same
        wait_for(lambda: not (watch.seen / "a.png").exists())
        told = watch.stop()
    assert "4 moved to quarantine" in told
    assert "in/d.txt is failed: moved to " in told
    digest = sha256(picture_of("unsafe"))
    came = [str(watch.seen / name) for name in ("a.png", "a.png", "sub/a.png")]
    assert sorted(kept(tmp_path / "held")) == [(path, digest) for path in came]
    assert kept(tmp_path / "odd") == [(str(watch.seen / "d.txt"), sha256(b"no picture"))]
    assert (tmp_path / "held").stat().st_mode & 0o777 == 0o700


def test_a_quarantine_on_another_file_system(runs: Runs, tmp_path: Path, elsewhere: Path) -> None:
    held = elsewhere / "held"
    with Watch(runs, tmp_path, "--on", f"unsafe=quarantine:{held}") as watch:
        data = picture_of("unsafe")
        path = watch.put("a.png", data)
        time_ns = path.stat().st_mtime_ns
        (tmp_path / "target.png").write_bytes(picture_of("unsafe", 1))
        (watch.seen / "link.png").symlink_to(tmp_path / "target.png")
        wait_for(lambda: os.listdir(watch.seen) == [])
    assert sorted(kept(held)) == [
        (str(path), sha256(data)),
        (str(watch.seen / "link.png"), sha256(picture_of("unsafe", 1))),
    ]
    moved = next(held.glob("*-a.png"))
    assert moved.stat().st_mtime_ns == time_ns
    assert (tmp_path / "target.png").exists() and next(held.glob("*-link.png")).is_symlink()


def test_a_quarantine_in_the_tree_is_left_out_or_refused(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(picture_of("unsafe"))
    asked = ("in", "--out", "rows.jsonl", "--once", *quick, "--on", "unsafe=quarantine:in/held")
    told = runs.run(tmp_path, *asked, code=2)
    assert "in/held lies in in, where its files would be judged again" in told
    assert os.listdir(tmp_path / "in") == ["a.png"] and not (tmp_path / "rows.jsonl").exists()
    for kept_before in ("", "1 kept"):
        told = runs.run(tmp_path, *asked, "--except", "in/held", code=0 if kept_before else 1)
    assert len(kept(tmp_path / "in" / "held")) == 1
    told = runs.run(tmp_path, *asked, "--except", ".", code=2)
    assert "nothing of in would be left" in told


def test_what_fails_is_told_and_done_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture_of("unsafe"))
    said: list[str] = []
    action = read_action(f"unsafe=quarantine:{tmp_path / 'held'}")
    assert action is not None
    replace = os.replace

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with Actions([action], DEFAULT_LIMITS, said.append) as actions:
        monkeypatch.setattr(os, "replace", refuse)
        actions.act(str(path), "unsafe", content(path.read_bytes()))
        assert actions.undone == 1 and actions.quarantined == 0
        assert said == [f"warning: {path}: quarantine failed: Permission denied; it is tried again"]
        assert path.exists()
        assert list((tmp_path / "held").glob("*-a.png")) == []
        monkeypatch.setattr(os, "replace", replace)
        actions.again()  # too early
        assert actions.undone == 1
        monkeypatch.setattr("edgejudge.watching.actions._AGAIN_S", -1.0)
        actions._again_s = 0.0
        actions.again()
        assert actions.undone == 0 and actions.quarantined == 1
    assert not path.exists()
    assert [came for came, _ in kept(tmp_path / "held")] == [str(path)]


def test_a_folder_that_could_not_be_read_stays(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    said: list[str] = []
    actions = [Action("failed", "quarantine", str(tmp_path / "held"))]
    with Actions(actions, DEFAULT_LIMITS, said.append) as acts:
        acts.act(str(tmp_path / "sub"), "failed", None)
        assert acts.undone == 1
    assert (tmp_path / "sub").is_dir() and "it is a folder, which stays" in said[0]


def test_an_action_that_fails_is_no_success(runs: Runs, tmp_path: Path) -> None:
    """The folder for blurred copies is gone when it is needed."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(picture_of("uncertain"))
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "x").touch()
    name = f"{sha256(picture_of('uncertain'))[:12]}-a.png.blurred.png.part"
    (tmp_path / "shown" / name).mkdir()
    asked = ("in", "--out", "rows.jsonl", "--once", *quick, "--on", "uncertain=blur:shown")
    told = runs.run(tmp_path, *asked, code=3)
    assert "in/a.png: blur failed: " in told and "1 not moved or blurred" in told
    (tmp_path / "shown" / name).rmdir()
    assert "1 blurred" in runs.run(tmp_path, *asked, code=3)


def test_a_file_that_is_another_one_by_now_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    quarantine = Quarantine(str(tmp_path / "held"))
    sight = look_again(str(path), content(b"one"), DEFAULT_LIMITS)
    assert sight is not None
    path.write_bytes(b"another")
    assert quarantine.take(str(path), sight, "unsafe") is None
    path.unlink()
    assert quarantine.take(str(path), sight, "unsafe") is None
    assert look_again(str(path), content(b"one"), DEFAULT_LIMITS) is None
    quarantine.close()
    assert kept(tmp_path / "held") == []


def test_a_file_that_comes_at_the_last_moment_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    replace = os.replace
    quarantine = Quarantine(str(tmp_path / "held"))

    def swapped(source: str, target: str) -> None:
        monkeypatch.setattr(os, "replace", replace)
        (tmp_path / "new").write_bytes(b"a new file")
        replace(tmp_path / "new", source)
        replace(source, target)

    path.write_bytes(b"judged")
    monkeypatch.setattr(os, "replace", swapped)
    assert take(quarantine, path, b"judged") is None
    assert path.read_bytes() == b"a new file"
    quarantine.close()
    assert kept(tmp_path / "held") == []


def test_a_file_that_is_written_to_while_it_is_copied_stays(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"judged")
    quarantine = Quarantine(str(elsewhere / "held"))
    replace = os.replace

    def appended(source: str, target: str) -> None:
        replace(source, target)
        with open(path, "ab") as stream:
            stream.write(b" and more")

    monkeypatch.setattr(os, "replace", appended)
    assert take(quarantine, path, b"judged") is None
    monkeypatch.setattr(os, "replace", replace)
    assert path.read_bytes() == b"judged and more"
    with open(path, "ab"):  # its writer is not through with it
        assert take(quarantine, path, b"judged and more") is None
    assert take(quarantine, path, b"judged and more") is not None
    quarantine.close()
    assert not path.exists()
    assert kept(elsewhere / "held") == [(str(path), sha256(b"judged and more"))]


def test_a_disk_that_is_full_when_a_move_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has moved; the next move notes that first."""
    (tmp_path / "a.png").write_bytes(b"one")
    (tmp_path / "b.png").write_bytes(b"two")
    quarantine = Quarantine(str(tmp_path / "held"))
    write = os.write

    def full(handle: int, data: bytes) -> int:
        if b'"moved"' in bytes(data):
            raise OSError(28, "No space left on device")
        return write(handle, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        take(quarantine, tmp_path / "a.png", b"one")
    monkeypatch.setattr(os, "write", write)
    assert take(quarantine, tmp_path / "b.png", b"two") is not None
    quarantine.close()
    came = [(str(tmp_path / "a.png"), sha256(b"one")), (str(tmp_path / "b.png"), sha256(b"two"))]
    assert sorted(kept(tmp_path / "held")) == came


def test_names_in_a_quarantine(tmp_path: Path) -> None:
    quarantine = Quarantine(str(tmp_path / "held"))
    hostile = [b"a\xff.png", b"\x1b[2J.png", b"x" * 240 + b".png", "ä\u202egnp.exe".encode()]
    for name in hostile:
        path = os.path.join(os.fsencode(tmp_path), name)
        with open(path, "wb") as stream:
            stream.write(b"same")
        target = take(quarantine, Path(os.fsdecode(path)), b"same")
        assert target is not None and target.isprintable() and target.isascii() is (name[0] < 128)
    blocked = tmp_path / "b.png"
    blocked.write_bytes(b"same")
    first = tmp_path / "held" / f"{sha256(b'same')[:12]}-b.png"
    first.write_bytes(b"somebody's")
    target = take(quarantine, blocked, b"same")
    assert target == str(first).replace("-b.png", "-2-b.png")
    assert first.read_bytes() == b"somebody's"
    quarantine.close()
    lines = (tmp_path / "held" / "quarantine.jsonl").read_text().splitlines()
    came = [json.loads(line) for line in lines if '"moving"' in line]
    assert [bytes.fromhex(line["path_hex"]) for line in came if line["path_hex"]] == [
        os.fsencode(tmp_path) + b"/a\xff.png"
    ]


def test_a_blurred_copy_shows_colours_alone() -> None:
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 256, (300, 200, 3), dtype=np.uint8)
    pixels[:150, :, 0] = 255
    exif = Image.Exif()
    exif[0x010E] = "secret"
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", exif=exif, pnginfo=None)
    data = blurred(stream.getvalue(), DEFAULT_LIMITS)
    assert b"secret" in stream.getvalue() and b"secret" not in data
    copy = Image.open(BytesIO(data))
    assert copy.size == (200, 300) and not copy.getexif()
    # 12 x 8 numbers and no more: drawn again from as many it is the same.
    small = copy.resize((8, 12), Image.Resampling.BOX)
    again = np.asarray(small.resize((200, 300), Image.Resampling.BICUBIC), float)
    assert np.abs(again - np.asarray(copy, float)).mean() < 3
    assert np.asarray(copy)[20, 100, 0] > 240 > np.asarray(copy)[280, 100, 0]
    assert np.asarray(copy, float).std(axis=(0, 1))[1] < 10 < pixels.std(axis=(0, 1))[1]
    stream = BytesIO()
    Image.fromarray(pixels[:16, :16]).save(stream, "PNG")
    tiny = np.asarray(Image.open(BytesIO(blurred(stream.getvalue(), DEFAULT_LIMITS))))
    assert tiny.shape == (16, 16, 3)
    assert len(np.unique(tiny.reshape(-1, 3), axis=0)) < 16 * 16


def test_a_blurred_copy_beside_a_quarantine(runs: Runs, tmp_path: Path) -> None:
    asked = ("--on", "unsafe=quarantine:held", "--on", "unsafe=blur:shown")
    with Watch(runs, tmp_path, *asked, "--on", "uncertain=blur:shown") as watch:
        watch.put("a.png", picture_of("unsafe"))
        watch.put("b.png", picture_of("uncertain"))
        wait_for(lambda: os.listdir(watch.seen) == ["b.png"])
        wait_for(lambda: len(list((tmp_path / "shown").glob("*.blurred.png"))) == 2)
        told = watch.stop()
    assert "1 moved to quarantine; 2 blurred" in told
    assert len(kept(tmp_path / "held")) == 1
    assert (watch.seen / "b.png").read_bytes() == picture_of("uncertain")
    red, green, _ = np.asarray(Image.open(next((tmp_path / "shown").glob("*-a.png*"))))[0, 0]
    assert red > 200 > 50 > green
    with Watch(runs, tmp_path, *asked, "--on", "uncertain=blur:shown") as watch:
        wait_for(lambda: "watching" in (tmp_path / "stderr").read_text())
        watch.put("c.png", picture_of("safe"))
        wait_for(lambda: len(watch.rows()) == 3)
        assert "blurred" not in watch.stop()


def test_actions_on_the_command_line() -> None:
    assert read_action("unsafe=report") is None
    assert read_action("unsafe=quarantine:a:b,c=d") == Action("unsafe", "quarantine", "a:b,c=d")
    assert read_action("uncertain=blur:x") == Action("uncertain", "blur", "x")
    for text in ("safe=report", "unsafe", "unsafe=", "unsafe=quarantine", "unsafe=blur:", "x=y:z"):
        with pytest.raises(InputError, match="is no OUTCOME=ACTION"):
            read_action(text)
    with pytest.raises(InputError, match="cannot be blurred"):
        read_action("failed=blur:x")


def test_bad_folders_are_refused_before_anything_is_done(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "file").touch()
    asked = ("in", "--out", "rows.jsonl", "--once", *quick)
    told = runs.run(tmp_path, *asked, "--on", "unsafe=quarantine:no/held", code=2)
    assert "there is no folder for it" in told
    told = runs.run(tmp_path, *asked, "--on", "unsafe=quarantine:file", code=2)
    assert "file is no folder" in told
    told = runs.run(tmp_path, *asked, "--on", "unsafe=blur:file", code=2)
    assert "file is no folder" in told
    twice = ("--on", "unsafe=quarantine:a", "--on", "unsafe=quarantine:b")
    assert "a file can be moved once" in runs.run(tmp_path, *asked, *twice, code=2)
    assert "file is not in in" in runs.run(tmp_path, *asked, "--except", "file", code=2)
    assert sorted(os.listdir(tmp_path)) == ["file", "in", "stderr", "stdout"]
    assert "'x' is no OUTCOME=ACTION" in runs.run(tmp_path, *asked, "--on", "x", code=2)
