"""The vision tower that families share: SigLIP's, over square views with learned positions.

Takes a spec and where a checkpoint keeps the tower; gives the forward pass over the op vocabulary,
up to the norm behind the layers, and the weights of both. Knows no connector and no
preprocessing.
"""

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgejudge.models.ops import Ops
from edgejudge.models.spec import ModelSpec, VisionSpec

__all__ = ["encoder", "patches", "static_vision_inputs", "vision_inputs", "weight_names"]

V = TypeVar("V")


def vision_inputs(
    spec: ModelSpec, layers: range | None = None
) -> dict[str, tuple[str, tuple[int | str, ...]]]:
    """Name -> element type and shape of what `vision` takes. V views do not meet one another."""
    tower = spec.vision
    if layers is not None and layers.start:
        return {"hidden": ("float32", ("V", tower.grid**2, tower.hidden))}
    return {"pixel_values": ("float32", ("V", 3, tower.image_size, tower.image_size))}


def static_vision_inputs(spec: ModelSpec) -> dict[int, dict[str, tuple[int, ...]]]:
    """Views of a static graph -> name and shape of its inputs, all float32."""
    side = spec.vision.image_size
    return {1: {"pixel_values": (1, 3, side, side)}}


def patches(ops: Ops[V], tower: VisionSpec, stem: str, pixels: V, rows: NDArray[np.int64]) -> V:
    """[V, 3, S, S] -> what the first layer takes [V, grid * grid, hidden]; `rows` of the position
    table are those of the patches.
    """
    at = f"{stem}.embeddings"
    x = ops.patchify(pixels, tower.image_size, tower.patch_size)
    x = ops.linear(x, f"{at}.patch_embedding.weight", f"{at}.patch_embedding.bias")
    return ops.add(x, ops.table(f"{at}.position_embedding.weight", rows))


def encoder(ops: Ops[V], tower: VisionSpec, stem: str, x: V, layers: range) -> V:
    """[V, grid * grid, hidden] through these layers."""
    for layer in layers:
        at = f"{stem}.encoder.layers.{layer}"
        y = ops.layer_norm(x, f"{at}.layer_norm1.weight", f"{at}.layer_norm1.bias", tower.eps)
        q, k, v = (
            ops.linear(y, f"{at}.self_attn.{n}_proj.weight", f"{at}.self_attn.{n}_proj.bias")
            for n in "qkv"
        )
        y = ops.full_attention(q, k, v, tower.heads, tower.head_dim**-0.5)
        out = f"{at}.self_attn.out_proj"
        x = ops.add(x, ops.linear(y, f"{out}.weight", f"{out}.bias"))
        y = ops.layer_norm(x, f"{at}.layer_norm2.weight", f"{at}.layer_norm2.bias", tower.eps)
        y = ops.linear(y, f"{at}.mlp.fc1.weight", f"{at}.mlp.fc1.bias")
        y = ops.activation(y, tower.activation)
        x = ops.add(x, ops.linear(y, f"{at}.mlp.fc2.weight", f"{at}.mlp.fc2.bias"))
    return x


def weight_names(tower: VisionSpec, stem: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every weight of the tower and the norm behind it, with the shape it must have."""
    d = tower.hidden
    yield f"{stem}.embeddings.patch_embedding.weight", (d, 3, tower.patch_size, tower.patch_size)
    yield f"{stem}.embeddings.patch_embedding.bias", (d,)
    yield f"{stem}.embeddings.position_embedding.weight", (tower.grid**2, d)
    norms, linears = [f"{stem}.post_layernorm"], []
    for layer in range(tower.layers):
        at = f"{stem}.encoder.layers.{layer}"
        norms += [f"{at}.layer_norm1", f"{at}.layer_norm2"]
        linears += [(f"{at}.self_attn.{n}_proj", d, d) for n in ("q", "k", "v", "out")]
        linears += [
            (f"{at}.mlp.fc1", tower.intermediate, d),
            (f"{at}.mlp.fc2", d, tower.intermediate),
        ]
    for name in norms:
        yield f"{name}.weight", (d,)
        yield f"{name}.bias", (d,)
    for name, out, inner in linears:
        yield f"{name}.weight", (out, inner)
        yield f"{name}.bias", (out,)
