"""Profiles of devices as files, costs between and beyond measured shapes, and workloads."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgejudge.bundle import Bundle
from edgejudge.errors import InputError
from edgejudge.judge import default_bundle
from edgejudge.runtime.scheduling import (
    Costs,
    Edge,
    Limits,
    Planner,
    Profile,
    ProfileError,
    Sizes,
    Task,
    TaskGraph,
    keep_profile,
    kept_profile,
    read_workload,
)
from edgejudge.runtime.scheduling.profile import DeviceRecord, Row
from edgejudge.runtime.scheduling.scenarios import invented
from edgejudge.runtime.session import default_threads
from edgejudge.runtime.settings import Settings

SIZES = Sizes((2, 2), (100, 100), 50, 64, 16, 32, chunk=32, pack_tokens=64)
ROWS = {
    ("decoder.0", "cpu"): {(1, 0): 2.0, (128, 0): 10.0, (128, 512): 20.0},
    ("decoder.0", "npu"): {(1, 0): 1.0, (128, 0): 4.0},
}


def profile(padded: bool = False) -> Profile:
    found = invented(ROWS, (0.5, 2.0))
    return replace(found, devices=tuple(replace(d, padded=padded) for d in found.devices))


@pytest.mark.parametrize(
    ("tokens", "past", "ms"),
    [
        (1, 0, 2.0),
        (128, 0, 10.0),
        (64, 0, 2.0 + 8.0 * 63 / 127),
        (128, 256, 15.0),
        (128, 1024, 30.0),
        (1, 512, 4.0),  # a fifth of 128 tokens there as elsewhere
        (256, 0, 10.0 + 8.0 * 128 / 127),
    ],
)
def test_costs_lie_on_lines_between_what_was_measured(tokens: int, past: int, ms: float) -> None:
    assert Costs(profile()).ms("decoder.0", "cpu", tokens, past) == pytest.approx(ms)


@pytest.mark.parametrize(
    ("tokens", "ms"), [(1, 1.0), (2, 4.0), (128, 4.0), (129, 5.0), (300, 12.0)]
)
def test_a_padded_device_runs_whole_shapes(tokens: int, ms: float) -> None:
    assert Costs(profile(padded=True)).ms("decoder.0", "npu", tokens, 0) == ms


def test_a_padded_device_goes_on_with_the_shapes_of_its_longest_past() -> None:
    costs = Costs(profile(padded=True))  # at 512 there is no shape of 1
    assert costs.ms("decoder.0", "cpu", 1, 1024) == costs.ms("decoder.0", "cpu", 128, 1024) == 30.0


def test_what_is_extrapolated_is_said() -> None:
    costs = Costs(profile())
    costs.ms("decoder.0", "cpu", 150, 700)
    assert list(costs.notes) == []
    costs.ms("decoder.0", "cpu", 1000, 0)
    costs.ms("decoder.0", "cpu", 128, 4000)
    costs.ms("decoder.0", "npu", 128, 300)
    said = list(costs.notes)
    assert len(said) == 3
    assert "decoder.0 on cpu" in said[0] and "up to 128 tokens" in said[0]
    assert "up to 512" in said[1] and "decoder.0 on npu" in said[2]


@settings(max_examples=100, deadline=None)
@example(1, 513, "cpu", True)
@given(st.integers(1, 4096), st.integers(0, 4096), st.sampled_from(["cpu", "npu"]), st.booleans())
def test_costs_are_never_below_the_smallest_shape(
    tokens: int, past: int, device: str, padded: bool
) -> None:
    costs = Costs(profile(padded))
    found = costs.ms("decoder.0", device, tokens, past)
    assert found + 1e-9 >= costs.ms("decoder.0", device, 1, 0)
    assert costs.ms("decoder.0", device, tokens + 1, past) + 1e-9 >= found


def test_moving_costs_by_link_and_nothing_at_home() -> None:
    costs = Costs(profile())
    assert costs.moving_ms("cpu", "npu", 1 << 20) == 2.5
    assert costs.moving_ms("cpu", "cpu", 1 << 20) == costs.moving_ms("cpu", "npu", 0) == 0.0
    graph = TaskGraph(
        (
            Task("a", "decoder.0", 128),
            Task("b", "decoder.0", 128, 0, (Edge(0, 2 << 20),)),
        ),
        {},
    )
    assert costs.placed(graph, {"decoder.0": "cpu"}).moving_ms == (0.0, 0.0)


def test_without_a_link_devices_do_not_share() -> None:
    alone = replace(profile(), links=())
    tasks = (Task("a", "decoder.0", 128), Task("b", "decoder.1", 128, 0, (Edge(0, 9),)))
    rows = tuple(replace(row, unit="decoder.1") for row in alone.rows if row.device == "npu")
    both = replace(alone, rows=alone.rows + rows)
    assert set(Planner(TaskGraph(tasks, {}), Costs(both)).plan().placement.values()) == {"npu"}
    other = tuple(replace(row, unit="decoder.1", device="npu") for row in rows)
    apart = replace(alone, rows=tuple(r for r in alone.rows if r.device == "cpu") + other)
    with pytest.raises(ProfileError, match="link between two devices"):
        Planner(TaskGraph(tasks, {}), Costs(apart)).plan()


def test_what_does_not_fit_is_one_sentence_with_sizes() -> None:
    small = invented(ROWS, (0, 0), memory={"cpu": 5 << 20, "npu": 1 << 20})
    graph = TaskGraph((Task("a", "decoder.0", 1),), {"decoder.0": 64 << 20})
    with pytest.raises(ProfileError, match="decoder.0 64 MiB; allowed are cpu 5 MiB, npu 1 MiB"):
        Planner(graph, Costs(small)).plan()


def test_a_profile_reads_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(profile().to_json()))
    assert Profile.read(file) == profile()


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        ((), [], "expected dict"),
        (("schema_version",), 2, "schema_version: 2, this edgejudge reads 1"),
        (("more",), 1, "unknown key 'more'"),
        (("devices",), [], "devices: 0 of them"),
        (("devices", 0, "busy_watts"), -1, r"devices\[0\].busy_watts: -1"),
        (("devices", 0, "idle_watts"), 9, r"devices\[0\].busy_watts: 1.0 is below idle_watts, 9"),
        (("devices", 0, "busy_watts"), "4", r"devices\[0\].busy_watts: expected float"),
        (("devices", 1, "name"), "cpu", "name of its own"),
        (("rows", 1, "p50_ms"), -0.5, r"rows\[1\].p50_ms: -0.5"),
        (("rows", 1, "p50_ms"), 1e300, r"rows\[1\].p50_ms: 1e\+300"),
        (("rows", 0, "tokens"), 0, r"rows\[0\].tokens: 0"),
        (("rows", 0, "device"), "tpu", "'tpu' is not among the profile's: cpu, npu"),
        (("rows", 1, "tokens"), 1, r"rows\[1\].*twice"),
        (("links", 0, "target"), "tpu", r"links\[0\].*'tpu'"),
        (("links", 0, "fixed_ms"), None, r"links\[0\].fixed_ms"),
        (("weights",), [{"unit": "a", "device": "cpu", "bytes": -1}], r"weights\[0\].bytes: -1"),
    ],
)
def test_a_broken_profile_is_named_by_field(
    tmp_path: Path, where: tuple[str | int, ...], value: object, says: str
) -> None:
    document = profile().to_json()
    inner = document
    for key in where[:-1]:
        inner = inner[key]
    if where:
        inner[where[-1]] = value
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(document if where else value))
    with pytest.raises(ProfileError, match=says):
        Profile.read(file)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": NaN'])
def test_what_is_no_json_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "profile.json"
    file.write_bytes(data)
    with pytest.raises(ProfileError, match="not JSON"):
        Profile.read(file)
    with pytest.raises(ProfileError, match="cannot be read"):
        Profile.read(tmp_path / "missing.json")


def test_costs_are_kept_for_a_bundle_a_machine_and_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEJUDGE_CACHE", str(tmp_path))
    bundle = Bundle.open(default_bundle())
    assert kept_profile(bundle) is None
    file = keep_profile(bundle, profile())
    assert file == tmp_path / "costs" / f"{bundle.fingerprint}.json"
    kept = kept_profile(bundle)
    assert kept is not None and kept.rows == profile().rows and kept.bundle == bundle.fingerprint
    assert os.listdir(file.parent) == [file.name]
    some = kept_profile(bundle, {"cpu": "0", "npu": "1"})  # the NPU's provider is another now
    assert some is not None and {d.name for d in some.devices} == {"cpu"}
    assert some.links == () and {row.device for row in some.rows} == {"cpu"}
    assert kept_profile(bundle, {"cpu": "2"}) is None
    own = kept_profile(bundle, threads=default_threads())
    assert own == kept, "as many as a judge has, where nothing else is said"
    assert kept_profile(bundle, threads=default_threads() + 1) is None
    keep_profile(bundle, replace(kept, machine={"threads": "7", "processor": "another"}))
    assert kept_profile(bundle, threads=7) is not None
    document = json.loads(file.read_text())
    for change in ({"machine": {"processor": "another"}}, {"bundle": "another"}, {"rows": 1}):
        file.write_text(json.dumps(document | change))
        assert kept_profile(bundle) is None


def test_a_unit_that_nobody_measured_is_named() -> None:
    graph = read_workload("prefill").graph(SIZES)
    with pytest.raises(ProfileError, match=r"no row for 'decoder.1'.*it has: decoder.0"):
        Planner(graph, Costs(profile()))


def test_screening_waits_for_views_keys_and_values() -> None:
    graph = read_workload("screen:images=2,crops=3,rules=8,prompt_tokens=16").graph(SIZES)
    assert graph.requests == (0, 1)
    tasks = [task for task in graph.tasks if task.request == 0]
    assert sum(task.unit == "vision" for task in tasks) == 3
    first = [task for task in tasks if task.unit == "decoder.0"]
    prefill = [task for task in first if task.name.startswith("chunk")]
    assert [task.past for task in prefill] == [0, 28, 56, 84] and prefill[-1].tokens == 28
    assert {edge.before for edge in prefill[0].after} == {0}, "the first view alone"
    questions = [task for task in first if task.name.startswith("questions")]
    assert [task.tokens for task in questions] == [64, 64, 64] and questions[0].past == 112
    second = next(t for t in tasks if t.name == "chunk 1 decoder.1")
    flow, cache = second.after
    assert graph.tasks[flow.before].name == "chunk 1 decoder.0"
    assert (flow.bytes, cache.bytes) == (28 * 64 * 4, 28 * 16 * 2)
    assert graph.tasks[cache.before].name == "chunk 0 decoder.1"
    assert tasks[-1].unit == "verdict_head" and tasks[-1].tokens == 8
    assert graph.unit_bytes["decoder.0"] == 100 + (112 + 64) * 16 * 2


def test_text_is_one_chain() -> None:
    graph = read_workload("decode:tokens=3,past=9").graph(SIZES)
    assert [task.past for task in graph.tasks if task.unit == "decoder.1"] == [9, 10, 11]
    begins = [i for i, task in enumerate(graph.tasks) if task.unit == "decoder.0"]
    assert [edge.before for edge in graph.tasks[begins[1]].after][0] == begins[1] - 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("judge", "no workload 'judge'; those known are screen:.*prefill:.*decode:"),
        ("screen:pictures=4", "screen has no 'pictures'; it has rules, images"),
        ("screen:images=0", "from 1 to"),
        ("screen:images=x", "'x'"),
        ("screen:images", "''"),
        ("prefill:tokens=" + "9" * 5000, "from 1 to"),
    ],
)
def test_an_unknown_workload_names_the_known(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_workload(text)


def test_a_workload_of_too_many_tasks_is_refused_before_it_is_built() -> None:
    with pytest.raises(InputError, match="tasks"):
        read_workload("prefill:tokens=65536,requests=65536").graph(SIZES)


def test_sizes_come_from_a_bundle() -> None:
    bundle = Bundle.open(default_bundle())
    sizes = Sizes.of(bundle, Settings(1, 96, 40))
    assert (sizes.chunk, sizes.pack_tokens) == (96, 40)
    assert sum(sizes.layers) == bundle.manifest.spec["text"]["layers"]
    assert sizes.vision_bytes > 0 and sizes.part_bytes[0] > 0 and sizes.view_tokens > 0


def test_graphs_are_refused_by_name() -> None:
    task = Task("a", "cpu", 1)
    with pytest.raises(ValueError, match="task b waits for place 1"):
        TaskGraph((task, Task("b", "cpu", 1, after=(Edge(1),))), {})
    with pytest.raises(ValueError, match="request 1, chunk 0 waits for a of request 0"):
        TaskGraph((task, Task("b", "cpu", 1, after=(Edge(0),), request=1)), {})
    with pytest.raises(ValueError, match="chunks for no later one"):
        TaskGraph((replace(task, chunk=1), Task("b", "cpu", 1, after=(Edge(0),))), {})
    with pytest.raises(ValueError, match="0 tokens"):
        TaskGraph((Task("a", "cpu", 0),), {})
    assert Limits(1, 1, None, 0.0) and DeviceRecord and Row
