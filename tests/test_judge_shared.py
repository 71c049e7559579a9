"""One judge, many callers: threads, an event loop, batches, and prefixes that are kept.

On a real tiny bundle; verdicts must not depend on who else asks, or on what was kept.
"""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgejudge import Judge, Policy
from edgejudge.fidelity import export_bundle
from edgejudge.prefix_cache import PrefixCache
from edgejudge.verdict import RuleVerdict, Verdict
from test_judge import POLICY
from tiny import make_card, make_checkpoint

KITCHEN = Policy.from_yaml(POLICY)
OTHER = Policy.from_yaml(POLICY.replace("kitchen", "other").replace("a dog", "a harp"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("shared")
    checkpoint = make_checkpoint(
        folder / "checkpoint", card=make_card(), grid_of_tiles=2, vision_layers=1, text_layers=2
    )
    export_bundle(checkpoint, folder / "bundle", recipe="exact", policies=[KITCHEN.record()])
    return folder / "bundle"


@pytest.fixture
def judge(bundle: Path) -> Judge:
    return Judge.load(bundle, threads=1)


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    sizes = [(40, 60), (90, 50), (64, 64)]
    return [
        Image.fromarray(rng.integers(0, 256, (*sizes[i % 3], 3), np.uint8)) for i in range(count)
    ]


def rules(verdicts: list[Verdict]) -> list[tuple[RuleVerdict, ...]]:
    assert all(v.error is None for v in verdicts), [v.error for v in verdicts]
    return [v.rules for v in verdicts]


def alone(bundle: Path, images: list[Image.Image], policy: Policy = KITCHEN) -> list[Verdict]:
    """What a judge says that keeps nothing and is asked by nobody else, one picture at a time."""
    judge = Judge.load(bundle, threads=1, prefix_cache_bytes=0)
    return [judge.screen(image, policy) for image in images]


def test_a_kept_prefix_gives_the_same_verdict(bundle: Path, judge: Judge) -> None:
    (image,) = pictures(1)
    first, again, under_another = (
        judge.screen(image, KITCHEN),
        judge.screen(image, KITCHEN),
        judge.screen(image, OTHER),
    )
    assert [v.prefix_cache for v in (first, again, under_another)] == ["miss", "hit", "hit"]
    assert rules([first, again]) == rules(alone(bundle, [image] * 2))
    assert rules([under_another]) == rules(alone(bundle, [image], OTHER))
    assert first.reused_tokens == 0 and again.reused_tokens > 20
    assert {"vision", "prefill"} <= set(first.stages_ms)
    assert not {"preprocess", "vision", "prefill"} & set(again.stages_ms)
    (none,) = alone(bundle, [image])
    assert (none.prefix_cache, none.reused_tokens) == ("off", 0)
    assert again.to_json()["prefix_cache"] == "hit"


def test_one_changed_pixel_misses(judge: Judge) -> None:
    (image,) = pictures(1)
    judge.screen(image, KITCHEN)
    pixels = np.asarray(image).copy()
    pixels[-1, -1, 2] ^= 1
    assert judge.screen(pixels, KITCHEN).prefix_cache == "miss"
    turned = np.asarray(image).reshape(60, 40, 3)  # the same bytes in another shape
    assert judge.screen(turned, KITCHEN).prefix_cache == "miss"
    assert judge.screen(image, KITCHEN).prefix_cache == "hit"


def test_the_system_prompt_is_computed_once(bundle: Path) -> None:
    judge = Judge.load(bundle, threads=1, prefix_cache_bytes=0)
    first, second = (judge.screen(image, KITCHEN) for image in pictures(2))
    head = len(judge.bundle.manifest.prompt.head)
    assert (first.reused_tokens, second.reused_tokens) == (0, head) and head > 0


def test_language_priors_are_compiled_or_computed_once_and_kept(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "kept"
    judge = Judge.load(bundle, threads=1, prefix_store=store)
    (image,) = pictures(1)
    before = judge.screen(image, OTHER)
    compiled = judge.language_priors(KITCHEN)
    record = judge.bundle.manifest.policies[0]
    assert compiled == {
        c.text: c.language_prior for r in record.rules for e in r.conditions for c in e
    }
    engine: Any = judge.engine
    made = judge.language_priors(OTHER)
    assert set(made) - set(compiled) == {"a harp"}
    prompt = judge._prompts.blind_ids("a harp")
    (alone,) = engine.label_probabilities(engine.score_blind([prompt], packed=False))
    assert made["a harp"] == pytest.approx(alone, abs=1e-5) and 0 < alone < 1
    # What is computed agrees with what the export's reference computed.
    texts = list(compiled)
    blind = engine.score_blind([judge._prompts.blind_ids(text) for text in texts])
    assert np.allclose(engine.label_probabilities(blind), list(compiled.values()), atol=1e-4)
    assert judge.screen(image, OTHER).rules == before.rules, "the cache was emptied in between"

    def fail(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(type(engine), "score_blind", fail)
    assert judge.language_priors(OTHER) == made
    assert Judge.load(bundle, threads=1, prefix_store=store).language_priors(OTHER) == made
    monkeypatch.undo()
    for file in store.iterdir():
        data = bytearray(file.read_bytes())
        data[-2] ^= 1
        file.write_bytes(data)
    again = Judge.load(bundle, threads=1, prefix_store=store).language_priors(OTHER)
    assert again == made, "a damaged entry is computed again"


def test_the_disk_store_serves_another_process(bundle: Path, tmp_path: Path) -> None:
    (image,) = pictures(1)
    store = tmp_path / "prefixes"
    first = Judge.load(bundle, threads=1, prefix_store=store).screen(image, KITCHEN)
    again = Judge.load(bundle, threads=1, prefix_store=store).screen(image, KITCHEN)
    assert (first.prefix_cache, again.prefix_cache) == ("miss", "hit")
    assert first.rules == again.rules
    other = Judge.load(bundle, threads=1, prefix_store=store).screen(pictures(2)[1], KITCHEN)
    head = len(Judge.load(bundle).bundle.manifest.prompt.head)
    assert (first.reused_tokens, other.reused_tokens) == (0, head), "the system prompt is kept too"
    for file in store.iterdir():
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    damaged = Judge.load(bundle, threads=1, prefix_store=store).screen(image, KITCHEN)
    assert (damaged.prefix_cache, damaged.reused_tokens) == ("miss", 0)
    assert damaged.rules == first.rules


def test_a_prefix_that_left_the_cache_is_computed(bundle: Path) -> None:
    class Forgetful(PrefixCache):
        def __contains__(self, key: str) -> bool:
            return True

    plain = Judge.load(bundle, threads=1)
    judge = Judge(plain.bundle, plain.engine, prefix_cache=Forgetful(1 << 20))
    images = pictures(2)
    assert rules([judge.screen(i, KITCHEN) for i in images]) == rules(alone(bundle, images))


def test_threads_get_what_one_caller_gets(bundle: Path, judge: Judge) -> None:
    images = pictures(6)
    policies = [KITCHEN, OTHER]
    expected = {
        (i, p): rules(alone(bundle, [image], policy))[0]
        for i, image in enumerate(images)
        for p, policy in enumerate(policies)
    }
    jobs = [(i, p) for _ in range(3) for i in range(len(images)) for p in range(2)]
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda job: judge.screen(images[job[0]], policies[job[1]]), jobs))
    assert rules(done) == [expected[job] for job in jobs]
    assert all(set(v.stages_ms) >= {"decode", "score", "decide"} for v in done)


def test_a_batch_keeps_its_order_and_runs_one_ahead(bundle: Path, judge: Judge) -> None:
    images = pictures(5)
    taken: list[int] = []

    def source() -> Iterator[Image.Image]:
        for number, image in enumerate(images):
            taken.append(number)
            yield image

    stream = judge.stream(source(), KITCHEN)
    assert taken == [], "nothing is read before the first verdict is asked for"
    found = []
    for verdict in stream:
        found.append(verdict)
        assert len(taken) <= len(found) + 1
    assert rules(found) == rules(alone(bundle, images))


def test_a_verdict_does_not_wait_for_the_next_picture(judge: Judge) -> None:
    arrived = threading.Event()

    def camera() -> Iterator[Image.Image]:
        first, second = pictures(2)
        yield first
        assert arrived.wait(30)
        yield second

    stream = judge.stream(camera(), KITCHEN)
    assert next(stream).error is None
    arrived.set()
    assert next(stream).error is None
    assert next(stream, None) is None


def test_a_program_may_end_in_the_middle_of_a_batch() -> None:
    """With the next picture in the vision graph: a thread must not outlive the interpreter. The
    judge that ships, since a tiny graph is over too soon.
    """
    script = """if True:
        import sys, threading
        import numpy as np
        from edgejudge import Judge
        judge = Judge.load()
        session = judge.engine.stages.session("vision", trace=judge.engine.trace)
        inside, run, calls = threading.Event(), session._inner.run, []
        class Slow:
            def run(self, *args):
                calls.append(1)
                for _ in range(20 if len(calls) > 1 else 0):
                    inside.set()
                    run(*args)
                return run(*args)
        object.__setattr__(session, "_inner", Slow())
        picture = np.zeros((1080, 1080, 3), np.uint8)
        stream = judge.stream([picture + i for i in range(9)])
        print(next(stream).error)
        assert inside.wait(30)
        if sys.argv[1] == "raise":
            raise KeyboardInterrupt
    """
    for how in ("end", "raise"):
        done = subprocess.run([sys.executable, "-c", script, how], capture_output=True, text=True)
        assert done.stdout == "None\n", done.stderr
        assert done.returncode == (0 if how == "end" else -signal.SIGINT), done.stderr
        assert "terminate" not in done.stderr and "onnxruntime" not in done.stderr


def test_what_the_source_raises_arrives(judge: Judge) -> None:
    def broken() -> Iterator[Image.Image]:
        yield pictures(1)[0]
        raise OSError("the camera is gone")

    stream = judge.stream(broken(), KITCHEN)
    assert next(stream).error is None
    with pytest.raises(OSError, match="the camera is gone"):
        next(stream)
    assert judge.screen(pictures(1)[0], KITCHEN).error is None


def test_a_timeout_is_a_failure_and_the_judge_goes_on(bundle: Path, judge: Judge) -> None:
    (image,) = pictures(1)
    late = judge.screen(image, KITCHEN, timeout=1e-6)
    assert late.verdict is None and late.error is not None and late.error.code == "timeout"
    assert late.rules == () and not late.placement
    assert rules([judge.screen(image, KITCHEN)]) == rules(alone(bundle, [image]))
    assert judge.screen(image, KITCHEN, timeout=60).error is None
    with pytest.raises(ValueError, match="positive number"):
        judge.stream([image], KITCHEN, timeout=0)


def test_interrupted_anywhere_leaves_the_engine_usable(bundle: Path) -> None:
    """The n-th step of a request raises, for every n until a request has no n-th step."""
    images = pictures(2)
    expected = rules(alone(bundle, images))
    judge = Judge.load(bundle, threads=1, prefix_cache_bytes=0)
    judge.engine.chunk = 8  # type: ignore[attr-defined]
    judge.engine.pack_tokens = 4  # type: ignore[attr-defined]
    for steps in range(1, 200):
        left = steps

        def step() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise MemoryError

        judge.engine.prefill([1, 50, 51])  # something else lies in the cache
        made = judge._way.prepare(images[steps % 2], _Step(step))
        stop = _Step(step)
        verdict = judge._way.finish(made, judge.plan(KITCHEN), stop, judge._turns)
        if verdict.error is None:
            break
        assert verdict.error.code == "out_of_memory"
        again = judge.screen(images[steps % 2], KITCHEN)
        close(again.rules, expected[steps % 2])
    assert 5 < steps < 199


class _Step:
    """A Stop that counts."""

    def __init__(self, check: object) -> None:
        self.check = check

    def wait(self, event: threading.Event) -> None:
        event.wait()


def close(found: tuple[RuleVerdict, ...], expected: tuple[RuleVerdict, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert abs(one.probability - other.probability) < 1e-5
        assert replace(one, probability=0, conditions=()) == replace(
            other, probability=0, conditions=()
        )


def test_an_event_loop(bundle: Path, judge: Judge) -> None:
    images = pictures(4)

    async def all_of_them() -> list[Verdict]:
        return list(await asyncio.gather(*(judge.screen_async(i, KITCHEN) for i in images)))

    assert rules(asyncio.run(all_of_them())) == rules(alone(bundle, images))


def test_a_cancelled_task_gives_its_turn_back(bundle: Path, judge: Judge) -> None:
    (image,) = pictures(1)
    release, inside = threading.Event(), threading.Event()
    score = judge.engine.score

    def held(*args: object) -> object:
        inside.set()
        assert release.wait(30)
        return score(*args)  # type: ignore[arg-type]

    judge.engine = judge._way._engine = _Wrapped(judge.engine, held)  # type: ignore[assignment]

    async def cancel_one() -> None:
        first = asyncio.create_task(judge.screen_async(image, KITCHEN))
        await asyncio.to_thread(inside.wait, 30)
        second = asyncio.create_task(judge.screen_async(image, KITCHEN))
        while len(judge._turns._queue) < 2:
            await asyncio.sleep(0.001)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        end = time.monotonic() + 30
        while len(judge._turns._queue) > 1:
            assert time.monotonic() < end
            await asyncio.sleep(0.001)
        release.set()
        assert (await first).error is None

    asyncio.run(cancel_one())
    assert rules([judge.screen(image, KITCHEN)]) == rules(alone(bundle, [image]))


class _Wrapped:
    """An engine whose `score` is another."""

    def __init__(self, inner: object, score: object) -> None:
        self.__dict__.update(_inner=inner, score=score)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._inner, name, value)
