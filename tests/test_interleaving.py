"""Passes and views of one request on several devices at once: the same numbers, in any timing.

The graphs of the gpu and npu targets run on the CPU provider here, as devices of their own.
"""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import handover_story as told
from edgejudge.bundle import Bundle
from edgejudge.runtime import Engine
from edgejudge.runtime.executor import Executor
from edgejudge.runtime.fleet import Fleet
from edgejudge.runtime.scheduling import Limits
from edgejudge.runtime.stages import Stages

PLACES = (
    "vision=npu:cpu,decoder.0=gpu:cpu,writer.0=gpu:cpu",
    "vision=gpu:cpu,decoder.0=npu:cpu,decoder.1=gpu:cpu,writer.0=npu:cpu,writer.1=gpu:cpu",
    "decoder.1=npu:cpu,writer.1=npu:cpu",
)
Act = Callable[[Any, tuple[Any, ...]], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return told.make_folder(tmp_path_factory.mktemp("interleaving"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    """Small passes and groups of views, so that there are many of them."""
    found = Engine.open(Bundle.open(folder), threads=1)
    found.chunk, found.pack_tokens = 5, 6
    return found


@pytest.fixture(scope="module")
def asked(engine: Engine) -> told.Asked:
    return told.make_asked(engine)


@pytest.fixture(scope="module")
def in_order(engine: Engine, asked: told.Asked) -> dict[str, told.Story]:
    """Of each place the numbers with everything one after another, encoded first."""
    found, ours = {}, engine.stages.executor
    engine.stages.executor = Executor(Limits(chunks=1))
    for place in PLACES:
        found[place] = told.story(engine, asked, [told.fleet(engine.bundle, place)])
    engine.stages.executor, engine.fleet = ours, Fleet()
    return found


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Act]]:
    """What is done before each view group and each pass through a part, in its thread."""
    acts: list[Act] = []
    monkeypatch.setattr("edgejudge.runtime.stages.PATCHES", 1)  # a view in each group
    for name in ("encode", "part"):
        own = getattr(Stages, name)

        def acting(stages: Stages, *args: Any, own: Any = own, name: str = name) -> Any:
            for act in acts:
                act(name, args)
            return own(stages, *args)

        monkeypatch.setattr(Stages, name, acting)
    yield acts


@pytest.mark.parametrize("place", PLACES)
def test_timing_changes_nothing(
    engine: Engine,
    asked: told.Asked,
    in_order: dict[str, told.Story],
    place: str,
    before: list[Act],
) -> None:
    devices = told.fleet(engine.bundle, place)

    @settings(max_examples=12, deadline=None)
    @given(st.lists(st.sampled_from([0.0, 0.0, 0.001, 0.004]), min_size=1, max_size=30))
    def any_timing(waits: list[float]) -> None:
        left = iter(waits)
        before[:] = [lambda name, args: time.sleep(next(left, 0.0))]
        for views in (False, True):
            found = told.story(engine, asked, [devices], views=views)
            for key, numbers in in_order[place].items():
                assert np.array_equal(found[key], numbers), key

    try:
        any_timing()
    finally:
        engine.fleet = Fleet()


def test_parts_on_two_devices_work_on_two_passes_at_once(
    engine: Engine, asked: told.Asked, before: list[Act]
) -> None:
    """The first part begins with a pass while the second one is at the pass before, or waits."""
    engine.fleet = told.fleet(engine.bundle, PLACES[2])
    visual = engine.encode_image(asked.feeds)
    meet, met = threading.Barrier(2, timeout=20), []
    begun = {0: 0, 1: 0}

    def wait(name: str, args: tuple[Any, ...]) -> None:
        part = args[1].index
        begun[part] += 1
        if (part, begun[part]) in ((0, 2), (1, 1)):
            meet.wait()
            met.append(part)

    before.append(wait)
    engine.prefill(asked.ids, visual)
    assert sorted(met) == [0, 1]
    engine.fleet = Fleet()


def test_views_are_encoded_while_the_first_ones_are_prefilled(
    engine: Engine, asked: told.Asked, before: list[Act]
) -> None:
    engine.fleet = told.fleet(engine.bundle, "vision=npu:cpu")
    assert engine.overlaps
    meet, met, seen = threading.Barrier(2, timeout=20), [], []

    def wait(name: str, args: tuple[Any, ...]) -> None:
        seen.append(name)
        last_view = name == "encode" and seen.count("encode") == len(views.found)
        if last_view or (name == "part" and seen.count("part") == 1):
            meet.wait()
            met.append(name)

    before.append(wait)
    views = engine.views(asked.feeds)
    engine.prefill(asked.ids, views)
    assert sorted(met) == ["encode", "part"] and not views.missing
    engine.fleet = Fleet()


def test_the_next_picture_is_encoded_while_this_one_is_asked(
    engine: Engine, asked: told.Asked, before: list[Act]
) -> None:
    engine.fleet = told.fleet(engine.bundle, "vision=gpu:cpu")
    prefix = engine.prefill(asked.ids, engine.encode_image(asked.feeds))
    meet, met = threading.Barrier(2, timeout=20), []

    def wait(name: str, args: tuple[Any, ...]) -> None:
        if name not in met:
            met.append(name)
            meet.wait()

    before.append(wait)
    ahead = threading.Thread(target=engine.encode_image, args=(asked.feeds, engine.new_trace()))
    ahead.start()
    engine.score(prefix, asked.branches)
    ahead.join(20)
    assert sorted(met) == ["encode", "part"] and not ahead.is_alive()
    engine.fleet = Fleet()


@pytest.mark.parametrize("place", PLACES)
def test_called_off_before_any_step_it_goes_on_as_if_nothing_was(
    engine: Engine,
    asked: told.Asked,
    in_order: dict[str, told.Story],
    place: str,
    before: list[Act],
) -> None:
    devices, count = told.fleet(engine.bundle, place), [0]
    before.append(lambda name, args: count.__setitem__(0, count[0] + 1))
    told.story(engine, asked, [devices])
    steps, rng = count[0], np.random.default_rng(7)
    for stop in sorted(rng.choice(steps, 12, replace=False).tolist()):
        count[0] = 0

        def maybe(name: str, args: tuple[Any, ...], stop: int = stop) -> None:
            count[0] += 1
            if count[0] == stop + 1:
                raise InterruptedError

        before[:] = [maybe]
        with pytest.raises(InterruptedError):
            told.story(engine, asked, [devices])
        before.clear()
        assert engine.stages.executor.requests == 0
        found = told.story(engine, asked, [devices])
        for key, numbers in in_order[place].items():
            assert np.array_equal(found[key], numbers), (stop, key)
    engine.fleet = Fleet()
