"""The decoder that families share: Llama's layers, with the few switches their models need.

Takes a spec and where a checkpoint keeps the layers; gives the forward pass over the op vocabulary
and the weights it asks for. Knows no vision tower and no prompt.
"""

from collections.abc import Iterator
from typing import TypeVar

from edgejudge.models.ops import Ops
from edgejudge.models.spec import TextSpec

__all__ = ["decoder", "head", "weight_names"]

V = TypeVar("V")


def decoder(
    ops: Ops[V],
    text: TextSpec,
    stem: str,
    hidden: V,
    rotation: tuple[V, V],
    layers: range,
    rows: V | None = None,
    lanes: int = 0,
) -> V:
    """hidden [1, S, D] through these layers; rotation is cos and sin [S, head_dim / 2].

    `rows` [R] are the tokens whose hidden states are wanted: of the others the last layer gives
    keys and values only, and the result is [1, R, D].

    With `lanes`, each of so many first layers is given something to add to what it made (DeepStack,
    Meng et al. 2024, arXiv 2406.04334): it stands beside the hidden states, [1, S, D * (1 + L)],
    where L of those layers are still to come.
    """
    x, *deep = _apart(ops, stem, hidden, lanes - layers.start, layers.start)
    for layer in layers:
        at = f"{stem}.layers.{layer}"
        y = ops.rms_norm(x, f"{at}.input_layernorm.weight", text.eps)
        q, k, v = (
            ops.linear(
                y,
                f"{at}.self_attn.{n}_proj.weight",
                f"{at}.self_attn.{n}_proj.bias" if text.qkv_bias else None,
            )
            for n in "qkv"
        )
        if text.qk_norm:
            q = _normalised(ops, text, q, text.heads, f"{at}.self_attn.q_norm.weight")
            k = _normalised(ops, text, k, text.kv_heads, f"{at}.self_attn.k_norm.weight")
        q = ops.rope(q, rotation, text.heads, text.head_dim)
        k = ops.rope(k, rotation, text.kv_heads, text.head_dim)
        shape = (text.heads, text.kv_heads, text.head_dim)
        y = ops.cached_attention(q, k, v, layer, *shape, text.head_dim**-0.5)
        if rows is not None and layer == layers[-1]:
            x, y = ops.take(x, rows), ops.take(y, rows)
            deep = [ops.take(each, rows) for each in deep]
        x = ops.add(x, ops.linear(y, f"{at}.self_attn.o_proj.weight"))
        y = ops.rms_norm(x, f"{at}.post_attention_layernorm.weight", text.eps)
        gate = ops.activation(ops.linear(y, f"{at}.mlp.gate_proj.weight"), text.activation)
        y = ops.mul(gate, ops.linear(y, f"{at}.mlp.up_proj.weight"))
        x = ops.add(x, ops.linear(y, f"{at}.mlp.down_proj.weight"))
        if deep:
            x = ops.add(x, deep.pop(0))
    return ops.join([x, *deep], _lanes_at(stem, layers.stop)) if deep else x


def _apart(ops: Ops[V], stem: str, hidden: V, lanes: int, layer: int) -> tuple[V, ...]:
    if lanes <= 0:
        return (hidden,)
    return ops.split(hidden, 1 + lanes, _lanes_at(stem, layer))


def _lanes_at(stem: str, layer: int) -> str:
    return f"{stem}.layers.{layer} lanes"


def _normalised(ops: Ops[V], text: TextSpec, x: V, heads: int, weight: str) -> V:
    """[1, S, heads * H], each head for itself."""
    x = ops.rms_norm(ops.reshape(x, 1, -1, heads, text.head_dim), weight, text.eps)
    return ops.reshape(x, 1, -1, heads * text.head_dim)


def head(
    ops: Ops[V],
    text: TextSpec,
    stem: str,
    weight: str,
    hidden: V,
    rows: tuple[int, ...] | None = None,
) -> V:
    """hidden [N, D] before the final norm -> logits [N, vocab], or those of `rows` alone."""
    return ops.linear(ops.rms_norm(hidden, f"{stem}.norm.weight", text.eps), weight, None, rows)


def weight_names(text: TextSpec, stem: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every weight of the layers and the final norm, with the shape it must have."""
    q, kv = text.heads * text.head_dim, text.kv_heads * text.head_dim
    for layer in range(text.layers):
        at = f"{stem}.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (text.hidden,)
        yield f"{at}.post_attention_layernorm.weight", (text.hidden,)
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            yield f"{at}.self_attn.{name}_proj.weight", (rows, text.hidden)
            if text.qkv_bias:
                yield f"{at}.self_attn.{name}_proj.bias", (rows,)
        for name in ("q_norm", "k_norm") if text.qk_norm else ():
            yield f"{at}.self_attn.{name}.weight", (text.head_dim,)
        yield f"{at}.self_attn.o_proj.weight", (text.hidden, q)
        for name in ("gate", "up"):
            yield f"{at}.mlp.{name}_proj.weight", (text.intermediate, text.hidden)
        yield f"{at}.mlp.down_proj.weight", (text.hidden, text.intermediate)
    yield f"{stem}.norm.weight", (text.hidden,)
