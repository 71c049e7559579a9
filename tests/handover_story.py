"""What handing work over between devices is tested with: devices of the gpu and npu targets on the
CPU provider, and a story that a judge is asked.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import tiny
from edgejudge.bundle import Bundle, FidelityRecord
from edgejudge.export import Cut, export, seal
from edgejudge.models.image import canary_image, image_spec, preprocess
from edgejudge.models.prompt import Prompts
from edgejudge.runtime import Engine
from edgejudge.runtime.fleet import Fleet
from edgejudge.runtime.placement import read_places, resolved
from edgejudge.runtime.views import Views

Story = dict[str, NDArray[np.float32]]


def make_folder(root: Path) -> Path:
    """A bundle for all targets, in two parts."""
    torch.set_num_threads(1)
    tiny.make_checkpoint(
        root / "checkpoint", card=tiny.make_card(), vision_layers=1, text_layers=2, grid_of_tiles=2
    )
    targets = ("cpu", "gpu", "npu")
    export(root / "checkpoint", root / "bundle", "w8", Cut(2), (), targets=targets)
    seal(root / "bundle", FidelityRecord("synthetic", 0, 0.0, 0.0, 0.0, None, None, None))
    return root / "bundle"


def fleet(bundle: Bundle, place: str, forms: dict[str, str] | None = None) -> Fleet:
    """Devices in these forms, which no canary was asked for. `forms` are by target."""
    forms = forms or {"gpu": "float32.plain", "npu": "a16w8"}
    found = Fleet.of(bundle, resolved(read_places(place), bundle), threads=1)
    for accelerator in found.accelerators:
        for stage in found.stages_of(accelerator):
            accelerator.use(stage, forms[accelerator.device.target])
    return found


@dataclass(frozen=True)
class Asked:
    """The canary's picture and questions, near to what whole numbers' ranges were taken from."""

    ids: list[int]
    feeds: dict[str, NDArray[np.float32]]
    more: list[int]
    written: list[int]
    branches: list[list[int]]

    def picture(self, engine: Engine) -> tuple[list[int], NDArray[np.float32]]:
        return self.ids, engine.encode_image(self.feeds)

    def viewed(self, engine: Engine) -> tuple[list[int], Views]:
        return self.ids, engine.views(self.feeds)


def make_asked(engine: Engine) -> Asked:
    canary, prompts = engine.bundle.manifest.canary, Prompts.of(engine.bundle)
    seen = preprocess(
        canary_image(canary.image_height, canary.image_width),
        image_spec(engine.bundle.manifest.preprocessing),
    )
    branches = [list(branch) for branch in canary.golden.branches]
    ids = list(prompts.prefix_ids(seen.rows, seen.cols))
    return Asked(ids, dict(seen.feeds), branches[0], branches[1][:3], branches)


def story(
    engine: Engine,
    asked: Asked,
    places: list[Fleet],
    exactly: bool = False,
    views: bool = False,
) -> Story:
    """A picture, text behind it, questions, an answer and questions behind that: each where the
    next of `places` says. Label logits, and whole rows of logits of what was written. The
    processor's graphs for writing round activations to bytes; `exactly` takes its others. With
    `views` the picture is encoded along with its prefix.
    """
    turn = itertools.cycle(places)

    def move() -> None:
        engine.fleet = next(turn)

    move()
    prefix = engine.prefill(*(asked.viewed(engine) if views else asked.picture(engine)))
    move()
    prefix = engine.prefill(asked.more, after=prefix)
    move()
    found = {"questions": engine.score(prefix, asked.branches)}
    written, rows = prefix, []
    for token in asked.written:
        move()
        if exactly:
            written, hidden = engine.append([token], after=written)
        else:
            written, hidden = engine.step(token, written)
        rows.append(engine.full_logits(hidden[None])[0])
    found["written"] = np.stack(rows)
    move()
    found["questions behind it"] = engine.score(written, asked.branches)
    move()
    found["the first again"] = engine.score(prefix, asked.branches)
    return found
