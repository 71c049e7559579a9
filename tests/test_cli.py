"""The command line as such: usage, versions, and how errors reach the user."""

import argparse
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import edgejudge
from edgejudge import cli
from edgejudge.commands import screen as cli_screen
from edgejudge.errors import BundleError


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgejudge", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_version_and_help() -> None:
    assert run("--version").stdout == f"edgejudge {edgejudge.__version__}\n"
    shown = run("--help")
    assert shown.returncode == 0
    for command in ("screen", "export", "profile"):
        assert command in shown.stdout
        assert "--debug" in run(command, "--help").stdout


def test_every_subcommand_is_listed_with_its_module() -> None:
    """Since only the module of the one that is named is imported."""
    for module, names in cli._COMMANDS.items():
        subparsers = argparse.ArgumentParser().add_subparsers()
        import_module(f"edgejudge.commands.{module}").add_parser(subparsers)
        assert tuple(subparsers.choices) == names
    folder = Path(cli.__file__).parent / "commands"
    commands = {file.stem for file in folder.glob("*.py") if "def add_parser" in file.read_text()}
    assert commands == set(cli._COMMANDS)


def test_a_subcommand_that_is_named_is_imported_alone() -> None:
    script = (
        "import sys; from edgejudge.cli import main\n"
        "try: main(['devices', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.modules if name.startswith('edgejudge.commands.')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "['edgejudge.commands.devices']"


@pytest.mark.parametrize("arguments", [(), ("nothing",), ("screen",), ("screen", "x", "--nope")])
def test_wrong_usage_is_exit_2_and_one_line_of_error(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("raised", "shown"),
    [
        (BundleError("x is damaged; copy it again"), "error: x is damaged; copy it again\n"),
        (OSError(28, "No space left on device"), "error: OSError: [Errno 28] No space left"),
        (KeyError("gone"), "error: KeyError: 'gone'; --debug shows where\n"),
    ],
)
def test_errors_show_no_traceback_unless_asked(
    raised: Exception,
    shown: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def fail(args: object) -> int:
        raise raised

    monkeypatch.setattr(cli_screen, "run", fail)
    assert cli.main(["screen", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(shown)
    with pytest.raises(type(raised)):
        cli.main(["screen", str(tmp_path), "--debug"])


def test_ctrl_c_before_the_first_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_screen, "run", interrupt)
    assert cli.main(["screen", "x"]) == 130
    assert capsys.readouterr().err == "error: stopped by Ctrl-C\n"
