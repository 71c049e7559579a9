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
) -> V:
    """hidden [1, S, D] through these layers; rotation is cos and sin [S, head_dim / 2].

    `rows` [R] are the tokens whose hidden states are wanted: of the others the last layer gives
    keys and values only, and the result is [1, R, D].
    """
    x = hidden
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
        q = ops.rope(q, rotation, text.heads, text.head_dim)
        k = ops.rope(k, rotation, text.kv_heads, text.head_dim)
        shape = (text.heads, text.kv_heads, text.head_dim)
        y = ops.cached_attention(q, k, v, layer, *shape, text.head_dim**-0.5)
        if rows is not None and layer == layers[-1]:
            x, y = ops.take(x, rows), ops.take(y, rows)
        x = ops.add(x, ops.linear(y, f"{at}.self_attn.o_proj.weight"))
        y = ops.rms_norm(x, f"{at}.post_attention_layernorm.weight", text.eps)
        gate = ops.activation(ops.linear(y, f"{at}.mlp.gate_proj.weight"), text.activation)
        y = ops.mul(gate, ops.linear(y, f"{at}.mlp.up_proj.weight"))
        x = ops.add(x, ops.linear(y, f"{at}.mlp.down_proj.weight"))
    return x


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
        yield f"{at}.self_attn.o_proj.weight", (text.hidden, q)
        for name in ("gate", "up"):
            yield f"{at}.mlp.{name}_proj.weight", (text.intermediate, text.hidden)
        yield f"{at}.mlp.down_proj.weight", (text.hidden, text.intermediate)
    yield f"{stem}.norm.weight", (text.hidden,)
