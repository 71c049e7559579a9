"""Whether a bundle's manifest fits the model that it describes: token ids, prompts, parts, sizes.

Takes a manifest that edgejudge.manifest_check has found sound; raises a `BundleError` that names
the field. Knows no files and no engine.
"""

from collections.abc import Iterable, Iterator, Sequence

from edgejudge.bundle import GraphRecord, Manifest, PartRecord
from edgejudge.errors import BundleError, InputError
from edgejudge.models.anyres import AnyResSpec, lines_of
from edgejudge.models.concepts import pattern_problem
from edgejudge.models.crop import CropSpec
from edgejudge.models.image import ImageSpec, image_spec
from edgejudge.models.mosaic import MosaicSpec, mosaic_of
from edgejudge.models.patches import fit
from edgejudge.models.spec import ModelSpec
from edgejudge.models.tiles import TileSpec, grid_of
from edgejudge.printable import brief

__all__ = ["check_fit"]

Problem = tuple[str, str]  # the place, and what is wrong there
_LAYOUTS = ("tiles", "grid", "lines")
_TYPE_BYTES = {"float16": 2, "float32": 4}


def check_fit(manifest: Manifest, where: str) -> None:
    """`where` is what the error calls the bundle."""
    for place, problem in _problems(manifest):
        raise BundleError(f"{where}: {place}: {problem}; do not use this bundle")


def _problems(manifest: Manifest) -> Iterator[Problem]:
    spec = ModelSpec.from_json(manifest.spec)
    image = image_spec(manifest.preprocessing)
    if manifest.family != spec.family:
        yield "family", f"'{manifest.family}' is not that of the spec, '{spec.family}'"
    yield from _tables(manifest, spec)
    yield from _tokens(manifest, spec)
    yield from _prompt(manifest, spec, image)
    yield from _pictures(manifest, spec, image)
    for index, pattern in enumerate(manifest.patterns):
        if problem := pattern_problem(pattern):
            yield f"patterns[{index}]", problem
    yield from _layers(manifest.parts, spec.text.layers, "parts")
    if manifest.decoder_slices:
        yield from _layers(manifest.decoder_slices, spec.text.layers, "decoder_slices")
    if manifest.vision_slices:
        yield from _layers(manifest.vision_slices, spec.vision.layers, "vision_slices")
    for index, graph in enumerate(manifest.graphs):
        yield from _graph(graph, spec, manifest, f"graphs[{index}]")


def _tables(manifest: Manifest, spec: ModelSpec) -> Iterator[Problem]:
    table = manifest.embeddings
    if table.rows != spec.text.vocab or table.width != spec.text.hidden:
        yield (
            "embeddings",
            f"{table.rows} x {table.width}, the spec says {spec.text.vocab} x {spec.text.hidden}",
        )
    files = {file.name: file.bytes for file in manifest.files}
    size = table.rows * table.width * _TYPE_BYTES[table.dtype]
    if files.get(table.file) != size:
        yield "embeddings.file", f"'{table.file}' is not listed with {size} bytes"
    if (encoder := manifest.relevance) is not None:
        size = len(encoder.rules) * encoder.width * _TYPE_BYTES["float32"]
        if files.get(encoder.texts) != size:
            yield "relevance.texts", f"'{encoder.texts}' is not listed with {size} bytes"
        CropSpec.from_json(encoder.preprocessing)


def _tokens(manifest: Manifest, spec: ModelSpec) -> Iterator[Problem]:
    """Every id is one of the vocabulary, and an image token stands for a piece of a picture only:
    whoever reads a prompt puts one in place of each.
    """
    image, most = manifest.tokens.image, spec.text.vocab
    tokens = (image, manifest.tokens.end_of_turn, *manifest.tokens.eos)
    if not manifest.tokens.eos:
        yield "tokens.eos", "expected some"
    for place, some in (("tokens", tokens), ("label_rows", manifest.label_rows)):
        if not all(0 <= token < most for token in some):
            yield place, f"a token is not one of {most}"
    for place, ids in _written(manifest):
        if ids and not 0 <= min(ids) <= max(ids) < most:
            yield place, f"a token is not one of {most}"
        if image in ids:
            yield place, f"holds the image token {image}"


def _written(manifest: Manifest) -> Iterator[tuple[str, Sequence[int]]]:
    """Every run of tokens in which no picture is."""
    prompt = manifest.prompt
    for name in ("head", "image_open", "image_break", "row_break", "last_break", "tail"):
        yield f"prompt.{name}", getattr(prompt, name)
    for name in ("view_open", "view_close", "blind_head", "next_turn"):
        yield f"prompt.{name}", getattr(prompt, name)
    for row, tiles in enumerate(prompt.tile_open):
        for col, ids in enumerate(tiles):
            yield f"prompt.tile_open[{row}][{col}]", ids
    for index, policy in enumerate(manifest.policies):
        for at, rule in enumerate(policy.rules):
            for each, either in enumerate(rule.conditions):
                for one, condition in enumerate(either):
                    spot = f"policies[{index}].rules[{at}].conditions[{each}][{one}]"
                    yield f"{spot}.branch_ids", condition.branch_ids
    for index, golden in enumerate((manifest.canary.golden, *manifest.golden)):
        place = f"golden[{index - 1}]" if index else "canary.golden"
        for branch, ids in enumerate(golden.branches):
            yield f"{place}.branches[{branch}]", ids


def _prompt(manifest: Manifest, spec: ModelSpec, image: ImageSpec) -> Iterator[Problem]:
    prompt = manifest.prompt
    if prompt.question_template.count("{condition}") != 1:
        yield "prompt.question_template", "needs {condition} once"
    if not prompt.tail or not prompt.blind_head:
        yield "prompt.tail", "a question ends, and begins, with a token"
    if prompt.visual_tokens != spec.view_tokens:
        yield (
            "prompt.visual_tokens",
            f"{prompt.visual_tokens} of a view, the spec says {spec.view_tokens}",
        )
    if prompt.layout not in _LAYOUTS:
        yield "prompt.layout", f"'{brief(prompt.layout)}' is none of {', '.join(_LAYOUTS)}"
    elif prompt.layout != _layout_of(spec):
        yield "prompt.layout", f"'{prompt.layout}', the spec means '{_layout_of(spec)}'"
    most = image.max_grid if isinstance(image, TileSpec | MosaicSpec) else 0
    rows, named = prompt.tile_open, isinstance(image, TileSpec)  # where each tile has a name
    if (rows or named) and (len(rows) < most or any(len(row) < most for row in rows)):
        yield "prompt.tile_open", f"expected {most} x {most} tiles"


def _layout_of(spec: ModelSpec) -> str:
    if not spec.view_tokens:
        return "grid"
    return "lines" if spec.line_end else "tiles"


def _pictures(manifest: Manifest, spec: ModelSpec, image: ImageSpec) -> Iterator[Problem]:
    vision, canary = spec.vision, manifest.canary
    if isinstance(image, AnyResSpec) != spec.line_end:
        yield "preprocessing.kind", f"'{image.kind}' makes no input of this spec"
    size = (canary.image_height, canary.image_width)
    pairs: Iterable[tuple[str, float, float]]
    if isinstance(image, TileSpec | MosaicSpec):
        pairs = [("view", image.view, vision.image_size)]
        grid = grid_of(*size, image) if isinstance(image, TileSpec) else mosaic_of(*size, image)
    elif isinstance(image, AnyResSpec):
        pairs = [("view", image.view, vision.image_size), ("grid", image.grid, vision.grid)]
        grid = lines_of(*size, image)
    else:
        pairs = [
            ("patch", image.patch, vision.patch_size),
            ("merge", image.merge, spec.scale_factor),
            ("frames", image.frames, vision.frames),
            ("window", image.window, vision.window),
            ("table_side", image.table_side, vision.table_side),
            ("head_dim", image.head_dim, vision.head_dim),
            ("rope_theta", image.rope_theta, vision.rope_theta),
        ]
        try:
            high, wide = fit(*size, image)
        except InputError as error:
            yield "canary.image_height", str(error)
            return
        grid = (high // image.unit, wide // image.unit)
    for name, found, wanted in pairs:
        if found != wanted:
            yield f"preprocessing.{name}", f"{found}, the spec says {wanted}"
    if (canary.golden.rows, canary.golden.cols) != grid:
        yield "canary.golden.rows", f"a picture of {size[1]} x {size[0]} is cut otherwise"


def _layers(parts: Sequence[PartRecord], layers: int, place: str) -> Iterator[Problem]:
    last = parts[-1].last_layer if parts else -1
    if last != layers - 1:
        yield place, f"they end with layer {last}, the model with {layers - 1}"


def _graph(
    graph: GraphRecord, spec: ModelSpec, manifest: Manifest, place: str
) -> Iterator[Problem]:
    kv, text = graph.kv, spec.text
    wide = {
        "vision": spec.width_at(0),
        "verdict_head": len(manifest.label_rows),
        "lm_head": text.vocab,
    }
    if graph.stage in ("decoder", "decoder_slice", "writer") and graph.part is not None:
        parts = manifest.decoder_slices if graph.stage == "decoder_slice" else manifest.parts
        wide[graph.stage] = spec.width_at(parts[graph.part].last_layer + 1)
    if graph.stage == "relevance":
        wide["relevance"] = 0 if manifest.relevance is None else manifest.relevance.width
    if graph.stage == "vision_slice" and graph.part == len(manifest.vision_slices) - 1:
        wide["vision_slice"] = spec.width_at(0)
    shape = graph.outputs[0].shape
    if graph.stage in wide and (not shape or shape[-1] != str(wide[graph.stage])):
        yield f"{place}.outputs[0].shape", f"expected {wide[graph.stage]} at its end"
    if kv is None:
        return
    if (kv.kv_heads, kv.head_dim) != (text.kv_heads, text.head_dim):
        yield (
            f"{place}.kv",
            f"{kv.kv_heads} heads of {kv.head_dim}, the spec says {text.kv_heads} of "
            f"{text.head_dim}",
        )
    if graph.part is None:
        yield f"{place}.part", "a decoder's graph is of a part"
        return
    parts = manifest.decoder_slices if graph.stage == "decoder_slice" else manifest.parts
    part = parts[graph.part]
    if kv.layout == "state":
        return
    wanted = {
        f"past_{which}_{layer}"
        for which in ("key", "value")
        for layer in range(part.first_layer, part.last_layer + 1)
    }
    given = [tensor for tensor in graph.inputs if tensor.name.startswith("past_")]
    if {tensor.name for tensor in given} != wanted or len(graph.outputs) != 1 + len(wanted):
        yield f"{place}.inputs", f"keys and values are not those of part {graph.part}"
    dtype, width = kv.row
    if graph.target == "cpu" and any(
        (tensor.dtype, tensor.shape[-1:]) != (dtype, (str(width),)) for tensor in given
    ):
        yield f"{place}.inputs", f"keys and values are not of {width} {dtype}, as {kv.dtype} is"
