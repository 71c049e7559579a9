"""What `edgejudge screen` and `edgejudge watch` know of the judge they ask and how it decides.

Takes parsed arguments; gives the judge and its plan. What a reader should know of the plan goes to
stderr as warnings.
"""

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from edgejudge.commands import cascade, variants
from edgejudge.commands.arguments import (
    add_judge,
    libraries_on_stderr,
    positive,
    seconds,
    size,
    tell,
)
from edgejudge.printable import printable

if TYPE_CHECKING:
    from edgejudge.policy import Policy

__all__ = ["add_options", "exit_code", "open_judge", "results_alone", "tell_peak"]


def add_options(parser: argparse.ArgumentParser) -> None:
    add_judge(parser)
    parser.add_argument(
        "--fingerprint", metavar="SHA256", help="refuse the bundle unless its manifest has this"
    )
    parser.add_argument("--verify", action="store_true", help="hash every file of the bundle again")
    parser.add_argument(
        "--allow-random",
        action="store_true",
        help="judge with a bundle of random weights, whose verdicts mean nothing",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all)")
    parser.add_argument(
        "--place",
        metavar="PLACES",
        help="run stages on other devices, like vision=gpu,decoder=npu:qnn, or decoder.0=npu for "
        "one part; `edgejudge devices` lists them (default: all on the CPU)",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse a device that is not right or leaves a node to the CPU, in place of a note",
    )
    parser.add_argument(
        "--deadline",
        type=seconds,
        metavar="SECONDS",
        help="how long one run on another device may take before it is passed over (default: 120)",
    )
    parser.add_argument(
        "--remeasure",
        action="store_true",
        help="measure the costs of `edgejudge tune --costs` again, beside the work, when a device "
        "is slower or faster than they say",
    )
    parser.add_argument(
        "--memory-budget",
        type=size,
        metavar="SIZE",
        help="memory for the whole process, like 512MiB; a judge that would not fit is read from "
        "disk a few layers at a time",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        metavar="N",
        help="pictures that pass each slice of such a judge together (default: 8)",
    )
    _add_decisions(parser)
    cascade.add_options(parser)
    variants.add_options(parser)


def _add_decisions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--strictness",
        action="append",
        type=_strictness,
        default=[],
        metavar="NAME=HOW",
        help="judge a category or rule of the policy otherwise: allowed, default or sensitive; may "
        "be repeated",
    )
    parser.add_argument(
        "--method",
        choices=("clue", "thresholds"),
        help="decide by this, whatever the policy says",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="decide the rules that `edgejudge calibrate` fitted by it",
    )
    parser.add_argument(
        "--reasoning",
        action=argparse.BooleanOptionalAction,
        help="reason about what scores leave open, with the method clue (default: the policy's)",
    )
    parser.add_argument(
        "--relevance-gate",
        action="store_true",
        help="skip rules whose text is not about the picture, where the bundle has an encoder",
    )


def _strictness(text: str) -> tuple[str, str]:
    name, equals, how = text.rpartition("=")
    if not (name and equals and how):
        raise argparse.ArgumentTypeError(f"'{text}' is no NAME=HOW, like violence=sensitive")
    return name, how


def open_judge(args: argparse.Namespace) -> "tuple[Any, Any, str | Policy]":
    """A judge, or two of them, its plan, and the policy that the plan is of. A malformed policy
    stops the run here, before a results file is made.
    """
    from edgejudge.judge import BATCH, Judge
    from edgejudge.plan_options import strictly
    from edgejudge.policy import Policy

    judge = Judge.load(
        args.bundle,
        args.fingerprint,
        threads=args.threads,
        verify=args.verify,
        limits=variants.limits(args),
        allow_random=args.allow_random,
        memory_budget=args.memory_budget,
        batch=args.batch or BATCH,
        place=args.place,
        strict=args.strict,
        deadline=args.deadline,
        calibration=args.calibration,
    )
    if args.remeasure:
        judge.remeasure(on_drift=True, told=tell)
    policy = strictly(args.policy, dict(args.strictness))
    assert isinstance(policy, str | Policy)  # as the command line has it
    asked: Any = cascade.behind(judge, args)
    plan = asked.plan(
        policy,
        method=args.method,
        reasoning=args.reasoning,
        relevance_gate=args.relevance_gate,
        budget_ms=args.time_budget,
        first_broken=args.first_broken,
        stable=args.stable,
    )
    for note in plan.notes:
        if note.code != "allowed":  # which was asked for
            stays = "; it stays uncertain" if note.code == "unknown_concept" else ""
            print(f"warning: {printable(note.message)}{stays}", file=sys.stderr)
    return asked, plan, policy


def results_alone(args: argparse.Namespace) -> AbstractContextManager[object]:
    """Keeps stdout for results: the libraries of other devices print what they like."""
    return nullcontext() if args.place is None else libraries_on_stderr()


def exit_code(outcomes: set[str]) -> int:
    """From the outcomes that occurred: unsafe, uncertain, safe, failed."""
    if "unsafe" in outcomes:
        return 1
    return 3 if outcomes - {"safe"} else 0


def tell_peak(budget: int | None) -> None:
    """Of a run within a memory budget."""
    if budget is None:
        return
    from edgejudge.profiling import peak_rss_mib

    print(f"peak {peak_rss_mib():.0f} MiB of {budget / 2**20:.0f} MiB", file=sys.stderr)
