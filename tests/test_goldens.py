"""A machine that computes something else than the reference gets no verdict out of a bundle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgejudge import Judge, ProviderError
from edgejudge.cli import main
from edgejudge.fidelity import export_bundle
from edgejudge.runtime import settings, sliced
from edgejudge.runtime.session import Session
from tiny import make_card, make_checkpoint

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("goldens")
    checkpoint = make_checkpoint(
        folder / "checkpoint", card=make_card(), grid_of_tiles=2, vision_layers=1, text_layers=2
    )
    export_bundle(checkpoint, folder / "bundle", recipe="exact")
    return folder / "bundle"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEJUDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "canaries"


@pytest.fixture
def bend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], Any]], None]:
    """Has decoder graphs give something else."""
    right = Session.run_bound

    def bend(wrong: Callable[[Any], Any]) -> None:
        monkeypatch.setattr(
            Session, "run_bound", lambda *a, **k: [wrong(v) for v in right(*a, **k)]
        )

    return bend


@pytest.mark.parametrize("error", [0.05, float("nan")])
@pytest.mark.parametrize("budget", [None, 8 << 30])
def test_wrong_numbers_are_refused_at_load(
    bundle: Path,
    cache: Path,
    bend: Callable[[Callable[[Any], Any]], None],
    monkeypatch: pytest.MonkeyPatch,
    error: float,
    budget: int | None,
) -> None:
    monkeypatch.setattr(sliced, "fits", lambda *_: False)
    assert Judge.load(bundle, threads=1, memory_budget=budget).screen(np.zeros((9, 9, 3), "u1"))
    (kept,) = cache.iterdir()
    kept.unlink()
    bend(lambda value: value + np.where(np.arange(value.shape[-1]) % 2, 0, np.float32(error)))
    with pytest.raises(ProviderError, match=r"canary are \S+ off on this machine"):
        Judge.load(bundle, threads=1, memory_budget=budget)
    assert list(cache.iterdir()) == [], "a failure is not kept"


def test_a_machine_is_asked_once_and_again_when_it_changes(
    bundle: Path,
    cache: Path,
    bend: Callable[[Callable[[Any], Any]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Judge.load(bundle, threads=1)
    bend(lambda value: value + value[..., ::-1])  # a norm would undo a factor
    Judge.load(bundle, threads=1)
    with pytest.raises(ProviderError, match="off on this machine"):
        Judge.load(bundle, threads=1, verify=True)
    now = settings.machine()
    monkeypatch.setattr(settings, "machine", lambda: {**now, "onnxruntime": "9.9"})
    with pytest.raises(ProviderError, match="off on this machine"):
        Judge.load(bundle, threads=1)
    monkeypatch.setattr(settings, "machine", lambda: now)
    (kept,) = cache.iterdir()
    kept.write_text("{torn")
    with pytest.raises(ProviderError, match="off on this machine"):
        Judge.load(bundle, threads=1)


def test_a_cache_that_cannot_be_written_is_no_reason(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEJUDGE_CACHE", str(tmp_path / "file"))
    assert Judge.load(bundle, threads=1).bundle.path == bundle


def test_the_command_says_so_and_gives_no_row(
    bundle: Path,
    bend: Callable[[Callable[[Any], Any]], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bend(lambda value: value + value[..., ::-1])
    (tmp_path / "x.png").touch()
    assert main(["screen", str(tmp_path / "x.png"), "--bundle", str(bundle), "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "label logits of its canary" in err and "Traceback" not in err
