"""`edgejudge calibrate`: labels and pictures in, a calibration file and a table out.

Takes the parsed arguments; gives the exit code: 0 a calibration was written, 2 stopped by an error,
130 stopped by Ctrl-C. The table goes to stdout, progress and advice to stderr. What the judge says
of each picture is kept in a results file as it comes, so that no picture is judged twice.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgejudge.commands.arguments import add_judge, positive
from edgejudge.errors import InputError
from edgejudge.printable import printable

if TYPE_CHECKING:
    from edgejudge.bundle import Bundle
    from edgejudge.calibrating.labelled import Joined, Lookup
    from edgejudge.calibrating.recorded import Recorded
    from edgejudge.calibrating.thresholds import Aim
    from edgejudge.calibration import Calibration
    from edgejudge.plan import Plan

__all__ = ["add_parser", "run"]

_EPILOG = """\
Labels are CSV (path,rule,label; or path and a column per rule) or JSON lines with the same keys;
with `question` in place of `rule` they are about one question. CALIBRATION.md has the rest.

exit status: 0 a calibration was written; 2 an error stopped it; 130 stopped by Ctrl-C, and the same
command goes on where it was.
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "calibrate",
        help="fit probabilities, thresholds and doubt to your own labels",
        description="Fits, for each rule, probabilities, a threshold and the interval in which "
        "nothing is decided to labels of your own pictures. `screen --calibration` applies them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "root",
        nargs="?",
        metavar="PICTURES_ROOT",
        help="the folder that paths of the labels begin in (default: the one of the labels)",
    )
    parser.add_argument("--labels", required=True, metavar="FILE", help="what people say")
    parser.add_argument("--out", required=True, metavar="FILE.json", help="the calibration")
    add_judge(parser)
    parser.add_argument(
        "--scores",
        metavar="FILE.jsonl",
        help="what the judge says: rows of `screen --out` are read from here, pictures without one "
        "are judged and added (default: beside --out, ending in .scores.jsonl)",
    )
    parser.add_argument(
        "--aim",
        default="f1",
        metavar="AIM",
        help="of the threshold: precision=0.95, recall=0.9, f1, f2 (default: f1)",
    )
    parser.add_argument(
        "--point",
        action="store_true",
        help="meet the aim by the point estimate, not by its lower bound",
    )
    parser.add_argument(
        "--alpha",
        type=_share,
        default=0.15,
        metavar="SHARE",
        help="of wrong decisions, outside the undecided interval (default: 0.15)",
    )
    parser.add_argument(
        "--delta",
        type=_share,
        default=0.1,
        metavar="PROBABILITY",
        help="that a bound does not hold (default: 0.1)",
    )
    parser.add_argument(
        "--per-question",
        action="store_true",
        help="fit questions with labels of their own first, by half of the pictures that have some",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all)")
    return parser


def run(args: argparse.Namespace) -> int:
    from edgejudge.bundle import Bundle
    from edgejudge.calibrating.label_file import read_labels
    from edgejudge.calibrating.labelled import Lookup, check_classes, failures, join
    from edgejudge.calibrating.recorded import read_recorded
    from edgejudge.calibrating.thresholds import Aim
    from edgejudge.evaluation.extra import require
    from edgejudge.judge import default_bundle
    from edgejudge.models.prompt import Prompts
    from edgejudge.plan import make_plan

    require("scipy", "sklearn")  # now, and not when every picture has been judged
    aim = Aim.parse(args.aim, bound=not args.point)
    out = Path(args.out)
    scores = Path(args.scores) if args.scores else out.with_suffix(".scores.jsonl")
    if out.exists():
        raise InputError("exists", f"{out} is there already; give another --out or remove it")
    for file in (out, scores):
        if not file.parent.is_dir():
            raise InputError("unwritable", f"there is no folder {file.parent} to write {file} in")
    bundle = Bundle.open(default_bundle() if args.bundle is None else Path(args.bundle))
    plan = make_plan(args.policy, bundle.manifest, Prompts.of(bundle))
    if not plan.rules:
        raise InputError(
            "policy", f"policy '{plan.policy}' is judged as a whole; only rules can be calibrated"
        )
    for note in plan.notes:
        print(f"warning: {printable(note.message)}", file=sys.stderr)
    conditions = plan.conditions
    questions = {text for rule in conditions.values() for either in rule for text in either}
    labels = read_labels(args.labels, conditions, questions)
    check_classes(labels, conditions)
    rows: list[Recorded] = []
    size = 0
    if scores.exists():
        rows, size = read_recorded(scores, bundle.fingerprint, plan.sha256)
    root = args.root or os.path.dirname(args.labels) or "."
    found = Lookup(rows, root)
    if missing := [each for each in labels.pictures if found.row(each) is None]:
        _judge(args, bundle, plan, found, missing, scores, size)
    joined = join(labels, found, conditions)
    if warning := failures(joined):
        print(printable(warning), file=sys.stderr)
    calibration = _fit(args, aim, bundle, plan, joined)
    _write(out, calibration.to_bytes())
    _print(calibration, joined, out)
    return 0


def _judge(
    args: argparse.Namespace,
    bundle: "Bundle",
    plan: "Plan",
    found: "Lookup",
    pictures: Sequence[str],
    scores: Path,
    size: int,
) -> None:
    """Adds a row for each picture to `scores`, of which the first `size` bytes are whole rows."""
    from edgejudge.calibrating.labelled import all_there
    from edgejudge.calibrating.recorded import recorded
    from edgejudge.judge import Judge

    files = [found.file(each) for each in pictures]
    all_there(files, "PICTURES_ROOT")
    judge = Judge.load(args.bundle, bundle.fingerprint, threads=args.threads)
    asked = judge.plan(args.policy, method="thresholds")
    shows = sys.stderr.isatty()
    try:
        with scores.open("ab") as stream:
            if stream.tell() != size:
                stream.truncate(size)  # a row that was not finished
            if size and not scores.read_bytes().endswith(b"\n"):
                stream.write(b"\n")
            for count, verdict in enumerate(judge.stream(files, asked), 1):
                row = verdict.to_json()
                stream.write(json.dumps(row, allow_nan=False).encode() + b"\n")
                stream.flush()
                found.add(recorded(row, bundle.fingerprint, plan.sha256))
                if shows:
                    print(f"\r{count}/{len(files)} judged", end="", file=sys.stderr, flush=True)
    except OSError as error:
        raise InputError(
            "unwritable", f"{scores} cannot be written: {error.strerror or error}"
        ) from None
    finally:
        if shows:
            print("\r\x1b[K", end="", file=sys.stderr)


def _fit(
    args: argparse.Namespace, aim: "Aim", bundle: "Bundle", plan: "Plan", joined: "Joined"
) -> "Calibration":
    from edgejudge.calibrating.rules import Aimed, calibrate
    from edgejudge.calibration_records import FittedOnRecord

    if not joined.rules:
        raise InputError(
            "labels",
            f"none of {len(joined.not_judged)} labelled pictures could be judged"
            if joined.not_judged
            else f"labels {args.labels} settle no rule; label a rule, or all its questions",
        )
    aimed = Aimed(aim, args.alpha, args.delta, args.per_question)
    fitted_on = FittedOnRecord(joined.pictures, len(joined.not_judged), joined.repeated)
    return calibrate(joined.rules, bundle.manifest, plan, fitted_on, aimed)


def _write(path: Path, data: bytes) -> None:
    """All of it or nothing."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        raise InputError("unwritable", f"{path} cannot be written: {error.strerror}") from None


def _print(calibration: "Calibration", joined: "Joined", out: Path) -> None:
    from edgejudge.calibrating.report import draw, nearest, notes

    draw(calibration, sys.stdout)
    for line in notes(calibration):
        print(printable(line), file=sys.stderr)
    for rule, paths in nearest(calibration, joined.unlabelled).items():
        print(f"{rule}: label next {', '.join(map(printable, paths))}", file=sys.stderr)
    fitted = calibration.record.fitted_on
    print(
        f"calibration {calibration.short_id} of {len(calibration.record.rules)} rules by "
        f"{fitted.pictures} pictures is in {out}; screen with --calibration {out}",
        file=sys.stderr,
    )


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got '{text}'")
    return value
