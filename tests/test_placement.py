"""What a user may ask to run where, and the one sentence that answers what cannot be."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from edgejudge import Judge
from edgejudge.bundle import Bundle, FidelityRecord
from edgejudge.errors import BundleError, EdgeJudgeError, InputError, ProviderError
from edgejudge.export import Cut, export, seal
from edgejudge.models.image import canary_image
from edgejudge.runtime import devices
from edgejudge.runtime.placement import STAGES, UNITS, Device, Wish, read_places, resolved

CPU = "CPUExecutionProvider"
# Providers of the gpu and npu targets, each with what a machine without it is told.
HELP = {
    "vision=gpu": {
        "CUDAExecutionProvider": "onnxruntime-gpu",
        "WebGpuExecutionProvider": "pip install 'edgejudge[gpu]'",
        "OpenVINOExecutionProvider": "pip install 'edgejudge[openvino]'",
    },
    "decoder=npu": {
        "QNNExecutionProvider": "pip install 'edgejudge[npu]'",
        "OpenVINOExecutionProvider": "pip install 'edgejudge[openvino]'",
    },
    "decoder.1=gpu:webgpu": {"WebGpuExecutionProvider": "pip install 'edgejudge[gpu]'"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One checkpoint in two parts, with graphs of all targets, and with those of the cpu alone."""
    root = tmp_path_factory.mktemp("placement")
    tiny.make_checkpoint(
        root / "checkpoint", card=tiny.make_card(), vision_layers=1, text_layers=2, grid_of_tiles=2
    )
    for name, targets in {"all": ("cpu", "gpu", "npu"), "plain": ("cpu",)}.items():
        export(root / "checkpoint", root / name, "w8", Cut(2), (), targets=targets)
        seal(root / name, FidelityRecord("synthetic", 0, 0.0, 0.0, 0.0, None, None, None))
    return {name: root / name for name in ("all", "plain")}


@pytest.fixture(scope="module")
def bundle(folders: dict[str, Path]) -> Bundle:
    return Bundle.open(folders["all"])


@pytest.fixture(autouse=True)
def no_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with its processor alone, whatever this one has."""
    found = bare_survey()
    monkeypatch.setattr(devices, "survey", lambda: found)


def bare_survey() -> tuple[list[devices.Device], list[devices.Absent]]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(devices, "BUILT_IN", frozenset({CPU}))
        patched.setattr(devices, "_version", lambda module: "")
        patched.setattr(devices, "_base_package", lambda: "onnxruntime")
        return devices.survey()


def is_one_sentence(message: str) -> bool:
    return "\n" not in message and not message.endswith(".") and len(message) > 20


# Near to what is meant, so that every branch of the grammar is met.
near = st.from_regex(
    r"(vision|decoder(\.[0-9])?|writer)=(cpu|gpu|npu|coreml)(:(webgpu|qnn|all|cpu_only))?(/npu)?",
    fullmatch=True,
)
pieces = st.sampled_from(
    [
        *STAGES,
        "cpu",
        "gpu",
        "npu",
        "coreml",
        "webgpu",
        "qnn",
        "cpu_and_ne",
        "all",
        "=",
        ":",
        ".",
        ",",
        " ",
        "0",
        "1",
        "9" * 5000,
    ]
    + ["٣", "²", "-1", "heads", "tpu", "\n", "\0", "\ud800"]
)


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(
        st.text(max_size=40),
        st.lists(pieces, max_size=12).map("".join),
        st.lists(near, max_size=3).map(",".join),
    )
)
def test_any_text_is_read_or_refused_in_a_sentence(text: str) -> None:
    try:
        places = read_places(text)
    except InputError as error:
        assert error.code == "placement" and is_one_sentence(str(error))
        return
    for (stage, part), wishes in places.items():
        assert stage in STAGES and (part is None or part >= 0)
        for wish in wishes:
            assert wish.target in ("cpu", "gpu", "npu", "coreml")
            if wish.provider is not None:
                own = wish.provider in UNITS
                assert own == (wish.target == "coreml")
                assert own or wish.provider.endswith("ExecutionProvider")


places = st.dictionaries(
    st.one_of(
        st.tuples(st.sampled_from(STAGES), st.none()),
        st.tuples(st.sampled_from(["decoder", "writer"]), st.integers(0, 10**6)),
    ),
    st.tuples(
        st.sampled_from(["cpu", "gpu", "npu"]), st.sampled_from([None, "cpu", "webgpu", "qnn"])
    ),
    max_size=6,
)
NAMES = {"cpu": CPU, "webgpu": "WebGpuExecutionProvider", "qnn": "QNNExecutionProvider"}


@given(places, st.data())
def test_what_is_written_is_read(wanted: dict[Any, Any], data: st.DataObject) -> None:
    items = []
    for (stage, part), (target, provider) in wanted.items():
        place = stage if part is None else f"{stage}.{part}"
        item = f"{place}={target}" + ("" if provider is None else f":{provider}")
        items.append(data.draw(st.sampled_from([item, f" {item}", f"{item} ", f",{item}"])))
    expected = {k: (Wish(t, None if p is None else NAMES[p]),) for k, (t, p) in wanted.items()}
    assert read_places(",".join(items)) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("vision", "a stage is vision, decoder, writer"),
        ("=gpu", "a stage is vision, decoder, writer"),
        ("heads=gpu", "cannot place 'heads=gpu': a stage is vision"),
        ("vision.0=gpu", "a stage is vision"),
        ("decoder.=gpu", "decoder.N for a part"),
        ("decoder.x=gpu", "decoder.N for a part"),
        ("decoder.-1=gpu", "decoder.N for a part"),
        (f"decoder.{'9' * 5000}=gpu", "decoder.N for a part"),
        ("vision=tpu", "targets are cpu, gpu, npu"),
        ("vision=", "targets are cpu, gpu, npu"),
        ("vision=gpu:", "providers cpu, webgpu, cuda, qnn, openvino, coreml"),
        ("vision=gpu:tensorrt", "providers cpu, webgpu, cuda"),
        ("vision=gpu:cpu:cpu", "providers cpu, webgpu, cuda"),
        ("vision=gpu,vision=cpu", "placed already"),
        ("decoder.1=gpu,decoder.01=npu", "placed already"),
    ],
)
def test_what_is_wrong_is_named(text: str, told: str) -> None:
    with pytest.raises(InputError, match="write it like vision=gpu,decoder=npu:qnn$") as raised:
        read_places(text)
    assert told in str(raised.value) and raised.value.code == "placement"


def test_places_of_a_bundle(bundle: Bundle) -> None:
    def found(text: str) -> dict[Any, Device]:
        return {place: device for place, (device,) in resolved(read_places(text), bundle).items()}

    version = found("vision=gpu:cpu")["vision", None].version
    gpu, npu = Device("gpu", CPU, version), Device("npu", CPU, version)
    assert version and gpu.name == f"gpu:{CPU}"
    assert found("") == found("vision=cpu,decoder=cpu:cpu,writer.1=cpu") == {}
    assert found("vision=gpu:cpu") == {("vision", None): gpu}
    assert found("decoder=npu:cpu") == {("decoder", 0): npu, ("decoder", 1): npu}
    # A part by itself has the last word, wherever it stands.
    for text in ("decoder=npu:cpu,decoder.0=gpu:cpu", "decoder.0=gpu:cpu,decoder=npu:cpu"):
        assert found(text) == {("decoder", 0): gpu, ("decoder", 1): npu}
    assert found("decoder=npu:cpu,decoder.0=cpu") == {("decoder", 1): npu}
    assert found("writer.1=gpu:cpu,decoder.0=npu:cpu") == {
        ("writer", 1): gpu,
        ("decoder", 0): npu,
    }
    several = resolved(read_places("vision = npu:cpu / gpu:cpu, decoder.1=npu:cpu/cpu/gpu"), bundle)
    assert several == {("vision", None): (npu, gpu), ("decoder", 1): (npu,)}, "the CPU does it all"


def test_every_provider_is_asked_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking runs a graph on some of them."""
    asked = []
    survey = devices.survey
    monkeypatch.setattr(devices, "survey", lambda: asked.append(1) or survey())
    resolved(read_places("vision=gpu:cpu,decoder.0=npu:cpu,decoder.1=gpu:cpu"), bundle)
    assert len(asked) == 1
    resolved(read_places("vision=cpu"), bundle)
    assert len(asked) == 1, "the processor needs no asking"


@pytest.mark.parametrize("target", ["cpu", "gpu:cpu"])
@pytest.mark.parametrize("stage", ["decoder", "writer"])
def test_parts_that_do_not_exist(bundle: Bundle, stage: str, target: str) -> None:
    with pytest.raises(BundleError, match="has no decoder part 2, only 0 to 1") as raised:
        resolved(read_places(f"{stage}.2={target}"), bundle)
    assert is_one_sentence(str(raised.value))


def test_graphs_that_the_bundle_lacks(folders: dict[str, Path]) -> None:
    plain = Bundle.open(folders["plain"])
    for stage in STAGES:
        wanted = "vision" if stage == "vision" else "decoder"
        with pytest.raises(BundleError, match=f"has no {wanted} graphs for the npu target") as told:
            resolved(read_places(f"{stage}=npu:cpu"), plain)
        assert "--targets cpu,npu" in str(told.value) and is_one_sentence(str(told.value))
    assert resolved(read_places("decoder=cpu"), plain) == {}
    # A target whose tower could not be lowered has the decoder alone.
    manifest = Bundle.open(folders["all"]).manifest
    graphs = tuple(g for g in manifest.graphs if (g.target, g.stage) != ("npu", "vision"))
    some = replace(Bundle.open(folders["all"]), manifest=replace(manifest, graphs=graphs))
    assert len(resolved(read_places("decoder=npu:cpu"), some)) == 2
    with pytest.raises(BundleError, match="has no vision graphs for the npu target"):
        resolved(read_places("vision=npu:cpu"), some)


def test_the_cpu_target_is_the_processors(bundle: Bundle) -> None:
    with pytest.raises(ProviderError, match="run on the CPU provider alone; ask for gpu or npu"):
        resolved(read_places("vision=cpu:webgpu"), bundle)


@pytest.mark.parametrize("place", HELP)
def test_absent_providers_say_why_and_what_helps(bundle: Bundle, place: str) -> None:
    with pytest.raises(ProviderError, match="no provider for the ... target is here: ") as raised:
        resolved(read_places(place), bundle)
    told = str(raised.value)
    for provider, help in HELP[place].items():
        _, found, after = told.partition(f"{provider}: ")
        assert found and help in after, told
    assert told.count("ExecutionProvider") == len(HELP[place]), "no other is spoken of"
    assert "`edgejudge devices`" in told and is_one_sentence(told)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from PIL import Image

    Image.fromarray(canary_image(40, 60)).save(tmp_path / "drawn.png")
    return tmp_path / "drawn.png"


# The command line on a machine with its processor alone.
SCRIPT = f"""if True:
    import sys
    from edgejudge.runtime import devices
    devices.BUILT_IN = frozenset(["{CPU}"])
    devices._version = lambda module: ""
    devices._base_package = lambda: "onnxruntime"
    from edgejudge.cli import main
    sys.exit(main())
"""


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--place", "vision=gpu"], "pip install 'edgejudge[gpu]'"),
        (["--place", "vision=gpu,,heads=gpu"], "cannot place 'heads=gpu'"),
        (["--place", "decoder.7=npu:cpu"], "has no decoder part 7"),
        (["--place", "vision=gpu:cpu", "--memory-budget", "512MiB"], "give it or place, not both"),
        (["--place", "vision=gpu:cpu", "--deadline", "0"], "--deadline"),
    ],
)
def test_the_command_line_stops(
    folders: dict[str, Path], picture: Path, more: list[str], told: str
) -> None:
    command = [sys.executable, "-c", SCRIPT, "screen", str(picture)]
    done = subprocess.run(
        [*command, "--bundle", str(folders["all"]), *more], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == "", done.stderr
    *usage, last = done.stderr.splitlines()
    assert last.startswith("error: ") and told in last
    assert "Traceback" not in done.stderr and (not usage or usage[0].startswith("usage: "))


def test_a_judge_refuses_what_the_command_line_refuses(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="give it or place, not both") as raised:
        Judge.load(folders["all"], place="vision=gpu:cpu", memory_budget=1 << 30)
    assert raised.value.code == "placement"
    with pytest.raises(InputError, match="not both"):
        Judge.load(folders["all"], place="", memory_budget=1 << 30)
    for deadline in (0.0, -1.0, float("nan")):
        with pytest.raises(EdgeJudgeError, match="positive number of seconds"):
            Judge.load(folders["all"], place="vision=gpu:cpu", deadline=deadline)
