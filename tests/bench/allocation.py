"""What bits and rounding are worth: bytes of weights beside verdicts, `make bench-allocation`.

Takes a checkpoint with a calibration set; stores its weights in several ways, and asks the
reference over each about pictures of the gate. Prints a table, what four bits cost by kind of
weight, and one JSON line. Nothing here is timed.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from edgejudge.export import (
    Checkpoint,
    Exact,
    Plan,
    Stored,
    open_checkpoint,
    plan_of,
    read_calibration,
    recipe_named,
    split_pictures,
)
from edgejudge.export.allocate import (
    BASE,
    KINDS,
    kind_of,
    losses_of,
    spent,
    weight_bytes,
    weight_groups,
)
from edgejudge.export.decide import decide
from edgejudge.export.divergence import answers, divergence
from edgejudge.export.exporter import precision_for
from edgejudge.export.levels import Levels
from edgejudge.export.recipe import kinds_of
from edgejudge.gate import LIMITS, upper_bound
from edgejudge.models.concepts import known_names, knows

DEFAULT = "models/nano/checkpoint"


def progress(what: str, share: float) -> None:
    print(f"\r{what}: {share:.0%}        ", end="", file=sys.stderr)


def plans(checkpoint: Checkpoint) -> Iterator[tuple[str, Plan]]:
    """Name -> plan, the nearest levels first and then those of second order."""
    dtype = precision_for(checkpoint).dtype
    base = plan_of(checkpoint, BASE)
    kinds = kinds_of(checkpoint.family.group_of, checkpoint.spec.text.layers)
    recipes = {
        name: Plan(recipe_named(name), kinds, base.importance)
        for name in ("small", "balanced", "w8")
    }

    def second(plan: Plan) -> Plan:
        return decide(checkpoint, plan, Levels(None, ""), dtype, progress)

    groups = weight_groups(checkpoint, base)
    for name, plan in recipes.items():
        yield f"{name}, nearest", plan
    for name in ("small", "balanced"):
        yield f"{name}, second order", second(recipes[name])
    losses = losses_of(checkpoint, base, groups, progress)
    costs = {
        pattern: [losses[g.name] for g in groups if _pattern(checkpoint, g.name) == pattern]
        for pattern in KINDS
    }
    print("\nfour bits cost, in 1e-6 nats, a role of a layer (median):")
    for pattern, found in costs.items():
        if found:
            print(f"  {pattern:24} {statistics.median(found) * 1e6:9.2g} ({len(found)})")
    low, high = (weight_bytes(checkpoint, recipes[n], groups) for n in ("small", "balanced"))
    for budget in (low, (low + high) // 2, high):
        plan = spent(checkpoint, base, groups, losses, budget)
        yield f"allocated {budget}, second order", second(plan)
        if budget == low:
            yield f"allocated {budget}, nearest", plan


def _pattern(checkpoint: Checkpoint, name: str) -> str:
    kind = kind_of(checkpoint, name)
    return next(pattern for pattern in KINDS if fnmatchcase(kind, pattern))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", default=DEFAULT)
    parser.add_argument("--pictures", type=int, default=168, help="of the gate's, spread out")
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.checkpoint)
    folder = checkpoint.calibration_folder
    if folder is None:
        parser.error("the checkpoint has no calibration set")
    gate = split_pictures(read_calibration(folder)).gate
    gate = gate[:: -(-len(gate) // args.pictures)]
    # What the judge claims to know, as the gate asks it.
    names, patterns = known_names(checkpoint.card.concepts), checkpoint.card.patterns
    gate = [
        replace(
            p,
            conditions=tuple(t for t in p.conditions if knows(names, t, patterns)),
        )
        for p in gate
    ]
    truth = answers(checkpoint, Exact(checkpoint.weights), gate)
    near = np.abs(truth - 0.5) <= LIMITS.near
    print(
        f"{checkpoint.card.name}: {len(truth)} decisions, {len(gate)} pictures, "
        f"{int(near.sum())} near their threshold"
    )
    print("| weights | bytes | flips (95 % bound) | near | KL, 1e-6 nats | change, 99th |")
    print("|---" * 6 + "|", flush=True)
    groups, results = None, []
    for name, plan in plans(checkpoint):
        groups = groups or weight_groups(checkpoint, plan)
        found = answers(checkpoint, Stored(checkpoint.weights, plan), gate)
        flipped = (found >= 0.5) != (truth >= 0.5)
        flips, near_flips = int(flipped.sum()), int((flipped & near).sum())
        result = {
            "weights": name,
            "bytes": weight_bytes(checkpoint, plan, groups),
            "decisions": len(truth),
            "flips": flips,
            "flips_upper": round(upper_bound(flips, len(truth)), 5),
            "near_flips": near_flips,
            "near_decisions": int(near.sum()),
            "divergence": divergence(truth, found),
            "probability_error_99": float(np.percentile(np.abs(found - truth), 99)),
        }
        results.append(result)
        print(
            f"\r| {name} | {result['bytes']:,} | {flips} (at most {result['flips_upper']:.2%}) | "
            f"{near_flips} of {result['near_decisions']} | {result['divergence'] * 1e6:.1f} | "
            f"{result['probability_error_99']:.4f} |",
            flush=True,
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
