"""`edgejudge ask`, `score` and `checklist`: pictures in, labels, scores or met criteria out.

Takes the parsed arguments; gives the exit code: 0 when a result was produced, 2 when none was.
Results go to stdout, a row or a JSON line for each picture.
"""

import argparse
from typing import Any

from edgejudge.commands.answer_rows import EPILOG, add_common, add_rows, load, ms, number, rows
from edgejudge.errors import InputError

__all__ = ["add_parser", "run"]

_MOST_LABELS = 4  # in a table; --json has them all


def add_parser(subparsers: Any) -> None:
    ask: argparse.ArgumentParser = subparsers.add_parser(
        "ask",
        help="a free question with labels, about pictures or none",
        description="Tells how probable each label is as the answer to a question.",
        epilog=EPILOG,
    )
    add_rows(ask, "*")
    ask.add_argument("--question", metavar="TEXT", help="what to ask")
    kind = ask.add_mutually_exclusive_group(required=True)
    kind.add_argument("--labels", nargs="+", metavar="LABEL", help="the possible answers")
    kind.add_argument(
        "--choices",
        nargs="+",
        metavar="OPTION",
        help="options of a multiple choice, shown under each letter once",
    )
    kind.add_argument("--count", metavar="CONDITION", help="how often it is visible, from 0 to 4")
    ask.add_argument(
        "--per-token",
        action=argparse.BooleanOptionalAction,
        help="the mean of a label's log probabilities, not their sum (default: for labels of "
        "several tokens)",
    )
    add_common(ask, "{question}, and of choices {options}")

    score: argparse.ArgumentParser = subparsers.add_parser(
        "score",
        help="how much of a criterion pictures have",
        description="Scores pictures by a criterion: the expectation over ordered labels.",
        epilog=EPILOG,
    )
    add_rows(score, "+")
    by = score.add_mutually_exclusive_group(required=True)
    by.add_argument("--criterion", metavar="TEXT", help="an adjective, like crowded")
    by.add_argument("--rubric", metavar="FILE", help="a rubric, or tasks with one each, as YAML")
    score.add_argument(
        "--method",
        default="rubric",
        metavar="NAME",
        help="rubric (1 to 5, the default), reward (0 to 5), quality (good or poor), count (0 to "
        "4 times)",
    )
    score.add_argument(
        "--temperature", type=_above_zero, default=1.0, metavar="T", help="logits are divided by it"
    )
    add_common(score, "{criterion}")

    checklist: argparse.ArgumentParser = subparsers.add_parser(
        "checklist",
        help="which weighted criteria pictures meet",
        description="Asks all criteria of a checklist about each picture, packed.",
        epilog=EPILOG,
    )
    add_rows(checklist, "+")
    checklist.add_argument("--checklist", required=True, metavar="FILE", help="a YAML file")
    add_common(checklist, None)


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def run(args: argparse.Namespace) -> int:
    return {"ask": _ask, "score": _score, "checklist": _checklist}[args.command](args)


def _ask(args: argparse.Namespace) -> int:
    from edgejudge.answering.wordings import COUNT_LABELS, counting

    if (args.question is None) == (args.count is None):
        raise InputError("usage", "give --question with --labels or --choices, or --count alone")
    question, labels = args.question, args.labels or args.choices
    if args.count is not None:
        question, labels = counting(args.count), COUNT_LABELS
    judge = load(args)

    def call(images: Any) -> Any:
        return judge.ask(
            images,
            question,
            labels,
            choices=args.choices is not None,
            per_token=args.per_token,
            wording=args.wording,
            timeout=args.timeout,
        )

    def cells(found: Any) -> list[str]:
        best = sorted(found.labels, key=lambda each: -each.probability)
        shown = [f"{each.label} {each.probability:.2f}" for each in best[:_MOST_LABELS]]
        if len(best) > _MOST_LABELS:
            shown.append(f"and {len(best) - _MOST_LABELS} more")
        agreeing = f"{found.agreeing} of {found.orders}"
        return [found.label, ", ".join(shown), number(found.mass), agreeing, ms(found)]

    return rows(args, ("path", "answer", "labels", "mass", "orders", "ms"), call, cells)


def _score(args: argparse.Namespace) -> int:
    from edgejudge.answering.rubrics import rubric

    if args.rubric is None:
        given: Any = rubric(
            args.criterion, args.method, wording=args.wording, temperature=args.temperature
        )
        given.question()  # a wording that cannot be filled is told now
    else:
        from edgejudge.answering.rubric_files import read_rubric

        if args.wording or args.temperature != 1.0 or args.method != "rubric":
            raise InputError(
                "usage", "method, wording and temperature stand in the file that --rubric names"
            )
        given = read_rubric(args.rubric)
    judge = load(args)

    def cells(found: Any) -> list[str]:
        tasks = ", ".join(f"{task.name} {task.value:.2f}" for task in found.tasks)
        masses = [task.mass for task in found.tasks if task.mass is not None]
        least = number(min(masses)) if masses else ""
        return [number(found.value), number(found.normalised), tasks, least, ms(found)]

    return rows(
        args,
        ("path", "score", "from 0 to 1", "tasks", "mass", "ms"),
        lambda images: judge.score(images, given, timeout=args.timeout),
        cells,
    )


def _checklist(args: argparse.Namespace) -> int:
    from edgejudge.answering.rubric_files import read_checklist

    given = read_checklist(args.checklist)
    judge = load(args)

    def cells(found: Any) -> list[str]:
        by = {
            outcome: ", ".join(e.id for e in found.criteria if e.outcome == outcome)
            for outcome in ("met", "unmet", "uncertain")
        }
        low, high = found.between
        return [number(found.score), f"{low:.2f} to {high:.2f}", *by.values(), ms(found)]

    return rows(
        args,
        ("path", "score", "between", "met", "unmet", "uncertain", "ms"),
        lambda images: judge.checklist(images, given, timeout=args.timeout),
        cells,
    )
