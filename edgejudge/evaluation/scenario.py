"""What a recipe says of its data: loader, place, columns. A record; nothing here reads files."""

from dataclasses import dataclass, field
from pathlib import Path

from edgejudge.evaluation.rows import Kind

__all__ = ["COLUMNS", "RECORDED_COLUMNS", "Scenario"]

RECORDED_COLUMNS = (
    "prediction",
    "probability",
    "probabilities",
    "orders",
    "repeats",
    "unscored",
    "perturbed",
    "exceptions",
    "cost",
    "stages_ms",
    "milliseconds",
)
# By loader: the columns that may be named otherwise.
COLUMNS: dict[str, tuple[str, ...]] = {
    "table": (
        *("id", "group", "image", "images", "text", "answers", "label", "target"),
        *RECORDED_COLUMNS,
    ),
    "multiple_choice": ("id", "group", "image", "question", "options", "answer"),
    "folders": (),
    "calibration_set": (),
    "mllm_judge_score": (),
    "mllm_judge_pair": (),
    "mllm_judge_batch": (),
}


@dataclass(frozen=True, slots=True)
class Scenario:
    """`images` is the folder that pictures are named from, that of `path` where it is None. `rules`
    are columns of a table that are rules' ids, `unsafe` the folders whose pictures are unsafe.
    `policy` and `question` are of a calibration set, whose truths are of rules, or of questions.
    """

    loader: str
    path: Path
    images: Path | None = None
    subset: int | None = None
    seed: int = 0
    kind: Kind = "label"
    columns: dict[str, str] = field(default_factory=dict)
    rules: tuple[str, ...] = ()
    unsafe: tuple[str, ...] = ()
    policy: str = "stickers"
    question: str | None = None

    def column(self, name: str) -> str:
        """What the table calls it."""
        return self.columns.get(name, name)
