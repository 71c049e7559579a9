"""Outliers as large models have them, put into small checkpoints.

Three kinds compute the same as before: channels that are always large, a residual stream turned so
that a few channels carry most of it, and neurons that fire a thousand times too strongly on a few
kinds of tokens. One does not: residuals of ten thousand.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

import tiny
from edgejudge.export import (
    CalibrationPicture,
    Checkpoint,
    Exact,
    Reference,
    asked_of,
    read_calibration,
    split_pictures,
)
from edgejudge.export.smoothing import Scaled, joints
from edgejudge.export.stream import residual_stream
from edgejudge.models.image import canary_image

TEXTS = ("a knife", "beer", "a dog", "written text")
HUGE = 1e4


def pictures_of(opened: Checkpoint, count: int) -> list[CalibrationPicture]:
    """Calibration pictures, where the checkpoint has them."""
    if opened.calibration_folder is not None:
        return split_pictures(read_calibration(opened.calibration_folder)).calibration[:count]
    return [CalibrationPicture("drawn", canary_image(50, 70), TEXTS)]


def scaled_channels(opened: Checkpoint, factor: float) -> Checkpoint:
    """Two channels of every place that smoothing can reach, made so much larger and used so much
    smaller.
    """
    rows: dict[str, np.ndarray] = {}
    columns: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(0)
    for joint in joints(opened.family, opened.spec, opened.weights):
        factors = np.ones(joint.last - joint.first, np.float32)
        factors[rng.integers(0, len(factors), 2)] = factor
        for user in joint.users:
            columns[user] = 1 / joint.to_columns(factors)
        for made in (joint.maker, joint.bias):
            if made is not None:
                whole = rows.setdefault(made, np.ones(opened.weights.shape(made)[0], np.float32))
                whole[joint.first : joint.last] *= factors
    return replace(opened, weights=Scaled(opened.weights, rows, columns))


def rotated(opened: Checkpoint) -> Checkpoint:
    """The decoder's residual stream in the basis of its principal components, after the weights of
    its norms were folded into the matrices behind them.
    """
    family, source = opened.family, opened.weights
    names = [name for name, _ in family.weight_names(opened.spec)]
    held = {name: source(name).astype(np.float64) for name in names}
    stem = _stem(opened)
    norms = {f"{stem}.norm.weight": [family.HEAD]}
    for layer in range(opened.spec.text.layers):
        at = f"{stem}.layers.{layer}"
        norms[f"{at}.input_layernorm.weight"] = [f"{at}.self_attn.{n}_proj.weight" for n in "qkv"]
        norms[f"{at}.post_attention_layernorm.weight"] = [
            f"{at}.mlp.{n}_proj.weight" for n in ("gate", "up")
        ]
    inputs = _inputs(opened, [users[0] for users in norms.values()])
    seen = []
    for norm, users in norms.items():
        if users[0] in inputs:
            seen.append(inputs[users[0]] / held[norm])
        for user in users:
            held[user] = held[user] * held[norm]
        held[norm] = np.ones_like(held[norm])
    rows = np.concatenate(seen)
    turn = np.linalg.eigh(rows.T @ rows)[1][:, ::-1]  # [D, D], the largest component first
    held[family.EMBEDDINGS] = held[family.EMBEDDINGS] @ turn
    for users in norms.values():
        for user in users:
            held[user] = held[user] @ turn
    places = residual_stream(family, opened.spec, source)
    for name in [*places.writers, *places.vectors - {family.EMBEDDINGS}]:
        held[name] = turn.T @ held[name]
    text = replace(opened.spec.text, tie_word_embeddings=False)
    return replace(opened, spec=replace(opened.spec, text=text), weights=_held(held))


def massive(opened: Checkpoint, strength: float, layers: range) -> Checkpoint:
    """Neurons in pairs that fire `strength` times more strongly than all others, on the first
    token, on those that begin an image and on delimiters; what a pair adds cancels.
    """
    names = [name for name, _ in opened.family.weight_names(opened.spec)]
    held = {name: opened.weights(name).astype(np.float64) for name in names}
    stem, ids = _stem(opened), _token_ids(opened)
    whole = np.concatenate(ids)
    first = np.concatenate([np.arange(len(some)) == 0 for some in ids])
    image = opened.tokens.image
    begins = np.concatenate([np.append(some[1:] == image, False) & (some != image) for some in ids])
    ends = [opened.tokenizer.encode(":")[-1], opened.tokens.end_of_turn]
    kinds = (first, begins, np.isin(whole, ends))
    rng = np.random.default_rng(1)
    for layer in layers:
        at = f"{stem}.layers.{layer}.mlp"
        gate, up, down = (f"{at}.{n}_proj.weight" for n in ("gate", "up", "down"))
        inputs = _inputs(opened, [gate, down])
        usual = np.median(np.abs(inputs[down]).max(1))
        for kind in kinds:
            x = inputs[gate]
            wanted = np.where(kind, 1.0, -0.5)
            weight = np.where(kind, len(kind) / max(1, kind.sum()), 1.0)
            ridge = 1e-3 * np.trace(x.T @ x) / x.shape[1] * np.eye(x.shape[1])
            pick = np.linalg.solve((x.T * weight) @ x + ridge, (x.T * weight) @ wanted)
            size = np.sqrt(strength * usual)
            small = np.abs(held[down]).mean() * rng.standard_normal((held[down].shape[0], 1))
            for sign in (1, -1):
                held[gate] = np.concatenate([held[gate], size * pick[None]])
                held[up] = np.concatenate([held[up], size * pick[None]])
                held[down] = np.concatenate([held[down], sign * small], 1)
    width = held[f"{stem}.layers.{layers[0]}.mlp.gate_proj.weight"].shape[0]
    for layer in range(opened.spec.text.layers):  # all layers are of one width
        at = f"{stem}.layers.{layer}.mlp"
        for name in ("gate", "up"):
            rows = held[f"{at}.{name}_proj.weight"]
            held[f"{at}.{name}_proj.weight"] = np.pad(rows, ((0, width - len(rows)), (0, 0)))
        columns = held[f"{at}.down_proj.weight"]
        held[f"{at}.down_proj.weight"] = np.pad(columns, ((0, 0), (0, width - columns.shape[1])))
    text = replace(opened.spec.text, intermediate=width)
    return replace(opened, spec=replace(opened.spec, text=text), weights=_held(held))


def _held(arrays: dict[str, np.ndarray]) -> tiny.Held:
    return tiny.Held({n: np.ascontiguousarray(a, np.float32) for n, a in arrays.items()})


def _stem(opened: Checkpoint) -> str:
    """What the decoder's weights begin with."""
    return opened.family.EMBEDDINGS.removesuffix(".embed_tokens.weight")


def _token_ids(opened: Checkpoint) -> list[np.ndarray]:
    """The ids of what passes the decoder, run by run, in the order of the passes of a layer."""
    found = []
    for asked in asked_of(opened, pictures_of(opened, 4)):
        found.append(np.array(asked.ids))
        found += [np.array(branch) for branch in asked.branches]
    return found


def _inputs(opened: Checkpoint, names: list[str]) -> dict[str, np.ndarray]:
    """What each weight is multiplied with, [tokens, K]."""
    seen: dict[str, list[np.ndarray]] = {}

    def watch(name: str, x: torch.Tensor) -> None:
        if name in names:
            seen.setdefault(name, []).append(x.reshape(-1, x.shape[-1]).double().numpy())

    _ask(opened, watch, 4)
    return {name: np.concatenate(rows) for name, rows in seen.items()}


def _ask(opened: Checkpoint, observe: Callable[[str, torch.Tensor], None], count: int) -> None:
    reference = Reference(
        opened.spec, Exact(opened.weights), opened.tokens.image, torch.float64, observe
    )
    reference.ask(asked_of(opened, pictures_of(opened, count)), opened.labels.token_ids)


def huge_residuals(opened: Checkpoint) -> Checkpoint:
    """Ten thousand in one channel: in the decoder's residuals of the first token and of those that
    end a turn, as large models have it, and in the tower's of some patches.
    """
    names = [name for name, _ in opened.family.weight_names(opened.spec)]
    held = {name: np.array(opened.weights(name)) for name in names}
    table = held[opened.family.EMBEDDINGS]
    for token in (opened.prompt.head[0], opened.tokens.end_of_turn):
        table[token, 5] = HUGE
    tables = ("position_embedding", "pos_embed.")
    positions = [name for name in names if any(table in name for table in tables)]
    if positions:
        held[positions[0]][..., [0, 7], 3] = HUGE
    else:  # it has no positions: a neuron of the first layer that fires on patches like the first
        (gate,) = (name for name in names if name.endswith("visual.blocks.0.mlp.gate_proj.weight"))
        patch = _inputs(opened, [gate])[gate][0]
        length = np.linalg.norm(patch)
        held[gate][0], held[gate.replace("weight", "bias")][0] = 10 * patch / length, -9 * length
        held[gate.replace("gate", "up")][0] = patch / length
        held[gate.replace("gate", "down")][:, 0] = 0
        held[gate.replace("gate", "down")][3, 0] = HUGE / length**2
    return replace(opened, weights=tiny.Held(held))
