"""`edgejudge screen` as a process: rows, tables, exit codes. The engine judges by colour."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgejudge.commands.screen import exit_code
from edgejudge.policy import load_policy
from fake_judge import FakeEngine, compiled, fake_judge, manifest

# The whole command line, with the one line replaced that would open graphs.
SCRIPT = """if True:
    import os, sys, time
    sys.path.insert(0, os.environ["FAKE_TESTS"])
    import edgejudge.judge
    from edgejudge.bundle import Bundle
    from fake_judge import ColourEngine
    class SlowEngine(ColourEngine):
        def prefill(self, ids, visual=None, *more):
            if visual is None:
                return super().prefill(ids)
            time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
            SlowEngine.left = getattr(self, "left", int(os.environ.get("FAKE_PICTURES", "999"))) - 1
            if self.left < 0:
                raise RuntimeError("the engine broke")
            return super().prefill(ids, visual, *more)
    def load(cls, path=None, fingerprint=None, *, verify=False, **_):
        bundle = Bundle.open(path or os.environ["FAKE_BUNDLE"], fingerprint, verify)
        return cls(bundle, SlowEngine())
    edgejudge.judge.Judge.load = classmethod(load)
    from edgejudge.cli import main
    sys.exit(main())
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    policy = compiled(load_policy("stickers").record())
    fake_judge(folder, manifest((policy,)), FakeEngine())
    return folder


@pytest.fixture
def env(bundle: Path) -> dict[str, str]:
    extra = {"FAKE_BUNDLE": str(bundle), "FAKE_TESTS": str(Path(__file__).parent)}
    return {**os.environ, **extra}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for name, colour in {
        "b_unsafe.png": (250, 10, 10),
        "a_safe.dat": (10, 250, 40),
        "more/c_grey.png": (128, 128, 128),
    }.items():
        Image.new("RGB", (8, 8), colour).save(folder / name, "PNG")
    (folder / "more" / "d_broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


@pytest.fixture
def screen(env: dict[str, str], tmp_path: Path) -> Any:
    def run(*arguments: object, code: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", SCRIPT, "screen", *map(str, arguments)]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stderr + done.stdout
        assert "Traceback" not in done.stderr
        return done

    return run


def copies(picture: Path, folder: Path, count: int) -> Path:
    """A folder of pictures that look like one and have bytes of their own."""
    folder.mkdir()
    for number in range(count):
        # What follows the end of a PNG is read by nobody.
        (folder / f"{number:03}.png").write_bytes(picture.read_bytes() + str(number).encode())
    return folder


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_rows_in_sorted_order(screen: Any, pictures: Path) -> None:
    done = screen("pictures", "--json", code=1)
    found = rows(done.stdout)
    assert [row["path"] for row in found] == [
        "pictures/a_safe.dat",
        "pictures/b_unsafe.png",
        "pictures/more/c_grey.png",
        "pictures/more/d_broken.png",
    ]
    assert [row["verdict"] for row in found] == ["safe", "unsafe", "uncertain", None]
    assert found[3]["error"]["code"] == "undecodable"
    assert found[3]["rules"] == [] and len(found[3]["sha256"]) == 64
    assert "4 of 4 judged" in done.stderr
    assert "1 unsafe, 1 uncertain, 1 safe, 1 failed" in done.stderr


def test_exit_codes(screen: Any, pictures: Path) -> None:
    safe, unsafe = pictures / "a_safe.dat", pictures / "b_unsafe.png"
    grey, broken = pictures / "more/c_grey.png", pictures / "more/d_broken.png"
    screen(safe, code=0)
    screen(safe, unsafe, code=1)
    screen(unsafe, broken, grey, code=1)
    screen(safe, grey, code=3)
    screen(safe, broken, code=3)
    missing = screen("nothing.png", "--json", code=3)
    (row,) = rows(missing.stdout)
    assert (row["path"], row["sha256"], row["verdict"]) == ("nothing.png", None, None)
    assert row["error"]["code"] == "missing"


def test_the_table(screen: Any, pictures: Path) -> None:
    done = screen(pictures, code=1)
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["path", "verdict", "why", "ms"]
    assert "unsafe" in lines[1] and "weapons 0.95 (a gun)" in lines[1]
    assert "failed" in lines[3]


def test_what_stops_a_run(screen: Any, pictures: Path, tmp_path: Path) -> None:
    def error(*arguments: object) -> str:
        done = screen(*arguments, code=2)
        assert done.stdout == ""
        last = str(done.stderr).splitlines()[-1]
        assert last.startswith("error: ")
        return last

    assert "required: PATH" in error()
    assert "--wrong" in error("--wrong", pictures)
    assert "expected a whole number of at least 1, got 'two'" in error("--threads", "two", pictures)
    assert "'nope' not found" in error(pictures, "--policy", "nope")
    (tmp_path / "p.yaml").write_text("name: p\nversion: 1\nrules:\n - id: x\n")
    assert "p.yaml, line 4: rules[0].text: missing" in error(pictures, "--policy", "p.yaml")
    assert "is not a bundle" in error(pictures, "--bundle", tmp_path)
    assert "fingerprint" in error(pictures, "--fingerprint", "0" * 64)
    (tmp_path / "empty").mkdir()
    assert "no files in" in error("empty")
    assert "cannot be written" in error(pictures, "--out", tmp_path / "no" / "out.jsonl")


def test_rows_of_a_file_are_gone_on_with(screen: Any, pictures: Path, tmp_path: Path) -> None:
    done = screen(pictures, "--json", "--out", "out.jsonl", code=1)
    written = (tmp_path / "out.jsonl").read_bytes()
    for row, shown in zip(rows(written.decode()), rows(done.stdout), strict=True):
        assert {key: row[key] for key in shown} == shown
        assert row["path_hex"] is row["regions"] is row["shared_with"] is None
        assert row["settings"] == {}
    again = screen(pictures, "--json", "--out", "out.jsonl", code=1)
    assert again.stdout == "" and (tmp_path / "out.jsonl").read_bytes() == written
    assert "4 of 4 judged" in again.stderr and "4 kept from out.jsonl" in again.stderr
    assert "1 unsafe, 1 uncertain, 1 safe, 1 failed" in again.stderr
    (tmp_path / "empty.jsonl").touch()
    screen(pictures, "--out", "empty.jsonl", code=1)
    assert len(rows((tmp_path / "empty.jsonl").read_text())) == 4


def test_results_files_that_are_refused(screen: Any, pictures: Path, tmp_path: Path) -> None:
    def error(*arguments: object) -> str:
        done = screen(pictures, *arguments, code=2)
        assert done.stdout == ""
        return str(done.stderr).splitlines()[-1]

    assert "rows.csv ends in '.csv'" in error("--out", "rows.csv")
    assert "--retry-failed is about rows of a results file" in error("--retry-failed")
    (tmp_path / "other.jsonl").write_text('{"path": "a.png", "label": 1}\n')
    assert "other.jsonl, line 1: it is no row of" in error("--out", "other.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert "folder.jsonl cannot be written: it is no regular file" in error("--out", "folder.jsonl")
    screen(pictures, "--out", "out.jsonl", code=1)
    before = (tmp_path / "out.jsonl").read_bytes()
    found = error("--out", "out.jsonl", "--strictness", "gore=allowed")
    assert "has verdicts of policy 'stickers' (" in found and ", and this run is of policy" in found
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_an_engine_that_breaks_keeps_the_rows_so_far(
    screen: Any, pictures: Path, env: dict[str, str]
) -> None:
    env["FAKE_PICTURES"] = "2"
    done = screen(pictures, "--json", code=1)
    assert [row["verdict"] for row in rows(done.stdout)] == ["safe", "unsafe"]
    assert "stopped, 2 of 4 judged" in done.stderr
    assert done.stderr.endswith("error: the engine broke\n")
    env["FAKE_PICTURES"] = "1"
    screen(pictures, "--json", code=3)
    env["FAKE_PICTURES"] = "0"
    assert screen(pictures, "--json", code=2).stdout == ""


def test_a_policy_file(screen: Any, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nversion: 2\nrules:\n"
        "  - {id: arms, text: t, category: c, conditions: [a gun], threshold: 0.99}\n"
    )
    (row,) = rows(
        screen(pictures / "b_unsafe.png", "--json", "--policy", "mine.yaml", code=3).stdout
    )
    assert row["policy"]["name"] == "mine" and row["rules"][0]["threshold"] == 0.99


def test_names_that_could_steer_a_terminal(screen: Any, pictures: Path) -> None:
    odd = pictures / "more" / "[red]\x1b[31m\n.png"
    (pictures / "a_safe.dat").rename(odd)
    done = screen(odd, code=0)
    assert "\x1b" not in done.stdout and len(done.stdout.splitlines()) == 2
    (row,) = rows(screen(odd, "--json", code=0).stdout)
    assert row["path"] == str(odd)


def test_names_that_are_no_text(screen: Any, pictures: Path) -> None:
    raw = os.fsencode(pictures) + b"/\xff.png"
    os.rename(pictures / "a_safe.dat", raw)
    (row,) = rows(screen(os.fsdecode(raw), "--json", code=0).stdout)
    assert os.fsencode(row["path"]) == raw
    screen(os.fsdecode(raw), code=0)


def test_a_terminal_gets_a_table_and_progress(
    env: dict[str, str], pictures: Path, tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", SCRIPT, "screen", str(pictures)]
    env = {**env, "TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen(command, env=env, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # how Linux says that the other side has closed
            break
        if not piece:
            break
        shown += piece
    assert process.wait() == 1
    text = shown.decode()
    assert "4/4" in text and "unsafe" in text and "weapons 0.95" in text


def test_ctrl_c_keeps_what_was_judged(env: dict[str, str], pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    many = str(copies(pictures / "a_safe.dat", tmp_path / "many", 200))
    command = [sys.executable, "-c", SCRIPT, "screen", many, "--json", "--out", str(out)]
    process = subprocess.Popen(
        command,
        env={**env, "FAKE_SECONDS": "0.05"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and (not out.exists() or out.read_text().count("\n") < 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr and "stopped by Ctrl-C" in stderr
    assert stderr.count("stopping after the picture in hand") == 1
    done, shown = rows(out.read_text()), rows(stdout)
    assert 3 <= len(done) < 200
    assert [row["path"] for row in shown] == [row["path"] for row in done]
    assert f"{len(done)} of 200 judged" in stderr


def test_a_reader_that_leaves_ends_the_run_quietly(
    env: dict[str, str], pictures: Path, tmp_path: Path
) -> None:
    many = str(copies(pictures / "a_safe.dat", tmp_path / "many", 300))
    command = [sys.executable, "-c", SCRIPT, "screen", many, "--json"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141 and stderr == b""
    process = subprocess.Popen(
        command[:-1], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()  # the table comes at the end, to nobody
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141


def test_the_exit_code_of_outcomes() -> None:
    assert exit_code({"safe"}) == 0
    assert exit_code({"safe", "unsafe", "failed"}) == 1
    assert exit_code({"safe", "uncertain"}) == exit_code({"failed"}) == 3
