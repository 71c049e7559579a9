"""The folder of a run: rows as they come, and whether an earlier run can be gone on with.

Takes what identifies a run; gives the rows that are there already. Knows no judge and no metric.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from edgejudge.errors import InputError
from edgejudge.evaluation.rows import Row, line, read_rows

__all__ = ["PAGE", "RESULTS", "ROWS", "RunFolder"]

ROWS, RESULTS, PAGE = "rows.jsonl", "results.json", "report.html"
_RUN = "run.json"


class RunFolder:
    """`identity` names all that rows depend on, in words that a person can compare."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Raises InputError "exists" for a folder with another run, or other files of that name."""
        self.path, self._identity = path, dict(identity)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if (path / _RUN).is_file():
                self._compare(json.loads((path / _RUN).read_text("utf-8")))
            elif (path / ROWS).exists() or (path / RESULTS).exists():
                raise InputError(
                    "exists",
                    f"{path} has results of which nothing says what they are; give another --out",
                )
            else:
                self._write(_RUN, json.dumps(self._identity, indent=1) + "\n")
        except (OSError, ValueError) as error:
            raise InputError("unwritable", f"{path} cannot be used: {error}") from error
        self._out: TextIO | None = None

    def rows(self, expected: Mapping[str, Sequence[str]]) -> dict[str, list[Row]]:
        """Those of earlier runs by example, of examples whose `expected` targets are all there.

        What a killed run left of one that is not complete is taken away, and judged again.
        """
        file = self.path / ROWS
        if not file.exists():
            return {}
        found: dict[str, list[Row]] = {}
        for row in read_rows(file):
            found.setdefault(row.example, []).append(row)
        whole = {
            example: rows
            for example, rows in found.items()
            if example in expected and [row.target for row in rows] == list(expected[example])
        }
        text = "".join(line(rows) for rows in whole.values())
        if file.read_text("utf-8") != text:
            self._write(ROWS, text)
        return whole

    def __enter__(self) -> Self:
        self._out = (self.path / ROWS).open("a", encoding="utf-8")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._out is not None:
            self._out.close()

    def add(self, rows: Sequence[Row]) -> None:
        """All rows of one example, at once."""
        assert self._out is not None
        self._out.write(line(rows))
        self._out.flush()

    def results(self, value: Mapping[str, Any], page: str) -> None:
        self._write(RESULTS, json.dumps(value, indent=1, allow_nan=False) + "\n")
        self._write(PAGE, page)

    def _compare(self, before: Any) -> None:
        if not isinstance(before, dict):
            raise ValueError(f"{_RUN} is no object")
        other = [key for key, value in self._identity.items() if before.get(key) != value]
        if other:
            raise InputError(
                "exists",
                f"{self.path} has rows of another run: {', '.join(other)} differ; give another "
                "--out, or remove it",
            )

    def _write(self, name: str, text: str) -> None:
        """Whole or not at all."""
        partial = self.path / f".{name}.partial"
        partial.write_text(text, "utf-8")
        os.replace(partial, self.path / name)
