"""EVALUATING.md knows every name that a recipe may have."""

import re
from pathlib import Path

from edgejudge.evaluation.metrics import METRICS
from edgejudge.evaluation.perturbations import PERTURBED
from edgejudge.evaluation.recipe import INFERENCERS, read_recipe
from edgejudge.evaluation.scenario import COLUMNS

GUIDE = (Path(__file__).parent.parent / "EVALUATING.md").read_text(encoding="utf-8")


def test_the_guide_names_what_there_is() -> None:
    names = [*METRICS, *INFERENCERS, *COLUMNS, *PERTURBED, *sum(COLUMNS.values(), ())]
    assert [name for name in names if f"`{name}`" not in GUIDE] == []


def test_the_guide_names_nothing_else() -> None:
    table = GUIDE.split("## Metrics")[1]
    named = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", table, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(named))) == set(METRICS)


def test_the_recipe_in_the_guide_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    path = tmp_path / "r.yaml"
    path.write_text(text, "utf-8")
    assert read_recipe(path).inferencer.name == "screen"
