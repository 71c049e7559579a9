"""What is profiled: a judge asked as users ask it, or its decoder alone.

Takes words like `screen:rules=12,images=1`, a judge and pictures; gives work that may be run again
and again, each time with what came out of it. Times nothing but when the first verdict came.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgejudge.batches import BatchScorer
from edgejudge.errors import EdgeJudgeError, InputError
from edgejudge.policy import Policy, Rule
from edgejudge.profiling.pictures import drawn_pictures
from edgejudge.runtime.scheduling.workload import Workload, read_counts

if TYPE_CHECKING:
    from edgejudge.judge import Judge
    from edgejudge.verdict import Verdict

__all__ = ["KINDS", "Came", "Work", "made", "read_workload"]

# Numbers where nothing else is said; 0 rules are those of the policy.
KINDS: dict[str, dict[str, int]] = {
    "screen": {"rules": 0, "images": 1},
    "library": {"images": 64},
    "score": {"images": 1},
    "compare": {"pairs": 1},
    "rank": {"images": 4},
    "rationale": {"tokens": 96},
    "prefill": {"tokens": 512},
    "decode": {"tokens": 64, "past": 512},
}
_CROWDED, _MORE_CROWDED = "crowded", "is more crowded"
_REQUEST = "What does the picture show, and where?"
_MOST_RULES = 1024


@dataclass(frozen=True, slots=True)
class Came:
    """Out of a run: verdicts or other answers, pictures that were looked at, and the milliseconds
    until the first picture of several was judged.
    """

    answers: int = 0
    images: int = 0
    first_ms: float | None = None
    cache_hits: int = 0


@dataclass(frozen=True, slots=True)
class Work:
    """`of` says in words what a run is."""

    of: str
    run: Callable[[], Came]


def read_workload(text: str) -> Workload:
    """`KIND[:NAME=N,...]`. Raises InputError, which names what there is."""
    return Workload(*read_counts(text, KINDS))


def made(
    workload: Workload, judge: "Judge", folder: Path, policy: str, picture: Path | None
) -> Work:
    """For a judge, with pictures drawn into a folder, or this one where one is enough. Raises
    InputError for numbers that the judge cannot serve.
    """
    counts = workload.counts
    if isinstance(judge.engine, BatchScorer) and workload.kind not in ("screen", "library"):
        raise InputError(
            "memory_budget",
            f"{workload.kind} needs the whole decoder in memory; profile it without a budget",
        )
    count = {"compare": 2, "rank": counts.get("images", 0)}.get(
        workload.kind, counts.get("images", 1)
    )
    paths = [picture] if picture and count == 1 else drawn_pictures(folder, count, count == 1)
    if workload.kind in ("screen", "library"):
        return _screen(workload, judge, policy, paths)
    if workload.kind in ("prefill", "decode"):
        return _tokens(workload, judge)
    return _asked(workload, judge, paths)


def _screen(workload: Workload, judge: "Judge", policy: str, paths: Sequence[Path]) -> Work:
    rules = workload.counts.get("rules", 0)
    plan = judge.plan(_of_rules(judge, rules) if rules else policy)
    count = sum(len(c) for rule in plan.rules for c in rule.conditions)

    def run() -> Came:
        began = time.perf_counter()
        first, found = None, []
        for verdict in judge.stream(list(paths), plan):
            first = first or (time.perf_counter() - began) * 1e3
            found.append(_judged(verdict))
        hits = sum(verdict.prefix_cache == "hit" for verdict in found)
        answers = len(plan.rules) * len(paths)
        return Came(answers, len(paths), first_ms=first, cache_hits=hits)

    pictures = "a picture" if len(paths) == 1 else f"{len(paths)} pictures"
    return Work(f"verdicts on {pictures}, {count} questions each", run)


def _of_rules(judge: "Judge", count: int) -> Policy:
    """What the bundle knows, then things that nobody knows: every one of them is asked."""
    if count > _MOST_RULES:
        raise InputError("workload", f"screen:rules is {count}, at most {_MOST_RULES} are asked")
    known = [concept.name for concept in judge.bundle.manifest.concepts]
    texts = [*known, *(f"a person who holds thing number {i}" for i in range(count))][:count]
    rules = tuple(Rule(f"rule-{i}", text, "profiled", ((text,),)) for i, text in enumerate(texts))
    return Policy("profiled", str(count), rules)


def _judged(verdict: "Verdict") -> "Verdict":
    if verdict.error is not None:
        name = verdict.path or "the picture"
        raise EdgeJudgeError(f"{name}: {verdict.error.message}; give another picture")
    return verdict


def _asked(workload: Workload, judge: "Judge", paths: Sequence[Path]) -> Work:
    count, images = len(paths), list(paths)

    def score() -> Came:
        for image in images:
            judge.score(image, _CROWDED)
        return Came(count, count)

    def compare() -> Came:
        for _ in range(workload.counts["pairs"]):
            judge.compare(images[0], images[1], _MORE_CROWDED)
        return Came(workload.counts["pairs"], 2 * workload.counts["pairs"])

    def rank() -> Came:
        judge.rank(list[Any](images), _MORE_CROWDED)
        return Came(1, count)

    def rationale() -> Came:
        judge.write(images[0], _REQUEST, max_tokens=workload.counts["tokens"])
        return Came(1, 1)

    if workload.kind == "rank" and count < 2:
        raise InputError("workload", "rank:images is 1, it takes at least 2 to rank")
    runs: dict[str, tuple[str, Callable[[], Came]]] = {
        "score": ("a score" if count == 1 else f"scores of {count} pictures", score),
        "compare": ("comparisons of two pictures, in both orders", compare),
        "rank": (f"{count} pictures in order, every two compared both ways", rank),
        "rationale": (f"a text of at most {workload.counts.get('tokens')} tokens", rationale),
    }
    return Work(*runs[workload.kind])


def _tokens(workload: Workload, judge: "Judge") -> Work:
    """By the engine itself, one text token again and again: numbers mean nothing here."""
    engine: Any = judge.engine
    tokens, past = workload.counts["tokens"], workload.counts.get("past", 0)
    room = min(max(engine._cache.buckets), engine.spec.text.max_positions)
    if tokens + past > room:
        raise InputError(
            "workload",
            f"{workload} needs {tokens + past} tokens in a row, this bundle holds {room}",
        )
    ids = [(*judge.bundle.manifest.prompt.head, 1)[0]]
    begun: list[Any] = []  # the prefix that is written behind

    def prefill() -> Came:
        engine.trace = engine.new_trace()
        engine.prefill(ids * tokens)
        return Came()

    def decode() -> Came:
        if not begun:
            begun.append(engine.prefill(ids * past))
        before = begun[0]
        engine.trace = engine.new_trace()
        for _ in range(tokens):
            before, hidden = engine.step(ids[0], before)
            engine.full_logits(hidden[None])
        return Came()

    if workload.kind == "prefill":
        return Work(f"a prompt of {tokens} tokens", prefill)
    return Work(f"{tokens} tokens written behind {past} others", decode)
