"""Which operations leave the Neural Engine: every rule fires on a program that is made by hand, and
not on its twin, which differs in a type, a shape or a place.
"""

from typing import Any

import pytest

pytest.importorskip("coremltools", reason="the extra coreml is not installed")

from edgejudge.mil_file import read_program
from edgejudge.neural_engine import RULES, leaving
from mil_by_hand import Op, by_hand, state

H = "float16"
X = {"x": (H, (1, 64))}


def matmul(wide: int, kind: str = H) -> bytes:
    product: Op = ("matmul", {"x": "x", "y": (kind, (wide, 64))}, {"y": (kind, (1, wide))})
    return by_hand([product], {"x": (kind, (1, 64))})


def conv(channels: int) -> bytes:
    product: Op = (
        "conv",
        {"x": "x", "weight": (H, (channels, 64, 1, 1))},
        {"y": (H, (1, channels, 1, 8))},
    )
    return by_hand([product], {"x": (H, (1, 64, 1, 8))})


def unpacked(scale: tuple[int, ...], palette: bool = False) -> bytes:
    operations: list[Op] = []
    data: Any = ("int4", (32, 64))
    if palette:
        table = {"indices": ("uint4", (32, 64)), "lut": (H, (1, 1, 16, 1))}
        operations.append(("constexpr_lut_to_dense", table, {"dense": (H, (32, 64))}))
        data = "dense"
    scaled = {"data": data, "scale": (H, scale)}
    operations.append(("constexpr_blockwise_shift_scale", scaled, {"w": (H, (32, 64))}))
    operations.append(("matmul", {"x": "x", "y": "w"}, {"y": (H, (1, 32))}))
    return by_hand(operations, X)


def palette() -> bytes:
    table = {"indices": ("uint4", (32, 64)), "lut": (H, (1, 1, 16, 1))}
    dense: Op = ("constexpr_lut_to_dense", table, {"w": (H, (32, 64))})
    return by_hand([dense, ("matmul", {"x": "x", "y": "w"}, {"y": (H, (1, 32))})], X)


def shaped(kind: str, *shape: int) -> bytes:
    made: Op = (kind, {"x": "x", "y": "x"}, {"y": (H, shape)})
    return by_hand([made], {"x": (H, shape)})


def sliced(kind: str, moving: bool) -> bytes:
    place: Any = {"begin": "at" if moving else [0, 0], "end": [1, 8]}
    made: Op = (kind, {"x": "x", **place}, {"y": (H, (1, 8))})
    return by_hand([made], {**X, "at": ("int32", (2,))})


def typed(kind: str) -> bytes:
    return by_hand([("add", {"x": "x", "y": "x"}, {"y": (kind, (1, 64))})], {"x": (kind, (1, 64))})


def repeated(times: int) -> bytes:
    made: Op = ("tile", {"x": "x", "reps": [1, times]}, {"y": (H, (1, 64 * times))})
    return by_hand([made], X)


def plain(kind: str) -> bytes:
    return by_hand([(kind, {"x": "x"}, {"y": (H, (1, 64))})], X)


# rule -> a program by which it leaves the engine, and its twin that stays
TWINS: dict[str, list[tuple[bytes, bytes]]] = {
    "float32": [(typed("float32"), typed(H)), (matmul(64, "float32"), matmul(64))],
    "integers": [(typed("int32"), typed(H))],
    "blocks": [
        (unpacked((32, 2)), unpacked((32, 1))),
        (unpacked((4, 1)), unpacked((1, 1))),
    ],
    "axis_65536": [(matmul(65537), matmul(16384)), (conv(65537), conv(65536))],
    "axis_16384": [
        (matmul(16385), matmul(16384)),
        (matmul(65536), conv(65536)),
        (shaped("add", 1, 64, 1, 16385), shaped("add", 1, 64, 1, 16384)),
    ],
    "rank_6": [(shaped("add", 1, 1, 1, 1, 2, 2), shaped("add", 1, 1, 2, 2))],
    "matmul_rank": [(shaped("matmul", 1, 1, 1, 2, 2), shaped("matmul", 1, 1, 2, 2))],
    "rank_5": [(shaped("transpose", 1, 1, 1, 2, 2), shaped("transpose", 1, 1, 2, 2))],
    "state_width": [(state(80), state(96))],
    "state_write": [(state(64, write=True), state(64))],
    "moving_slice": [
        (sliced(kind, True), sliced(kind, False)) for kind in ("slice_update", "slice_by_index")
    ],
    "long_update": [(state(64, rows=33), state(64, rows=32))],
    "scaled_palette": [(unpacked((32, 1), palette=True), palette())],
    "tile": [(repeated(6), repeated(8)), (repeated(7), repeated(1))],
    "gather": [(plain("gather"), plain("relu"))],
    "no_path": [(plain("scatter"), plain("relu")), (plain("lstm"), plain("silu"))],
}


def fired(data: bytes) -> set[str]:
    (function,) = read_program(data, "x").functions
    return {rule.name for op in function.operations for rule in leaving(op)}


def test_every_rule_has_twins_and_sources() -> None:
    assert TWINS.keys() == {rule.name for rule in RULES}
    assert all(url.startswith("https://") for rule in RULES for url in rule.sources)
    assert all(rule.sources for rule in RULES)


@pytest.mark.parametrize(
    ("rule", "bad", "good"), [(rule, *pair) for rule, pairs in TWINS.items() for pair in pairs]
)
def test_a_rule_fires_on_a_program_and_on_its_twin_it_does_not(
    rule: str, bad: bytes, good: bytes
) -> None:
    assert fired(bad) - fired(good) == {rule} and rule not in fired(good)


def test_what_is_cast_and_what_is_unpacked_stays() -> None:
    operations: list[Op] = [
        ("cast", {"x": "x"}, {"z": (H, (1, 64))}),
        ("cast", {"x": "z"}, {"y": ("float32", (1, 64))}),
    ]
    assert fired(by_hand(operations, {"x": ("float32", (1, 64))})) == set()
    assert fired(unpacked((32, 1))) == set()
