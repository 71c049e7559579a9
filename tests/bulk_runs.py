"""Runs of the real command in processes that are begun at once and can be killed for real.

`Runs` is one process that has imported everything; each run is a fork of it. A run judges by
colour, and may be told to be slow where a kill should land: it then writes in pieces, and waits
around every step that makes a file whole.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from edgejudge.bulk import read_rows
from edgejudge.bulk.rows import path_of
from edgejudge.policy import load_policy
from fake_judge import FakeEngine, compiled, fake_judge, manifest

Command = Callable[[list[str], Mapping[str, float]], int]  # arguments and how -> exit code
_ENDLESS_S = 120
# What two runs that decide the same may say differently.
_PASSING = (
    "stages_ms",
    "placement",
    "prefix_cache",
    "reused_tokens",
    "image_prefixes",
    "shared_with",
)


class Runs:
    def __init__(self, bundle: Path, script: str = __file__) -> None:
        """`script` calls `serve`."""
        command = [sys.executable, script, str(bundle)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._answer() == "ready"

    def close(self) -> None:
        self._process.communicate(timeout=_ENDLESS_S)

    def begin(self, folder: Path, *arguments: object, **how: float) -> int:
        """The process of `screen` in a folder; its output goes to the files stdout and stderr."""
        for name in ("stdout", "stderr"):  # an early kill leaves no time to
            (folder / name).write_bytes(b"")
        wanted = {"folder": str(folder), "arguments": list(map(str, arguments)), "how": how}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        return int(self._answer())

    def end(self) -> int:
        """The exit code of the run that was begun last; below 0 it is a signal's."""
        return int(self._answer())

    def run(self, folder: Path, *arguments: object, code: int, **how: float) -> str:
        """What it says to stderr."""
        self.begin(folder, *arguments, **how)
        found = self.end()
        text = (folder / "stderr").read_text()
        assert found == code, text
        assert "Traceback" not in text
        return text

    def killed(self, folder: Path, after_s: float, *arguments: object, **how: float) -> bool:
        """Whether a kill after so many seconds came before its end."""
        self.begin(folder, *arguments, **how, kill_after_s=after_s)
        return self.end() == -signal.SIGKILL

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def decided(file: Path) -> dict[str, dict[str, Any]]:
    """The rows of a results file by path, without what may differ; no path is there twice."""
    found: dict[str, dict[str, Any]] = {}
    for row in read_rows(file):
        assert path_of(row) not in found
        found[path_of(row)] = {key: value for key, value in row.items() if key not in _PASSING}
    return found


def make_bundle(folder: Path) -> None:
    policy = compiled(load_policy("stickers").record())
    fake_judge(folder, manifest((policy,)), FakeEngine())


def make_pictures(folder: Path, count: int, seed: int = 0) -> None:
    """Some are damaged, some are of the same bytes, and some have hostile names."""
    chance = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        name = os.fsencode(folder) + b"/%03d" % number
        name += (b".png", b"\xff.png", b"\n.png", b"'\"\\.png")[number % 4]
        if number % 5 == 4:
            data = b"\x89PNG\r\n\x1a\n" + bytes([chance.randrange(256)])
        else:
            colour = chance.choice([(250, 10, 10), (10, 250, 40), (128, 128, 128)])
            side = chance.choice([8, 9, 10])
            data = picture(colour, side)
        with open(name, "wb") as stream:
            stream.write(data)


def picture(colour: tuple[int, int, int], side: int = 8) -> bytes:
    from io import BytesIO

    stream = BytesIO()
    Image.new("RGB", (side, side), colour).save(stream, "PNG")
    return stream.getvalue()


# Below: the process that is forked from.


def serve(bundle: str, command: Command) -> None:
    import PIL.PngImagePlugin  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import edgejudge.bulk.jsonl
    import edgejudge.bulk.parquet
    import edgejudge.bulk.screen
    import edgejudge.bulk.sqlite  # noqa: F401
    import edgejudge.cli
    import edgejudge.commands.screened
    import edgejudge.judge  # noqa: F401

    _answer("ready")
    for line in sys.stdin:
        wanted = json.loads(line)
        process = os.fork()
        if process == 0:
            try:
                code = _run(bundle, command, **wanted)
            except BaseException:
                import traceback

                traceback.print_exc()
                code = 99
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _answer(str(process))
        if "kill_after_s" in wanted["how"]:
            time.sleep(wanted["how"]["kill_after_s"])
            os.kill(process, signal.SIGKILL)  # nobody has waited for it: the number is its own
        _answer(str(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])))


def _answer(text: str) -> None:
    sys.__stdout__.write(text + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


def _run(
    bundle: str, command: Command, folder: str, arguments: list[str], how: Mapping[str, float]
) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    _judge_by_colour(bundle, how.get("picture_s", 0.0))
    if "file_bytes" in how:
        import resource

        most = int(how["file_bytes"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    if "slow_s" in how:
        _slow(how["slow_s"])
    return command(arguments, how)


def _screen(arguments: list[str], how: Mapping[str, float]) -> int:
    from edgejudge.cli import main

    return main(["screen", *arguments])


def _judge_by_colour(folder: str, picture_s: float) -> None:
    import edgejudge.judge
    from edgejudge.bundle import Bundle
    from fake_judge import ColourEngine

    class Engine(ColourEngine):
        def prefill(self, ids: Any, visual: Any = None, *more: Any) -> Any:
            if visual is not None:
                time.sleep(picture_s)
            return super().prefill(ids, visual, *more)

    def load(cls: Any, *_: Any, limits: Any, **__: Any) -> Any:
        return cls(Bundle.open(Path(folder)), Engine(), limits)

    edgejudge.judge.Judge.load = classmethod(load)  # type: ignore[assignment]


def _slow(seconds: float) -> None:
    """Every write in pieces, every step that makes a file whole with a wait before and after it,
    and a sync after every row.
    """
    import edgejudge.bulk.files
    import edgejudge.bulk.parquet
    import edgejudge.bulk.sqlite

    edgejudge.bulk.files.SYNC_S = 0.0
    edgejudge.bulk.sqlite.SYNC_S = 0.0
    edgejudge.bulk.parquet._GROUP_ROWS = 3

    def in_pieces(handle: int, data: Any) -> int:
        time.sleep(seconds)
        return write(handle, data[: max(len(data) // 3, 700)])

    def slowed(call: Any) -> Any:
        def wait(*given: Any, **named: Any) -> Any:
            time.sleep(seconds)
            found = call(*given, **named)
            time.sleep(seconds)
            return found

        return wait

    write = os.write
    os.write = in_pieces
    for name in ("fsync", "replace", "unlink", "truncate"):
        setattr(os, name, slowed(getattr(os, name)))
    edgejudge.bulk.parquet._flat = slowed(edgejudge.bulk.parquet._flat)


@contextmanager
def runs_of(folder: Path, script: str = __file__) -> Iterator[Runs]:
    make_bundle(folder)
    runs = Runs(folder, script)
    try:
        yield runs
    finally:
        runs.close()


if __name__ == "__main__":
    serve(sys.argv[1], _screen)
