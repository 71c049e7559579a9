"""A recipe run: data read, judge asked or outputs taken, rows kept, figures made.

Takes a recipe's path; gives `Results`. What cannot be run is refused before the first picture is
judged, and what was judged is kept whatever happens after it.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgejudge.errors import InputError
from edgejudge.evaluation.examples import DataSet, missing_pictures
from edgejudge.evaluation.loaders import load
from edgejudge.evaluation.measured import Measured
from edgejudge.evaluation.metrics import check, measure
from edgejudge.evaluation.recipe import Recipe, read_recipe
from edgejudge.evaluation.recorded import recorded_rows
from edgejudge.evaluation.results import Results, counts_of, figures_of, worst
from edgejudge.evaluation.rows import Row
from edgejudge.evaluation.run_folder import RunFolder

if TYPE_CHECKING:
    from edgejudge.evaluation.adapters import Adapter
    from edgejudge.judge import Judge

__all__ = ["evaluate"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is about to be judged, or was: with `rows` there is nothing left to ask."""

    data: DataSet
    about: dict[str, Any]
    gives: frozenset[str]
    notes: tuple[str, ...] = ()
    rows: tuple[Row, ...] | None = None
    adapter: "Adapter | None" = None
    judge: "Judge | None" = None


def evaluate(
    recipe: str | PathLike[str],
    bundle: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Results:
    """Measures a judge as a recipe says; `bundle` goes before the recipe's own.

    With the folder `out`, rows are written there as they come, and results and a page at the end; a
    run that was stopped goes on where it was, if everything its rows depend on is the same.
    `progress` is told how many examples are done, of how many. Raises InputError for a recipe or
    data that cannot be used, and "unscored" where no row got an answer.
    """
    read = read_recipe(Path(recipe))
    data = load(read.scenario)
    if read.inferencer.name == "recorded":
        made = _recorded(read, data)
    else:
        made = _judged(read, data, None if bundle is None else Path(bundle))
    positive = _positive(made.data)
    for place, choice in enumerate(read.metrics):
        check(choice, made.data.kind, made.data.labels, made.gives, read.place(place))
    folder = None if out is None else RunFolder(Path(out), _identity(read, made))
    rows = _rows(read, made, folder, progress)
    measured = Measured(tuple(rows), made.data.kind, made.data.labels, positive)
    counts = counts_of(measured)
    results = Results(
        made.about,
        counts,
        tuple(measure(read.metrics, measured)),
        figures_of(measured),
        worst(measured),
        (*made.data.notes, *made.notes),
    )
    if folder is not None:
        from edgejudge.evaluation.page import page

        value = results.to_json()
        folder.results(value, page(value))
    if counts["unscored"] == counts["rows"]:
        why = ", ".join(f"{reason} ({n})" for reason, n in counts["unscored_reasons"].items())
        raise InputError("unscored", f"none of {counts['rows']} rows could be scored: {why}")
    return results


def _recorded(recipe: Recipe, data: DataSet) -> _Prepared:
    if recipe.instruction.labels:
        if data.kind != "label":
            raise InputError(
                "recipe", f"{recipe.path}: instruction.labels go with kind: label, not {data.kind}"
            )
        data = replace(data, labels=recipe.instruction.labels)
        strangers = {t for e in data.examples for t in e.truths.values()} - set(data.labels)
        if strangers:
            raise InputError(
                "data",
                f"the truth '{min(strangers)}' is none of the labels {', '.join(data.labels)}",
            )
    how = recipe.inferencer
    columns = how.columns if how.outputs is not None else recipe.scenario.columns
    made = recorded_rows(data, how.outputs, columns, _positive(data))
    fields = ("probabilities", "orders", "repeats", "perturbed", "exceptions", "cost", "stages_ms")
    gives = frozenset(name for name in fields if any(getattr(row, name) for row in made.rows))
    about = _about(recipe, made.data)
    about["bundle"], about["outputs_sha256"] = made.bundle, made.sha256
    return _Prepared(made.data, about, gives, made.notes, made.rows)


def _judged(recipe: Recipe, data: DataSet, bundle: Path | None) -> _Prepared:
    from edgejudge.evaluation.inferencers import adapter_for
    from edgejudge.judge import Judge

    missing_pictures(data)
    chosen = bundle or recipe.inferencer.bundle
    judge = Judge.load(chosen, calibration=recipe.inferencer.calibration)
    adapter = adapter_for(recipe, judge, data)
    gives = adapter.gives
    if recipe.inferencer.repeats > 1:
        gives |= {"repeats"}
    if recipe.inferencer.perturbations:
        gives |= {"perturbed"}
    about = _about(recipe, adapter.data)
    about["bundle"] = {"name": judge.bundle.manifest.name, "sha256": judge.bundle.fingerprint}
    about["policy_sha256"], about["calibration"] = adapter.sha256, adapter.calibration
    return _Prepared(adapter.data, about, gives, adapter=adapter, judge=judge)


def _rows(
    recipe: Recipe, made: _Prepared, folder: RunFolder | None, progress: Progress | None
) -> list[Row]:
    """Every example's, in order."""
    expected = {each.id: tuple(each.truths) for each in made.data.examples}
    done = {} if folder is None else folder.rows(expected)
    if made.rows is not None:
        if folder is not None:
            with folder:
                for name, said in groupby(made.rows, lambda row: row.example):
                    if name not in done:
                        folder.add(list(said))
        return list(made.rows)
    from edgejudge.evaluation.asked import ask

    assert made.adapter is not None and made.judge is not None
    with folder or nullcontext():
        for count, example in enumerate(made.data.examples):
            if progress is not None:
                progress(count, len(made.data.examples))
            if example.id not in done:
                rows = ask(made.adapter, example, recipe.inferencer, made.judge.limits)
                done[example.id] = rows
                if folder is not None:
                    folder.add(rows)
    return [row for example in made.data.examples for row in done[example.id]]


def _positive(data: DataSet) -> str | None:
    """The last of two labels: yes of no and yes, unsafe of safe and unsafe."""
    return data.labels[-1] if data.kind == "label" and len(data.labels) == 2 else None


def _about(recipe: Recipe, data: DataSet) -> dict[str, Any]:
    return {
        "recipe": {
            "name": recipe.path.stem,
            "sha256": recipe.sha256,
            "scenario": recipe.scenario.loader,
            "inferencer": recipe.inferencer.name,
            "sections": recipe.source,
        },
        "data_sha256": _data_sha256(data),
        "outputs_sha256": None,
        "bundle": None,
        "policy_sha256": None,
        "calibration": None,
    }


def _identity(recipe: Recipe, made: _Prepared) -> dict[str, Any]:
    """What rows depend on. Metrics do not belong to it: they may be chosen anew."""
    bundle = made.about["bundle"]
    return {
        "recipe": recipe.judged_sha256,
        "data": made.about["data_sha256"],
        "outputs": made.about["outputs_sha256"],
        "bundle": None if bundle is None else bundle["sha256"],
        "policy": made.about["policy_sha256"],
        "calibration": made.about["calibration"],
    }


def _data_sha256(data: DataSet) -> str:
    """Of what was read, and of which examples were taken of it."""
    taken = [[each.id, each.truths] for each in data.examples]
    text = json.dumps([data.sha256, taken], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
