"""What the gate may look at: pictures that nothing else has seen."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tiny
from edgejudge.bundle import Bundle
from edgejudge.errors import FidelityError
from edgejudge.export import (
    Asked,
    CalibrationPicture,
    Reference,
    export,
    open_checkpoint,
    read_calibration,
    split_pictures,
)
from edgejudge.fidelity import export_bundle
from edgejudge.gate import Tally
from edgejudge.gate_set import gate_set


def blank(index: int) -> CalibrationPicture:
    return CalibrationPicture(f"{index}.png", np.zeros((1, 1, 3), np.uint8), ("a dog",))


@given(count=st.integers(1, 300))
def test_every_picture_has_one_purpose(count: int) -> None:
    pictures = [blank(index) for index in range(count)]
    split = split_pictures(pictures)
    assert split.calibration + split.gate + split.selection == pictures
    assert len(split.gate) >= len(split.calibration) + len(split.selection) - 1 and split.gate
    assert len(split.calibration) <= 16 and len(split.selection) <= 8


def with_calibration(folder: Path, count: int) -> Path:
    """A tiny checkpoint with a calibration set about its concepts."""
    rng = np.random.default_rng(0)
    (folder / "calibration").mkdir()
    entries = []
    for index in range(count):
        pixels = rng.integers(0, 255, (24, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "calibration" / f"{index}.png")
        entries.append({"image": f"{index}.png", "conditions": [{"text": "dog", "label": 1}]})
    (folder / "calibration" / "questions.json").write_text(json.dumps(entries))
    card = tiny.make_card(calibration_set="calibration")
    return tiny.make_checkpoint(folder / "checkpoint", card=card, text_layers=1, tiling=False)


def test_advice_is_drawn_from_pictures_that_nothing_else_has_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = with_calibration(tmp_path, 24)
    seen: list[set[bytes]] = [set()]  # pictures the reference has met, before the refusal and after
    ends = Reference.ends

    def watched(self: Reference, asked: Sequence[Asked]) -> list[torch.Tensor]:
        found = [a.feeds["pixel_values"].tobytes() for a in asked if a.feeds is not None]
        seen[-1].update(found)
        return ends(self, asked)

    def refuse(*_: object) -> list[str]:
        seen.append(set())
        return ["too many flips"]

    monkeypatch.setattr(Reference, "ends", watched)
    monkeypatch.setattr(Tally, "violations", refuse)
    with pytest.raises(FidelityError, match="on 3 pictures that the gate did not use"):
        export_bundle(checkpoint, tmp_path / "out", "small")
    before, after = seen
    assert len(after) == 3 and not before & after
    assert len(before) == 6 + 15 + 1, "calibration, gate, canary"


def test_drawn_pictures_are_disjoint_too(tmp_path: Path) -> None:
    checkpoint = tiny.make_checkpoint(tmp_path / "checkpoint", tiling=False)
    opened = open_checkpoint(checkpoint)
    manifest = Bundle.open(export(opened, tmp_path / "out", "exact"), unsealed=True).manifest
    found = gate_set(opened, manifest)
    shapes = [{p.rgb.shape for p in pictures} for pictures in (found.gate, found.selection)]
    assert len(shapes[0]) == 8 and len(shapes[1]) == 4 and not shapes[0] & shapes[1]
    assert found.calibrated == 0


def test_a_set_too_small_to_spare_pictures_selects_by_drawn_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = with_calibration(tmp_path, 7)
    split = split_pictures(read_calibration(tmp_path / "calibration"))
    assert [len(part) for part in split] == [1, 0, 6]
    monkeypatch.setattr(Tally, "violations", lambda *_: ["too many flips"])
    with pytest.raises(FidelityError, match="on 4 pictures that the gate did not use"):
        export_bundle(checkpoint, tmp_path / "out", "small")
