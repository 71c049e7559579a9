"""Work goes from one device to another at any point, and its numbers stay what they are.

The graphs of the gpu and npu targets run on the CPU provider here, as devices of their own.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgejudge import Judge
from edgejudge.bundle import Bundle
from edgejudge.models.image import canary_image
from edgejudge.runtime import Engine
from edgejudge.runtime.engine import Prefix
from edgejudge.runtime.fleet import Fleet
from edgejudge.runtime.replica import Replica
from edgejudge.runtime.trace import Span
from handover_story import Asked, Story, fleet, make_asked, make_folder, story

EVERYWHERE = "vision={0},decoder={0},writer={0}"
# A place and the form of its graphs.
FORMS = {
    "cpu": ("cpu", ""),
    "float32": ("gpu:cpu", "float32.plain"),
    "float16": ("gpu:cpu", "float16.fused"),
    "npu": ("npu:cpu", "a16w8"),
}
# How far label logits, which reach 2, may be from the CPU's, and logits of all tokens, which reach
# 6, from its graphs for prompts. Those that it has for writing round activations to bytes.
BANDS = {"cpu": 2e-5, "float32": 2e-5, "float16": 2e-2, "npu": 2.5e-1}
WRITING = {"cpu": 3e-1, "float32": 2e-5, "float16": 1e-1, "npu": 7e-1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("handover"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEJUDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.open(Bundle.open(folder), threads=1)


@pytest.fixture(scope="module")
def asked(engine: Engine) -> Asked:
    return make_asked(engine)


@pytest.fixture
def fleets(engine: Engine) -> Iterator[dict[str, Fleet]]:
    """All stages in each form."""
    found = {}
    for name, (device, form) in FORMS.items():
        target = device.partition(":")[0]
        found[name] = fleet(engine.bundle, EVERYWHERE.format(device), {target: form})
    yield found
    engine.fleet = Fleet()


def name_of(form: str) -> str:
    target = FORMS[form][0].partition(":")[0]
    return "cpu" if target == "cpu" else f"{target}:CPUExecutionProvider"


@pytest.fixture(scope="module")
def expected(engine: Engine, asked: Asked) -> Story:
    return story(engine, asked, [Fleet()], exactly=True)


def off(found: Story, expected: Story, *forms: str) -> float:
    """The largest distance as a part of its band, where these forms worked together."""
    labels, writing = (max(bands[form] for form in forms) for bands in (BANDS, WRITING))
    behind = max(labels, writing / 6)
    bands = {"written": writing, "questions behind it": behind}
    return max(
        float(np.abs(found[key] - expected[key]).max()) / bands.get(key, labels) for key in expected
    )


def spans(engine: Engine, name: str) -> list[Span]:
    return [span for span in engine.trace.spans if span.name == name]


def ran(engine: Engine) -> set[str]:
    """Devices that layers of text ran on."""
    return {s.device for s in engine.trace.spans if s.name in ("decoder", "writer")}


@pytest.mark.parametrize("second", FORMS)
@pytest.mark.parametrize("first", FORMS)
def test_any_two_devices_go_on_from_each_other(
    engine: Engine,
    asked: Asked,
    fleets: dict[str, Fleet],
    expected: Story,
    first: str,
    second: str,
) -> None:
    engine.trace = engine.new_trace()
    found = story(engine, asked, [fleets[first], fleets[second]])
    assert off(found, expected, first, second) < 1
    assert ran(engine) == {name_of(first), name_of(second)}
    assert not engine.trace.marks
    assert {s.device for s in spans(engine, "vision")} == {name_of(first)}
    # One after another they took every other step, in both of the decoder's parts.
    order = [s.device for s in spans(engine, "writer")]
    assert order == [d for f in (second, first, second) for d in [name_of(f)] * 2]


def test_three_at_once(
    engine: Engine, asked: Asked, fleets: dict[str, Fleet], expected: Story
) -> None:
    for some in itertools.permutations(FORMS):
        found = story(engine, asked, [fleets[form] for form in some])
        assert off(found, expected, *FORMS) < 1, some


def test_the_bands_see_what_they_must(
    engine: Engine,
    asked: Asked,
    fleets: dict[str, Fleet],
    expected: Story,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy that is not told of a rewind, and one that is not brought up to date."""
    both = [fleets["float16"], fleets["float32"]]
    with monkeypatch.context() as patched:
        patched.setattr(Replica, "forget", lambda *_: None)
        for each in both:
            engine.fleet = each
            engine.score(engine.prefill([99] * 40), asked.branches)
        assert off(story(engine, asked, both), expected, "npu") > 1
    with monkeypatch.context() as patched:
        give = Replica.give
        patched.setattr(Replica, "give", lambda s, found, c, begin, n: give(s, found, c, begin, 0))
        assert off(story(engine, asked, both), expected, "npu") > 1


def test_rows_are_handed_over_once(engine: Engine, asked: Asked, fleets: dict[str, Fleet]) -> None:
    """What each device converts for the other is counted, and is no more than is new to it."""
    for device in ("npu", "float32"):
        engine.fleet = fleets["cpu"]
        first = engine.prefill(*asked.picture(engine))
        engine.fleet = fleets[device]
        engine.trace = engine.new_trace()
        second = engine.prefill(asked.more, after=first)
        rows = [(s.counts["part"], s.counts["rows"]) for s in spans(engine, "handover")]
        assert rows == [(p, n) for p in (0, 1) for n in (first.length, len(asked.more))]
        assert all(s.ms > 0 for s in spans(engine, "handover"))
        engine.trace = engine.new_trace()
        engine.score(second, [[70]])
        engine.score(second, [[70, 71]])
        rows = [(s.counts["part"], s.counts["rows"]) for s in spans(engine, "handover")]
        one, two = (
            [(0, len(asked.more)), (0, 1), (1, len(asked.more)), (1, 1)],
            [(0, 0), (0, 2), (1, 0), (1, 2)],
        )
        assert rows == one + two, "the second question finds the prefix where it is"
        moved, more = fleets[device].moved, len(asked.more)
        assert moved.rows == 2 * (first.length + more + more + 1 + 2) and moved.ms > 0
    engine.fleet = fleets["cpu"]
    engine.trace = engine.new_trace()
    engine.score(second, asked.branches)
    assert not spans(engine, "handover"), "the processor reads the cache itself"


@pytest.mark.parametrize("vision", ["cpu", "gpu:cpu", "npu:cpu"])
def test_any_mix_of_stages_and_parts(
    engine: Engine, asked: Asked, expected: Story, vision: str
) -> None:
    devices = ("cpu", "gpu:cpu", "npu:cpu")
    for parts in itertools.product(devices, repeat=2):
        place = f"vision={vision}," + ",".join(
            f"decoder.{i}={device},writer.{i}={device}" for i, device in enumerate(parts)
        )
        engine.fleet = mixed = fleet(engine.bundle, place)
        engine.trace = engine.new_trace()
        engine.placement.clear()
        found = story(engine, asked, [mixed])
        forms = {"cpu": "cpu", "gpu:cpu": "float32", "npu:cpu": "npu"}
        assert off(found, expected, *(forms[device] for device in (vision, *parts))) < 1, place
        ours = "CPUExecutionProvider"
        names = {"cpu": ours, "gpu:cpu": f"gpu:{ours}", "npu:cpu": f"npu:{ours}"}
        heads = {"verdict_head": ours, "lm_head": ours}
        wanted = {"vision": names[vision], **heads}
        several = set(parts) | {vision} != {"cpu"}
        for index, device in enumerate(parts):
            for stage in ("decoder", "writer"):
                wanted[f"{stage}.{index}" if several else stage] = names[device]
        assert engine.placement == wanted, place
        for span in engine.trace.spans:
            if span.name in ("decoder", "writer"):
                device = parts[span.counts["part"]].partition(":")[0]
                assert span.device.partition(":")[0] == device, place
    engine.fleet = Fleet()


@pytest.mark.parametrize("second", FORMS)
@pytest.mark.parametrize("first", FORMS)
def test_a_snapshot_is_anyones(
    engine: Engine,
    asked: Asked,
    folder: Path,
    fleets: dict[str, Fleet],
    expected: Story,
    first: str,
    second: str,
) -> None:
    def taken(on: Fleet) -> tuple[Prefix, NDArray[np.float32]]:
        engine.fleet = on
        prefix = engine.prefill(asked.more, after=engine.prefill(*asked.picture(engine)))
        rows = engine.snapshot(prefix)
        assert rows is not None
        return prefix, rows

    prefix, rows = taken(fleets[first])
    engine.fleet = fleets[second]
    engine.score(engine.prefill([1, 99, 98]), [[97] * 9])  # something else lies in the cache
    restored = engine.restore(rows, prefix.position)
    found = engine.score(restored, asked.branches)
    band = max(BANDS[first], BANDS[second])
    assert np.abs(found - expected["questions"]).max() < band
    again = engine.snapshot(restored)
    assert again is not None and np.array_equal(again, rows), "reading changes nothing"


@pytest.mark.parametrize("chunk", [1, 7, 130, 300])
@pytest.mark.parametrize("form", ["float32", "float16", "npu"])
def test_passes_of_any_length(
    engine: Engine, asked: Asked, fleets: dict[str, Fleet], form: str, chunk: int
) -> None:
    """Longer than a static graph takes, as long, and padded; into longer contexts too."""
    ids = [*itertools.islice(itertools.cycle(asked.more), 620)]
    before, engine.chunk = engine.chunk, chunk
    try:
        results = []
        for some in ("cpu", form):
            engine.fleet = fleets[some]
            some_ids = ids if chunk > 7 else ids[:20]
            results.append(engine.score(engine.prefill(some_ids), asked.branches))
    finally:
        engine.chunk = before
    assert np.abs(results[0] - results[1]).max() < BANDS[form]


def test_what_no_graph_takes_is_the_processors(
    engine: Engine, asked: Asked, fleets: dict[str, Fleet]
) -> None:
    """Nothing is wrong with the device: it is asked again, however often that happens."""
    short = engine.bundle.graphs("npu", "a16w8", "decoder")
    engine.fleet = fleets["npu"]
    (accelerator,) = engine.fleet.accelerators
    engine.trace = engine.new_trace()
    kept = [g for g in short if g.kv is not None and g.kv.length_buckets == (512,)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            type(accelerator), "_graphs", lambda s, stage, p: [g for g in kept if g.part == p]
        )
        prefix = engine.prefill([*itertools.islice(itertools.cycle(asked.more), 1000)])
        found = engine.score(prefix, asked.branches)
        codes = [code for code, _ in engine.trace.marks]
        assert codes == ["device_passed_over"], engine.trace.marks
        assert "npu:CPUExecutionProvider is too small" in engine.trace.marks[0][1]
        assert ran(engine) == {"cpu", "npu:CPUExecutionProvider"}, "the first rows were its own"
        engine.trace = engine.new_trace()
        assert not engine.trace.marks
        engine.score(engine.prefill([50, 51]), asked.branches)
        assert ran(engine) == {"npu:CPUExecutionProvider"} and not engine.trace.marks
    engine.fleet = fleets["cpu"]
    prefix = engine.prefill([*itertools.islice(itertools.cycle(asked.more), 1000)])
    assert np.abs(found - engine.score(prefix, asked.branches)).max() < BANDS["npu"]


def test_a_kept_prefix_is_of_its_placement(folder: Path, tmp_path: Path) -> None:
    picture = canary_image(48, 72)
    places = (None, "vision=gpu:cpu", "decoder=gpu:cpu", "decoder.1=gpu:cpu", "vision=npu:cpu")

    def judge(place: str | None) -> Judge:
        return Judge.load(folder, place=place, threads=1, prefix_store=tmp_path / "kept")

    numerics = set()
    for place in places:
        one = judge(place)
        assert isinstance(one.engine, Engine)
        numerics.add(one.engine.fleet.numerics())
        first = one.screen(picture)
        assert (first.prefix_cache, first.reused_tokens) == ("miss", 0), place
        assert one.screen(picture).prefix_cache == "hit"
        again = judge(place).screen(picture)
        assert again.prefix_cache == "hit" and again.rules == first.rules, place
    assert len(numerics) == len(places)


def test_numerics_name_devices_and_forms(engine: Engine) -> None:
    def told(place: str, form: str = "float32.plain") -> str:
        return fleet(engine.bundle, place, {"gpu": form, "npu": "a16w8"}).numerics()

    assert told("") == told("decoder=cpu") == Fleet().numerics() == ""
    several = [
        told("decoder=gpu:cpu"),
        told("decoder=gpu:cpu", "float16.plain"),
        told("decoder=npu:cpu"),
        told("writer=gpu:cpu"),
        told("decoder.0=gpu:cpu"),
        told("decoder.0=gpu:cpu,decoder.1=npu:cpu"),
        told("decoder.0=npu:cpu,decoder.1=gpu:cpu"),
    ]
    assert len(set(several)) == len(several)
    assert told("decoder.1=npu:cpu,decoder.0=gpu:cpu") == several[-2], "in whatever order"
