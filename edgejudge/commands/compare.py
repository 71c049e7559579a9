"""`edgejudge compare` and `rank`: which of two pictures or texts is the better, and all in order.

Takes the parsed arguments; gives the exit code: 0 when a result was produced, 2 when none was.
"""

import argparse
import sys
from typing import Any

from edgejudge.commands.answer_rows import EPILOG, add_common, listed, load, ms, number, one
from edgejudge.commands.arguments import positive
from edgejudge.errors import InputError

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    compare: argparse.ArgumentParser = subparsers.add_parser(
        "compare",
        help="two pictures, or two answers about pictures, against each other",
        description="Compares two pictures in both orders; with --instruction and --answers two "
        "texts about the pictures that are given, or about none.",
        epilog=EPILOG,
    )
    compare.add_argument("paths", nargs="*", metavar="PATH", help="a picture")
    compare.add_argument("--criterion", metavar="TEXT", help="what a picture is, like 'is sharper'")
    compare.add_argument("--instruction", metavar="TEXT", help="what the answers are to")
    compare.add_argument("--answers", nargs=2, metavar=("A", "B"), help="two texts to compare")
    _add_epsilon(compare)
    add_common(compare, "{criterion}, and of answers {instruction}, {a} and {b}")

    rank: argparse.ArgumentParser = subparsers.add_parser(
        "rank",
        help="pictures by how well a criterion fits them",
        description="Ranks pictures: by comparing them in pairs, or by asking each for yes.",
        epilog=EPILOG,
    )
    rank.add_argument("paths", nargs="+", metavar="PATH", help="a picture or a folder")
    rank.add_argument(
        "--criterion",
        required=True,
        metavar="TEXT",
        help="of pairs what a picture is, like 'is sharper'; of yes a condition, like 'a cat'",
    )
    rank.add_argument(
        "--method", choices=("pairs", "yes"), default="pairs", help="default: pairs, in both orders"
    )
    rank.add_argument(
        "--pairs", type=positive, metavar="N", help="compare so many pairs (default: all)"
    )
    _add_epsilon(rank)
    add_common(rank, "{criterion}")


def _add_epsilon(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--epsilon",
        type=_epsilon,
        metavar="P",
        help="how far apart two probabilities of a tie may be (default: 0.02)",
    )


def _epsilon(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 0.5:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 0.5, got {text!r}")
    return value


def run(args: argparse.Namespace) -> int:
    return _compare(args) if args.command == "compare" else _rank(args)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    options = {"wording": args.wording, "timeout": args.timeout}
    return options if args.epsilon is None else {**options, "epsilon": args.epsilon}


def _compare(args: argparse.Namespace) -> int:
    texts = args.answers is not None
    if texts != (args.instruction is not None):
        raise InputError("usage", "two texts need both --instruction and --answers")
    if not texts and (len(args.paths) != 2 or args.criterion is None):
        raise InputError("usage", f"give two pictures and --criterion, got {len(args.paths)}")
    judge, options = load(args), _options(args)
    if texts:
        if args.criterion is not None:
            options["criterion"] = args.criterion
        a, b = args.answers
        found = judge.compare_answers(args.paths, args.instruction, a, b, **options)
    else:
        first, second = args.paths
        found = judge.compare(first, second, args.criterion, **options)
    table = [
        [f"{order.first} first", order.says, number(order.probability_a), number(order.mass), ""]
        for order in found.orders
    ]
    gap = f"gap {found.gap:.3f}"
    table.append(["both", found.winner, number(found.probability_a), gap, ms(found)])
    return one(args, found, ("order", "winner", "P(a)", "mass", "ms"), table)


def _rank(args: argparse.Namespace) -> int:
    if args.pairs is not None and args.method == "yes":
        raise InputError("usage", "--pairs is for the method that compares pairs")
    files = listed(args.paths)
    judge = load(args)
    found = judge.rank(
        files, args.criterion, method=args.method, pairs=args.pairs, **_options(args)
    )
    table = [[str(each.rank), number(each.score), each.image.path or ""] for each in found.ranked]
    table += [["", "failed", f"{each.path}: {each.error.message}"] for each in found.unranked]
    code = one(args, found, ("rank", "score", "path"), table)
    pairs = ""
    if found.method == "pairs":
        pairs = (
            f", {len(found.pairs)} of {found.possible_pairs} pairs compared, "
            f"{found.inconclusive} inconclusive, order gap {found.mean_gap:.3f} on average"
        )
    ties = sum(len(group) > 1 for group in found.groups)
    print(
        f"{len(found.ranked)} ranked, {len(found.unranked)} failed, {ties} groups of ties{pairs}",
        file=sys.stderr,
    )
    return code
