"""What strangers call their files and bundles never steers a terminal and never makes a line."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgejudge.cli import main
from edgejudge.printable import brief, printable
from edgejudge.report import plain_table, print_rich_table, row
from edgejudge.verdict import InputFailure, Note, Table, Verdict
from hostile import fixed

NASTY = "a\x1b[2J\x1b]0;owned\x07\r\nsafe.png  safe  99\u202egnp.\u0085\x9b31m\ud800\u2028x"
# Control characters, line breaks of every kind, marks that turn the direction, half characters.
STEERING = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def verdict(path: str, message: str) -> Verdict:
    return Verdict(
        verdict=None,
        path=path,
        sha256=None,
        rules=(),
        notes=(Note("x", message),),
        error=InputFailure("undecodable", message),
        bundle=message,
        bundle_sha256="0" * 64,
        policy=message,
        policy_version="1",
        policy_sha256="0" * 64,
        stages_ms=Table({}),
        placement=Table({}),
        prefix_cache="off",
        reused_tokens=0,
    )


@fixed(300)
@given(st.text())
def test_printed_text_is_one_line_that_steers_nothing(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() and not STEERING.search(shown)
    assert printable(shown) == shown and len(brief(text, 40).splitlines()) <= 1
    assert text.isprintable() is (shown == text)


@fixed(100)
@given(st.text(st.characters(), max_size=60), st.text(st.characters(), max_size=60))
def test_a_row_is_a_line_whatever_is_in_it(path: str, message: str) -> None:
    rows = [row(verdict(path, message)), row(verdict("b.png", "plain"))]
    lines = plain_table(rows).split("\n")
    assert len(lines) == 3 and not any(STEERING.search(line) for line in lines)
    assert all(line.isprintable() for line in lines)


def test_a_terminal_gets_no_escape_but_those_of_the_table() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    print_rich_table([row(verdict(NASTY, f"[bold red]{NASTY}[/] [link=x]y[/link]"))], stream)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert not STEERING.search(shown) and "[link=x]y[/link]" in shown


@pytest.mark.skipif(sys.platform == "win32", reason="no such names there")
def test_the_command_line_prints_names_escaped(tmp_path: Path) -> None:
    """Rows, warnings and errors, on both streams, and no line that begins with what a name says."""
    name = NASTY.replace("\ud800", "").encode() + b"\xff\xfe.png"
    folder = os.path.join(os.fsencode(tmp_path), b"in")
    os.mkdir(folder)
    with open(os.path.join(folder, name), "wb") as stream:
        stream.write(b"no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "z.png")
    bad = os.path.join(folder, b"\x1b[31mbad\nerror: all is well")
    runs = (
        [b"screen", folder],
        [b"screen", folder, b"--json"],
        [b"screen", folder, b"--policy", bad],
        [b"screen", folder, b"--regions", bad],
        [b"ask", os.path.join(folder, name), b"--question", b"x\x1b[2J", b"--labels", b"a", b"b"],
        [b"screen", folder, b"--\x1b[31mflag\nerror: none"],
    )
    for arguments in runs:
        done = subprocess.run(
            [sys.executable, "-m", "edgejudge", *map(os.fsdecode, arguments)],
            env={**os.environ, "EDGEJUDGE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            check=False,
        )
        text = (done.stdout + b"\n" + done.stderr).decode("utf-8", "strict")
        assert not STEERING.search(text), (arguments, text)
        assert b"--json" not in arguments or (
            done.stdout.isascii() and done.stdout.count(b"\n") == 2
        )
        for line in text.splitlines():
            assert not line.startswith(("error: all is well", "error: none", "safe.png")), line


def test_an_error_of_any_length_is_one_short_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("name: a\nversion: 1\n" + "k" * 1000 + "\\x1b: 1\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert main(["screen", str(tmp_path / "a.png"), "--policy", str(file)]) == 2
    assert main(["screen", str(tmp_path / "a.png"), "--policy", "y" * 100_000]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all(e.startswith("error: ") and len(e) < 4200 for e in errors)
