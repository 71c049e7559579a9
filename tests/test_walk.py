"""A checkpoint walked layer by layer is the checkpoint: every family, its questions packed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edgejudge.export import CalibrationPicture, Exact, Reference, asked_of, open_checkpoint
from edgejudge.export.walk import Walk, places_of
from edgejudge.models.image import canary_image
from families import FAMILIES

torch.set_num_threads(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_by_layer_is_the_whole_pass(family: str, tmp_path: Path) -> None:
    opened = open_checkpoint(FAMILIES[family].make_checkpoint(tmp_path / "checkpoint"))
    pictures = [
        CalibrationPicture(f"{size}", canary_image(*size), ("a knife", "beer", "written text"))
        for size in ((50, 70), (90, 30))
    ]
    weights = Exact(opened.weights)
    plain = Reference(opened.spec, weights, opened.tokens.image, torch.float64)
    wanted = plain.ask(asked_of(opened, pictures), opened.labels.token_ids)
    walk = Walk(opened, pictures, torch.float64)
    for place in places_of(opened):
        walk.through(place, walk.reference(weights))  # leaves no trace
        walk.on(place, walk.reference(weights))
    head = walk.reference(weights)
    for flows, logits in zip(walk._flows, wanted, strict=True):
        found = head.logits(flows.ends(), opened.labels.token_ids).numpy()
        assert np.abs(found - logits).max() < 1e-9
