"""`edgejudge risk-curve`: labels and pictures in, decided shares and wrong decisions by budget out.

Takes the parsed arguments; gives the exit code: 0 there is a curve, 2 there is none, 130 stopped by
Ctrl-C. The table or the JSON document goes to stdout, progress and notes to stderr.
"""

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from edgejudge.commands.arguments import add_judge, positive
from edgejudge.commands.cascade import milliseconds
from edgejudge.errors import InputError
from edgejudge.printable import printable

if TYPE_CHECKING:
    from edgejudge.calibrating.labelled import Joined
    from edgejudge.judge import Judge
    from edgejudge.plan import Plan
    from edgejudge.verdict import Verdict

__all__ = ["add_parser", "run"]

SCHEMA_VERSION = 1
_PREFIX = ("decode", "preprocess", "load", "vision", "prefill", "relevance")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "risk-curve",
        help="measure what time budgets cost in decisions and in errors",
        description="Screens labelled pictures under several time budgets, with rules ordered by "
        "expected information per millisecond and at random, and prints coverage, selective risk "
        "and milliseconds of each. Nothing is kept from one screening to the next.",
        epilog="Labels are as for `edgejudge calibrate`.",
    )
    parser.add_argument("labels", metavar="LABELS", help="what people say: CSV or JSON lines")
    parser.add_argument(
        "--pictures",
        metavar="DIR",
        help="the folder that paths of the labels begin in (default: the one of the labels)",
    )
    add_judge(parser)
    parser.add_argument("--calibration", metavar="FILE", help="decide by it, as `screen` does")
    parser.add_argument(
        "--budgets",
        type=_budgets,
        metavar="MS,...",
        help="milliseconds a picture, like 25,50,100 (default: from where half of the pictures "
        "can be asked anything to where all is asked)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the random order (default: 0)"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    from edgejudge.evaluation.extra import needed

    needed("scipy")  # before anything is judged
    from edgejudge.calibrating.label_file import read_labels
    from edgejudge.calibrating.labelled import Lookup, all_there, failures, join
    from edgejudge.calibrating.recorded import Recorded
    from edgejudge.judge import Judge
    from edgejudge.risk_curve import Labelled, between, measure, table

    judge = Judge.load(
        args.bundle, threads=args.threads, prefix_cache_bytes=0, calibration=args.calibration
    )
    plan = judge.plan(args.policy)
    if plan.whole is not None:
        raise InputError(
            "policy", f"policy '{plan.policy}' is judged as a whole; it has no rules to order"
        )
    conditions = plan.conditions
    questions = {text for rule in conditions.values() for either in rule for text in either}
    labels = read_labels(args.labels, conditions, questions)
    found = Lookup([], args.pictures or os.path.dirname(args.labels) or ".")
    files = list(dict.fromkeys(found.file(picture) for picture in labels.pictures))
    all_there(files, "--pictures")
    whole: list[Verdict] = []
    shown = _Progress(len(files))
    # One by one, since a stream does a part of the next picture meanwhile.
    for count, verdict in enumerate((judge.screen(file, plan) for file in files), 1):
        whole.append(verdict)
        why = verdict.error.code if verdict.error else None
        assert verdict.path is not None
        found.add(Recorded(verdict.path, verdict.sha256, {}, why))
        shown("judged", count)
    joined = join(labels, found, conditions)
    if warning := failures(joined):
        print(printable(warning), file=sys.stderr)
    truths: dict[str, dict[str, int]] = {}
    for rule in joined.rules:
        for key, label in zip(rule.pictures, rule.labels, strict=True):
            truths.setdefault(key, {})[rule.id] = label
    if not truths:
        raise InputError(
            "labels",
            f"labels {args.labels} settle no rule of a picture that could be judged; label a "
            "rule, or all its questions",
        )
    by_key = {v.sha256: v.path for v in reversed(whole) if v.path is not None}
    pictures = [Labelled(path, truths[key]) for key, path in by_key.items() if key in truths]
    judged = [v for v in whole if v.verdict is not None]
    # The first one opens the graphs, which none after it does.
    timed = [dict(verdict.stages_ms) for verdict in judged[1:] or judged]
    budgets = args.budgets or between(
        [sum(ms for name, ms in each.items() if name in _PREFIX) for each in timed],
        [sum(each.values()) for each in timed],
    )
    points = measure(
        lambda path, timed: judge.screen(path, timed),
        plan,
        pictures,
        budgets,
        args.seed,
        lambda count, _: shown("measured", count, len(pictures)),
    )
    shown.end()
    if args.json:
        print(json.dumps(_document(args, judge, plan, joined, points), allow_nan=False))
        return 0
    print(table(points))
    pairs = sum(len(each.labels) for each in pictures)
    print(
        f"{len(pictures)} pictures with {pairs} labelled pairs of picture and rule; milliseconds "
        "are of this machine as it was, and a budget is kept by prediction",
        file=sys.stderr,
    )
    return 0


def _document(
    args: argparse.Namespace,
    judge: "Judge",
    plan: "Plan",
    joined: "Joined",
    points: list[Any],
) -> dict[str, object]:
    import onnxruntime

    from edgejudge.runtime.settings import processor

    return {
        "schema_version": SCHEMA_VERSION,
        "bundle": {"name": judge.bundle.manifest.name, "sha256": judge.bundle.fingerprint},
        "policy": {"name": plan.policy, "version": plan.version, "sha256": plan.sha256},
        "calibration": plan.calibration,
        "machine": {
            "processor": processor(),
            "threads": getattr(judge.engine, "threads", None),
            "onnxruntime": onnxruntime.__version__,
        },
        "seed": args.seed,
        "not_judged": dict(joined.not_judged),
        "points": [point.to_json() for point in points],
    }


def _budgets(text: str) -> list[float]:
    found = [milliseconds(each) for each in text.split(",")]
    if any(each == float("inf") for each in found):
        raise argparse.ArgumentTypeError("without a budget is measured in any case; leave inf out")
    return sorted(set(found))


class _Progress:
    """On a terminal alone."""

    def __init__(self, count: int) -> None:
        self._count, self._shows = count, sys.stderr.isatty()

    def __call__(self, what: str, done: int, count: int | None = None) -> None:
        if self._shows:
            total = self._count if count is None else count
            print(f"\r\x1b[K{done}/{total} {what}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._shows:
            print("\r\x1b[K", end="", file=sys.stderr)
