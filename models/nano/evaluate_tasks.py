"""How well nano counts, relates, compares, scores and explains, with N and intervals.

Takes a bundle, run by edgejudge as users run it, and drawn scenes of the test split; prints one
JSON document. Does not know how the model was trained.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tasks
from concepts import CONCEPTS
from evaluate import bootstrap, size_of
from metrics import auroc
from numpy.typing import NDArray
from scene import Scene, Stage, ensemble
from scipy.stats import spearmanr

from edgejudge.judge import Judge
from edgejudge.reasoning import SCHEMA

COUNTS, RELATIONS, PAIRS = 3, 6, 2  # questions a picture, or pair
YES_NO = ("yes", "no")
MOST_TOKENS = 80


def scenes(count: int, args: argparse.Namespace, seed: int) -> Iterator[tuple[Scene, Any]]:
    """Test pictures of the sizes users send, every other one as they send it, the rest made for
    what relates; with a generator for what is asked of each.
    """
    stage = Stage("test", args.sprites, args.photos)
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        size = size_of(rng)
        show = ensemble(rng) if i % 2 else None
        yield stage.scene(rng, size=size, show=show), rng


class Rows:
    """What was found, by kind, with the picture it belongs to."""

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[int, float, float]]] = defaultdict(list)

    def add(self, kind: str, picture: int, found: float, truth: float) -> None:
        self._rows[kind].append((picture, found, truth))

    def figure(
        self, statistic: Callable[[NDArray[Any], NDArray[Any]], float], *kinds: str
    ) -> dict[str, object]:
        """A statistic of (found, truth) with N and its 95 % interval over pictures."""
        rows = np.array([row for kind in kinds for row in self._rows[kind]])
        pictures, index = np.unique(rows[:, 0], return_inverse=True)
        members = [np.flatnonzero(index == i) for i in range(len(pictures))]

        def of(chosen: NDArray[Any]) -> float:
            some = rows[np.concatenate([members[i] for i in chosen])]
            return statistic(some[:, 1], some[:, 2])

        whole = statistic(rows[:, 1], rows[:, 2])
        interval = bootstrap(of, len(pictures))
        return {"value": round(whole, 4), "95": interval, "n": len(rows), "pictures": len(pictures)}


def share_right(found: NDArray[Any], truth: NDArray[Any]) -> float:
    return float((found == truth).mean())


def rank_correlation(found: NDArray[Any], truth: NDArray[Any]) -> float:
    return float(spearmanr(found, truth).statistic)


def ask_alone(judge: Judge, scene: Scene, rng: Any, picture: int, rows: Rows, cut: float) -> None:
    """All that is asked of one picture."""
    image, items, shown = np.asarray(scene.image), scene.items, scene.present
    for one in tasks.counts(rng, items, shown, COUNTS):
        if one.kind == "count":
            labels = [str(n) for n in range(tasks.MOST + 1)]
            probabilities = list(judge.ask(image, one.request, labels).probabilities.values())
            times = int(one.answer)
            rows.add("count right", picture, int(np.argmax(probabilities)), times)
            for least in range(1, tasks.MOST + 1):
                rows.add(f"count >= {least}", picture, sum(probabilities[least:]), times >= least)
        else:
            p = judge.ask(image, one.request, YES_NO).probabilities["yes"]
            rows.add(one.kind, picture, p, one.answer == " Yes")
    for one in tasks.relations(rng, items, shown, RELATIONS):
        p = judge.ask(image, one.request, YES_NO).probabilities["yes"]
        rows.add(one.kind, picture, p, one.answer == " Yes")
    rows.add("crowded", picture, judge.score(image, "crowded").value, tasks.level(items))
    wanted = tasks.reason(rng, items, shown)
    written = judge.write(image, wanted.request, schema=SCHEMA, max_tokens=MOST_TOKENS)
    truth = json.loads(wanted.answer)
    try:
        document = json.loads(written.text)
        rating, why = document["rating"], document["rationale"]
        rows.add("rationale valid", picture, float(rating in ("Yes", "No")), 1.0)
    except (ValueError, KeyError, TypeError):
        rows.add("rationale valid", picture, 0.0, 1.0)
        return
    question = wanted.request.removesuffix(tasks.REASON.removeprefix("{question}"))
    label = judge.ask(image, question, YES_NO).probabilities["yes"] >= cut
    rows.add("rationale agrees", picture, float(rating == "Yes"), float(label))
    rows.add("rationale right", picture, float(rating == truth["rating"]), 1.0)
    rows.add("rationale ends", picture, float(written.finish == "end"), 1.0)
    named = [i for i, c in enumerate(CONCEPTS) if f"shows {c.phrase}." in why]
    there = {i.concept for i in items if i.concept >= 0}
    honest = bool(named) and named[0] in there if there else "no sticker" in why
    rows.add("rationale names what is there", picture, float(honest), 1.0)


def ask_pair(judge: Judge, first: Scene, second: Scene, rng: Any, number: int, rows: Rows) -> None:
    asked = tasks.pairs(rng, (first.items, first.present), (second.items, second.present), PAIRS)
    before, after = tasks.PAIR.split("{criterion}")
    for one in asked:
        criterion = one.request.removeprefix(before).removesuffix(after)
        found = judge.compare(np.asarray(first.image), np.asarray(second.image), criterion)
        rows.add(one.kind, number, float(found.probability_a >= 0.5), float(one.answer == " A"))
        rows.add("order-consistent", number, float(found.winner != "inconclusive"), 1.0)


def report(rows: Rows) -> dict[str, object]:
    times = [f"count >= {n}" for n in range(1, tasks.MOST + 1)]
    forms = ("more than one", "exactly one")
    relations = (*tasks.RELATIONS, "relation to nothing")
    pairs = ("pair crowded", "pair shows")
    return {
        "count_right": rows.figure(share_right, "count right"),
        "count_auroc": {k: rows.figure(auroc, k) for k in (*times, *forms)},
        "count_auroc_pooled": rows.figure(auroc, *times, *forms),
        "relation_auroc": {k: rows.figure(auroc, k) for k in tasks.RELATIONS},
        "relation_auroc_pooled": rows.figure(auroc, *relations),
        "crowded_spearman": rows.figure(rank_correlation, "crowded"),
        "pair_accuracy": rows.figure(share_right, *pairs),
        "pair_accuracy_by_kind": {k: rows.figure(share_right, k) for k in pairs},
        "order_consistency": rows.figure(share_right, "order-consistent"),
        "rationale": {
            k: rows.figure(share_right, f"rationale {k}")
            for k in ("valid", "ends", "agrees", "right", "names what is there")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("bundle"))
    parser.add_argument("--sprites", type=Path, default=Path("work/sprites.npz"))
    parser.add_argument("--photos", type=Path, default=Path("work/photos.npz"))
    parser.add_argument("--count", type=int, default=400, help="pictures")
    parser.add_argument("--pairs", type=int, default=200, help="pairs of pictures")
    parser.add_argument("--cut", type=float, default=0.5, help="P(yes) from which a thing is there")
    args = parser.parse_args()
    began, rows = time.time(), Rows()
    judge = Judge.load(args.bundle)
    for picture, (scene, rng) in enumerate(scenes(args.count, args, 43)):
        ask_alone(judge, scene, rng, picture, rows, args.cut)
    drawn = scenes(2 * args.pairs, args, 47)
    for number in range(args.pairs):
        (first, rng), (second, _) = next(drawn), next(drawn)
        ask_pair(judge, first, second, rng, number, rows)
    result = {
        "bundle": judge.bundle.manifest.name,
        "fingerprint": judge.bundle.fingerprint,
        "machine": platform.processor() or platform.machine(),
        **report(rows),
        "minutes": round((time.time() - began) / 60, 1),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
