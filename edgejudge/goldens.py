"""The inputs with known answers that a bundle carries, asked of an engine.

Takes an opened bundle and an engine; gives label logits, how far they are from the reference's, and
whether this machine may be trusted with the bundle. Knows no checkpoint.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.batches import BatchScorer
from edgejudge.bundle import Bundle, GoldenRecord, cache_folder, keep_json
from edgejudge.errors import EdgeJudgeError, ProviderError
from edgejudge.models.image import canary_image, image_spec, preprocess
from edgejudge.models.prompt import Prompts

if TYPE_CHECKING:
    from edgejudge.runtime import Engine
    from edgejudge.screening import Scorer

__all__ = ["canary_distance", "check_canary", "graph_error", "step_distance"]


def graph_error(bundle: Bundle, engine: "Engine") -> float:
    """Largest |engine - reference| on a label logit of the canary and the golden vectors."""
    goldens = (bundle.manifest.canary.golden, *bundle.manifest.golden)
    feeds = [_feeds(bundle, golden) for golden in goldens]
    visual = [None if each is None else engine.encode_image(each) for each in feeds]
    engine.release("vision")  # a large bundle's stages do not fit the memory together
    return max(
        _distance(golden, _score(bundle, engine, golden, seen))
        for golden, seen in zip(goldens, visual, strict=True)
    )


def check_canary(bundle: Bundle, engine: "Scorer | BatchScorer", again: bool = False) -> None:
    """Raises ProviderError where this machine does not give the canary's label logits, BundleError
    where a policy is not compiled from what it says. Asked once for a bundle, a processor and a
    version of ONNX Runtime; `again` asks in any case.
    """
    from edgejudge.compiled_check import check_compiled
    from edgejudge.runtime.settings import machine

    file = cache_folder() / "canaries" / f"{bundle.fingerprint}.json"
    if not again and _kept(file) == machine():
        return
    check_compiled(bundle)
    canary = bundle.manifest.canary
    error = canary_distance(bundle, engine)
    if not error <= canary.tolerance:
        raise ProviderError(
            f"{bundle.path}: label logits of its canary are {error:.2g} off on this machine, "
            f"allowed are {canary.tolerance}, so no verdict could be trusted; check the files with "
            "`edgejudge screen --verify`, or use another version of onnxruntime"
        )
    with contextlib.suppress(OSError):  # what is not kept is asked again
        keep_json(file, machine())


def canary_distance(bundle: Bundle, engine: "Scorer | BatchScorer") -> float:
    """Largest |engine - reference| on a label logit of the canary."""
    golden = bundle.manifest.canary.golden
    return _distance(golden, _ask(bundle, engine, golden))


def step_distance(bundle: Bundle, engine: "Engine") -> float:
    """The same of the first question, whose last token passes the decoder alone: what text is
    written by may be another graph, and another kernel.
    """
    golden = bundle.manifest.canary.golden
    feeds = _feeds(bundle, golden)
    visual = None if feeds is None else engine.encode_image(feeds)
    ids, positions = _prefix(bundle, golden)
    *before, last = golden.branches[0]
    prefix = engine.prefill(ids, visual, positions)
    if before:
        prefix = engine.prefill(before, after=prefix)
    _, hidden = engine.append([last], after=prefix)
    first = replace(golden, label_logits=golden.label_logits[:1])
    return _distance(first, engine.label_logits(hidden[None]))


def _kept(file: Path) -> Any:
    with contextlib.suppress(OSError, ValueError):
        return json.loads(file.read_bytes())
    return None


def _ask(
    bundle: Bundle, engine: "Scorer | BatchScorer", golden: GoldenRecord
) -> NDArray[np.float32]:
    feeds = _feeds(bundle, golden)
    if isinstance(engine, BatchScorer):
        from edgejudge.runtime.sliced import Request

        (found,) = engine.ask([Request(golden.branches, *_prefix(bundle, golden), feeds)])
        if isinstance(found, EdgeJudgeError):
            raise found
        return found
    visual = None if feeds is None else engine.encode_image(feeds)
    return _score(bundle, engine, golden, visual)


def _score(
    bundle: Bundle, engine: "Scorer", golden: GoldenRecord, visual: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    if golden.image is None:
        return engine.score_blind(golden.branches)
    ids, positions = _prefix(bundle, golden)
    return engine.score(engine.prefill(ids, visual, positions), golden.branches)


def _prefix(bundle: Bundle, golden: GoldenRecord) -> tuple[Sequence[int], NDArray[np.int64] | None]:
    if golden.image is None:
        return (), None
    prompts, grid = Prompts.of(bundle), (golden.rows, golden.cols)
    return prompts.prefix_ids(*grid), prompts.prefix_positions(*grid)


def _feeds(bundle: Bundle, golden: GoldenRecord) -> Mapping[str, NDArray[Any]] | None:
    """The vision graph's inputs, of one with a picture."""
    if golden.image is None:
        return None
    canary = bundle.manifest.canary
    if golden.image == "canary":
        rgb = canary_image(canary.image_height, canary.image_width)
    else:
        rgb = _read_png(bundle.file(golden.image))
    return preprocess(rgb, image_spec(bundle.manifest.preprocessing)).feeds


def _read_png(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _distance(golden: GoldenRecord, found: NDArray[np.float32]) -> float:
    """The largest; infinite where a logit is no number."""
    error = float(np.abs(found - np.array(golden.label_logits)).max())
    return error if np.isfinite(error) else float("inf")
