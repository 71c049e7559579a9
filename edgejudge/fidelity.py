"""The gate of an export: a bundle is measured against the reference, and only then sealed.

Takes a checkpoint; gives a sealed bundle, or an error and no bundle. Two things are told apart:
what the runtime computes from the stored weights must equal the reference over the same weights,
and what quantization changed must flip few decisions against the fp32 checkpoint. What counts as
few is gate's.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import (
    Bundle,
    FidelityRecord,
    Manifest,
    PolicyRecord,
    SideRecord,
    WritingRecord,
)
from edgejudge.combinations import Spoken, side_record, written_ends
from edgejudge.coreml_report import report as report_of_programs
from edgejudge.errors import ExportError, FidelityError
from edgejudge.gate import Tally, up, upper_bound
from edgejudge.gate_set import gate_set
from edgejudge.goldens import graph_error
from edgejudge.models.image import image_spec, preprocess
from edgejudge.models.prompt import Prompts
from edgejudge.target_gate import TargetGate, Wanted

if TYPE_CHECKING:
    from edgejudge.export import (
        CalibrationPicture,
        Checkpoint,
        Plan,
        Reference,
        Source,
        Weights,
    )

__all__ = ["export_bundle", "exporting_tools"]

_AT_ONCE = 8  # pictures that pass the reference's layers together
_APART = 4  # pictures whose questions are asked one by one too
_SELECTED = 4  # pictures that advice on a bundle, and its comparisons, are drawn from

Progress = Callable[[str, float], None]  # what is being done, and the share of it that is done


def export_bundle(
    checkpoint: "str | Path | Checkpoint",
    out: str | Path,
    recipe: str | None = None,
    parts: int | None = None,
    part_bytes: int | None = None,
    policies: Sequence[PolicyRecord] = (),
    accept_flips: float | None = None,
    force: bool = False,
    max_pixels: int | None = None,
    revision: str | None = None,
    kv: str = "float32",
    targets: Sequence[str] = ("cpu",),
    budget: int | None = None,
    progress: Progress = lambda *_: None,
) -> Manifest:
    """Exports, measures, seals; the folder `out` appears only if all three went well.

    The decoder is cut into `parts` graphs, or as few as keep the weights of each under
    `part_bytes`. `policies` are compiled into the bundle. `force` replaces a bundle that is there
    already. `max_pixels` bounds the pictures of a family that keeps their own grid. `kv` is what
    keys and values are kept in: "int8" takes a quarter of the room of "float32", "int4" an eighth.
    `budget` is how many bytes all weights may take, in place of a recipe. `accept_flips` is a share
    of decisions that may flip, in place of the gate's limits. Raises FidelityError for a bundle
    that is too far from the reference.
    """
    exporting = exporting_tools()
    target = Path(out).resolve()
    exporting.check_target(target, force)
    exporting.variants_of(targets, kv)  # told before anything is read
    opened = (
        checkpoint
        if isinstance(checkpoint, exporting.Checkpoint)
        else exporting.open_checkpoint(checkpoint, max_pixels, revision=revision)
    )
    cut = exporting.Cut(parts, part_bytes)
    cut.check()
    with exporting.workplace(target, "unsealed") as partial, exporting.kept(target) as work:
        chosen = recipe or exporting.DEFAULT_RECIPE
        changed, plan = exporting.prepared(opened, chosen, progress, kv, work, budget)
        exporting.export(changed, partial, plan, cut, policies, targets=targets, progress=progress)
        bundle = Bundle.open(partial, unsealed=True)
        if bundle.has("coreml", "decoder"):  # which nothing here runs, but which can be read
            report_of_programs(bundle)
        gate = _Gate(bundle, opened, changed.weights, plan, progress)
        report = gate.measure(accept_flips)
        manifest: Manifest = exporting.seal(partial, report, gate.targets.records(accept_flips))
        exporting.publish(partial, target, force)
    return manifest


def exporting_tools() -> ModuleType:
    """The package edgejudge.export, or an ExportError that says how to install what it needs."""
    try:
        from edgejudge import export
    except ModuleNotFoundError as error:
        raise ExportError(
            f"exporting needs the package {error.name}; install it with "
            "`pip install 'edgejudge[export]'`"
        ) from None
    return export


class _Truth(NamedTuple):
    """What the reference says of one picture's conditions."""

    ends: NDArray[np.float64]  # hidden states [B, D]
    probabilities: NDArray[np.float64]  # [B]
    masses: NDArray[np.float64]  # [B], of yes and no in the full head


class _Gate:
    """One bundle, measured once."""

    def __init__(
        self,
        bundle: Bundle,
        checkpoint: "Checkpoint",
        prepared: "Source",
        plan: "Plan",
        progress: Progress,
    ) -> None:
        """`prepared` are the checkpoint's weights as the plan quantized them."""
        from edgejudge.runtime import Engine

        self._bundle, self._checkpoint, self._progress = bundle, checkpoint, progress
        self._prepared, self._plan = prepared, plan
        self._engine = Engine.open(bundle)
        self._apart: list[float] = []  # by picture, how far packing moved a probability
        self._spoken = Spoken()
        self.targets = TargetGate(bundle, self._engine)

    def measure(self, accepted: float | None) -> FidelityRecord:
        self._progress("comparing the graphs with golden vectors", 0.0)
        worst = graph_error(self._bundle, self._engine)
        tolerance = self._plan.recipe.tolerance
        if not worst <= tolerance:
            raise ExportError(
                f"the runtime's label logits are {worst:.2g} off the reference over the same "
                f"weights, allowed are {tolerance}; this is a fault of the export, not of the "
                "checkpoint"
            )
        random = self._bundle.manifest.random_weights
        if not random:  # the device that they are made for asks its canary
            self.targets.check_canaries()
        self._engine.release()
        asked = gate_set(self._checkpoint, self._bundle.manifest)
        pictures = asked.gate
        if random:  # one picture shows it, the one with the shortest prompt
            pictures = [min(pictures, key=self._prompt_tokens)]
        tally, written, masses, hidden_error = self._compare(pictures)
        broken = tally.violations(accepted)
        if not broken and written.decisions:
            broken = [f"with the graphs that write text {b}" for b in written.violations(accepted)]
        broken = broken or self.targets.violations(accepted)
        if not random and broken:
            raise FidelityError(
                f"the bundle is refused: {'; '.join(broken)}. {self._blame(asked.selection)} "
                "--accept-flips allows it, and is recorded"
            )
        return FidelityRecord(
            picture_set=asked.name,
            calibration_pictures=asked.calibrated,
            graph_error=_power_of_ten(worst),
            hidden_error=up(hidden_error),
            packing_error=_power_of_ten(max(self._apart)),
            writing=_writing_record(written, self._spoken) if written.decisions else None,
            side=self._side(asked.selection),
            decisions=None if random else tally.record(masses, len(pictures), accepted),
        )

    def _compare(
        self, pictures: "Sequence[CalibrationPicture]"
    ) -> tuple[Tally, Tally, list[float], float]:
        """Counts, those of the graphs that write text, the label mass of each decision, and the
        relative rms error of hidden states.
        """
        from edgejudge.export import Exact, Reference, hidden_of

        checkpoint = self._checkpoint
        # In float32: the report's four decimals do not show the difference, and it is much faster.
        reference = Reference(checkpoint.spec, Exact(checkpoint.weights), checkpoint.tokens.image)
        rules, thresholds = _rules(self._bundle.manifest)
        tally, written = Tally(), Tally()
        masses: list[float] = []
        error = square = 0.0
        for first in range(0, len(pictures), _AT_ONCE):
            some = pictures[first : first + _AT_ONCE]
            self._progress("computing decisions by the reference", first / len(pictures))
            truths = self._truths(reference, some)
            # One of the two at a time: neither fits the memory beside the other for a large model.
            reference.release()
            self._progress("computing decisions by the bundle", first / len(pictures))
            for picture, truth, (ends, found) in zip(some, truths, self._ends(some), strict=True):
                wanted_ends = hidden_of(checkpoint, self._plan.recipe, truth.ends)
                error += float(np.square(ends - wanted_ends).sum())
                square += float(np.square(truth.ends).sum())
                masses += truth.masses.tolist()
                logits = self._engine.label_logits(ends)
                want = _wanted(picture, truth, rules, thresholds)
                asking, limits = want.rules, want.thresholds
                probabilities = self._engine.label_probabilities(logits)
                tally.add(picture.image, asking, probabilities, truth.probabilities, limits)
                if found is not None:
                    written.add(picture.image, asking, found, truth.probabilities, limits)
            self._engine.release()
            if self._bundle.manifest.targets and not self._bundle.manifest.random_weights:
                pairs = zip(some, truths, strict=True)
                wanted = [_wanted(p, t, rules, thresholds) for p, t in pairs]
                self._progress(
                    "computing decisions by the graphs of other targets", first / len(pictures)
                )
                self.targets.add(some, wanted)
                self._engine.release()
        return tally, written, masses, math.sqrt(error / (square or 1.0))

    def _side(self, pictures: "Sequence[CalibrationPicture]") -> SideRecord | None:
        if not self._plan.recipe.side_gain:
            return None
        self._progress("measuring what exact columns are worth", 0.0)
        records = self._bundle.manifest.quantization
        matrices = sum(q.tensors for q in records if q.scheme == "symmetric rows")
        some = pictures[:_SELECTED]
        return side_record(self._checkpoint, self._prepared, self._plan, some, matrices)

    def _prompt_tokens(self, picture: "CalibrationPicture") -> int:
        seen = preprocess(picture.rgb, self._checkpoint.image)
        return len(Prompts.of(self._bundle).prefix_ids(seen.rows, seen.cols))

    def _truths(
        self, reference: "Reference", pictures: "Sequence[CalibrationPicture]"
    ) -> list[_Truth]:
        from edgejudge.export import asked_of, yes_probability

        labels, truths = self._checkpoint.labels, []
        for ends in reference.ends(asked_of(self._checkpoint, pictures)):
            full = reference.logits(ends).double().numpy()  # [B, vocab]
            rows = full[:, list(labels.token_ids)]
            answers = [*labels.labels["yes"], *labels.labels["no"]]
            mass = np.exp(np.logaddexp.reduce(rows[:, answers], 1) - np.logaddexp.reduce(full, 1))
            probabilities = yes_probability(rows, labels.labels)
            truths.append(_Truth(ends.double().numpy(), probabilities, mass))
        return truths

    def _ends(
        self, pictures: "Sequence[CalibrationPicture]"
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float64] | None]]:
        """Hidden states [B, D] of the bundle, from pictures and prompts made as it says itself; and
        of some pictures the probabilities [B] that the graphs for text give.
        """
        engine, prompts = self._engine, Prompts.of(self._bundle)
        spec = image_spec(self._bundle.manifest.preprocessing)
        encoded = []
        for picture in pictures:
            seen = preprocess(picture.rgb, spec)
            encoded.append((seen.rows, seen.cols, engine.encode_image(seen.feeds)))
        engine.release("vision")
        found = []
        for picture, (rows, cols, visual) in zip(pictures, encoded, strict=True):
            ids, positions = prompts.prefix_ids(rows, cols), prompts.prefix_positions(rows, cols)
            branches = [prompts.branch_ids(text) for text in picture.conditions]
            prefix = engine.prefill(ids, visual, positions)
            ends, written = engine.ends(prefix, branches), None
            if len(self._apart) < _APART:
                alone = engine.ends(prefix, branches, packed=False)
                asked = [engine.label_probabilities(engine.label_logits(e)) for e in (ends, alone)]
                self._apart.append(float(np.abs(asked[0] - asked[1]).max()))
                if self._bundle.has("cpu", "writer") and not self._bundle.manifest.random_weights:
                    text = written_ends(engine, prefix, branches)
                    written = engine.label_probabilities(engine.label_logits(text))
                    self._spoken.add(engine, text, asked[0])
            found.append((ends, written))
        return found

    def _blame(self, pictures: "Sequence[CalibrationPicture]") -> str:
        """Which stored groups, or the cache, move the reference's probabilities most, each tried by
        itself.
        """
        from edgejudge.export import Exact, Reference, Stored, asked_of, yes_probability

        checkpoint = self._checkpoint
        rows, spec, image = checkpoint.labels.token_ids, checkpoint.spec, checkpoint.tokens.image
        asked = asked_of(checkpoint, pictures[:_SELECTED])

        def answers(weights: "Weights") -> NDArray[np.float64]:
            logits = Reference(spec, weights, image).ask(asked, rows)
            return yes_probability(np.concatenate(logits), checkpoint.labels.labels)

        truth = answers(Exact(checkpoint.weights))
        records = self._bundle.manifest.quantization
        blocks = [q for q in records if q.scheme.startswith("symmetric")]
        plans = {f"{q.group} in {q.bits} bits": self._plan.only(q.group, q.bits) for q in blocks}
        more = "--recipe w8 keeps eight everywhere, exact keeps all"
        if self._plan.kv_steps:
            plans[f"keys and values in {self._plan.kv_dtype}"] = self._plan.only_kv()
            more += "; --kv float32 keeps keys and values"
        found: list[tuple[float, str]] = []
        for name, plan in plans.items():
            self._progress("looking for the weights to blame", len(found) / len(plans))
            moved = answers(Stored(self._prepared, plan))
            found.append((float(np.abs(moved - truth).mean()), name))
        worst = sorted(found, reverse=True)[:3]
        named = ", ".join(f"{name} ({error:.3f})" for error, name in worst)
        if not named:
            return "No weight is quantized: look at the checkpoint."
        return (
            f"Probabilities move most by {named} on {len(asked)} pictures that the gate did not "
            f"use: give these more bits ({more})."
        )


def _wanted(
    picture: "CalibrationPicture",
    truth: _Truth,
    rules: dict[str, tuple[str, ...]],
    thresholds: dict[str, float],
) -> Wanted:
    return Wanted(
        truth.probabilities,
        truth.masses,
        [rules.get(text, ()) for text in picture.conditions],
        np.array([thresholds.get(text, 0.5) for text in picture.conditions]),
    )


def _writing_record(tally: Tally, spoken: Spoken) -> WritingRecord:
    return WritingRecord(
        tally.decisions,
        tally.flips,
        up(upper_bound(tally.flips, tally.decisions)),
        up(tally.percentile_99()),
        spoken.words,
        spoken.agree,
    )


def _rules(manifest: Manifest) -> tuple[dict[str, tuple[str, ...]], dict[str, float]]:
    """Condition -> the rules that ask it, and the threshold its answer meets."""
    rules: dict[str, tuple[str, ...]] = {}
    thresholds = {}
    for policy in manifest.policies:
        for rule in policy.rules:
            for either in rule.conditions:
                for condition in either:
                    name = f"{policy.name}.{rule.id}"
                    rules[condition.text] = (*rules.get(condition.text, ()), name)
                    thresholds[condition.text] = rule.threshold
    return rules, thresholds


def _power_of_ten(value: float) -> float:
    """The next power of ten: the digits below it change with the machine."""
    return float(f"1e{math.ceil(math.log10(value))}") if value > 0 else 0.0
