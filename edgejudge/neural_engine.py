"""Which operations of a MIL program are known to leave Apple's Neural Engine, and who says so.

Takes operations as edgejudge.mil_file gives them; gives the rules that hold for each. Rules are
what has been published, by Apple or by those who tried on their own devices; where these disagree,
or only one of them saw it, a rule is `reported`. Nothing of it was measured here: only the compute
plan of a Mac or a phone tells what runs where. Knows no bundle.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edgejudge.mil_file import CONSTANT, Operation, Value

__all__ = ["RULES", "Rule", "leaving"]

_BOOK = "https://ane-guide.readthedocs.io/en/latest"
_GUIDE = f"{_BOOK}/part-1-machine/04-capability-surface.html"
_MATRIX = f"{_BOOK}/appendices/a-op-device-matrix.html"
_WEIGHTS = f"{_BOOK}/part-2-reaching/07-weights-and-compression.html"
_TYPED = "https://apple.github.io/coremltools/docs-guides/source/typed-execution.html"
_LAYERS = "https://github.com/hollance/neural-engine/blob/master/docs/unsupported-layers.md"
_COREMLTOOLS = "https://github.com/apple/coremltools"
_MOBIUS = "https://github.com/FluidInference/mobius/pull"
_ANEMLL = "https://github.com/Anemll/Anemll/issues/27"
_QWEN = "https://huggingface.co/seba/qwen-2-coreml-ane"
_WHISPER = "https://huggingface.co/SingularityUS/atc-whisperkit"

_SHORT, _LONG = 16384, 65536  # the longest axis of older engines, and of the newest
_MOST_RANK = 5
_STATE_STEP = 32
_MOST_ROWS = 32
_REPEATS = frozenset((1, 2, 3, 4, 8))
_CONV = frozenset(("conv", "conv_transpose"))
_SLICES = frozenset(("slice_update", "slice_by_index", "slice_by_size"))
_GATHERS = frozenset(("gather", "gather_along_axis", "gather_nd"))
_NOWHERE = frozenset(
    "reduce_prod scatter scatter_along_axis scatter_nd mod one_hot non_zero band_part "
    "reverse_sequence shape sliding_windows logical_and logical_or logical_xor gru lstm rnn tan "
    "asin acos asinh acosh atanh sinh cosh random_bernoulli random_categorical random_normal "
    "list_gather list_length list_read list_scatter list_write make_list".split()
)


@dataclass(frozen=True, slots=True)
class Rule:
    """`holds` looks at an operation that is no constant, with its types and shapes."""

    name: str
    reason: str
    sources: tuple[str, ...]
    holds: Callable[[Operation], bool]
    reported: bool = False


def leaving(operation: Operation) -> Iterator[Rule]:
    """The rules by which it leaves the engine."""
    if operation.type != CONSTANT:
        yield from (rule for rule in RULES if rule.holds(operation))


def _read(operation: Operation) -> list[Value]:
    return [value for values in operation.inputs.values() for value in values]


def _given(operation: Operation, parameter: str) -> tuple[Value, ...]:
    return operation.inputs.get(parameter, ())


def _unpacks(operation: Operation) -> bool:
    """Happens when the program is loaded, and on no device."""
    return operation.type.startswith("constexpr_")


def _makes(operation: Operation, *kinds: str) -> bool:
    if _unpacks(operation) or operation.type == "cast":
        return False
    return any(value.dtype in kinds for value in operation.outputs)


def _longest(operation: Operation, free: bool = False) -> int:
    """Of the axes of all that is read and made, without channels of convolutions if `free`."""
    if _unpacks(operation):
        return 0
    lengths = [0]
    for parameter, values in operation.inputs.items():
        for value in values:
            channels = (0, 1) if parameter == "weight" else (1,)
            lengths += _axes(value, channels if free and operation.type in _CONV else ())
    for value in operation.outputs:
        lengths += _axes(value, (1,) if free and operation.type in _CONV else ())
    return max(lengths)


def _axes(value: Value, without: tuple[int, ...]) -> list[int]:
    return [length for axis, length in enumerate(value.shape) if axis not in without]


def _rank(operation: Operation) -> int:
    if _unpacks(operation):
        return 0
    return max((len(v.shape) for v in (*_read(operation), *operation.outputs)), default=0)


def _by_block(operation: Operation) -> bool:
    """Scales that differ along a row, or for groups of rows."""
    if operation.type != "constexpr_blockwise_shift_scale":
        return False
    whole = {value.shape[:1] for value in operation.outputs}
    return any(
        value.shape[:1] not in {(), (1,), *whole} or any(blocks != 1 for blocks in value.shape[1:])
        for value in _given(operation, "scale")
    )


def _scaled_palette(operation: Operation) -> bool:
    return operation.type == "constexpr_blockwise_shift_scale" and any(
        value.made_by == "constexpr_lut_to_dense" and value.dtype.startswith("float")
        for value in _given(operation, "data")
    )


def _odd_state(operation: Operation) -> bool:
    return any(
        value.made_by == "state" and value.shape[-1:] and value.shape[-1] % _STATE_STEP != 0
        for value in _read(operation)
    )


def _moving(operation: Operation) -> bool:
    places = (*_given(operation, "begin"), *_given(operation, "end"))
    return operation.type in _SLICES and not all(value.constant for value in places)


def _long_update(operation: Operation) -> bool:
    """Of what a state holds."""
    if operation.type != "slice_update":
        return False
    whole, update = _given(operation, "x"), _given(operation, "update")
    return any(v.made_by == "read_state" for v in whole) and any(
        len(v.shape) > 1 and v.shape[-2] > _MOST_ROWS for v in update
    )


def _odd_tile(operation: Operation) -> bool:
    return operation.type == "tile" and any(
        not _REPEATS.issuperset(value.numbers) for value in _given(operation, "reps")
    )


RULES = (
    Rule(
        "float32",
        "computes in floats of 32 bits, and the engine has none but those of 16",
        (_GUIDE, _TYPED),
        lambda op: _makes(op, "float32", "float64", "bfloat16"),
    ),
    Rule(
        "integers",
        "computes with integers, which the compiler takes as types and the engine does not compute",
        (_GUIDE, "https://aneforge.readthedocs.io/en/latest/capabilities/"),
        lambda op: _makes(op, "int32", "int64", "int16", "uint16", "uint32"),
    ),
    Rule(
        "blocks",
        "its scales differ within a row, and Core ML leaves the product to the CPU ('ANE only "
        "support per-cout/per-tensor quantization'), though the engine itself streams them from M3 "
        "on",
        (f"{_COREMLTOOLS}/issues/2510", _QWEN, _WEIGHTS),
        _by_block,
    ),
    Rule(
        "axis_65536",
        f"an axis is longer than {_LONG}, the most of any engine",
        (_MATRIX, "https://github.com/maderix/ANE/pull/26"),
        lambda op: _longest(op) > _LONG,
    ),
    Rule(
        "axis_16384",
        f"an axis is longer than {_SHORT}, the most up to A15 and M3; A16 and M4 take {_LONG}",
        (_MATRIX, _QWEN, "https://github.com/sbryngelson/ANEForge/pull/182"),
        lambda op: _SHORT < _longest(op, free=True) and _longest(op) <= _LONG,
    ),
    Rule(
        "rank_6",
        f"a tensor has more than {_MOST_RANK} dimensions",
        (_GUIDE,),
        lambda op: _rank(op) > _MOST_RANK,
    ),
    Rule(
        "matmul_rank",
        "a product of matrices in more than 4 dimensions is refused",
        (_GUIDE,),
        lambda op: op.type == "matmul" and _rank(op) == _MOST_RANK,
    ),
    Rule(
        "rank_5",
        "programs with tensors of 5 dimensions were refused where those of 4 were taken; "
        "others name 5 as what the engine takes",
        ("https://github.com/FluidInference/FluidAudio/pull/679", _GUIDE, f"{_MOBIUS}/67"),
        lambda op: op.type != "matmul" and _rank(op) == _MOST_RANK,
        reported=True,
    ),
    Rule(
        "state_width",
        f"a program is refused whose state has a last dimension that is no multiple of "
        f"{_STATE_STEP}",
        (f"{_COREMLTOOLS}/issues/2631",),
        _odd_state,
        reported=True,
    ),
    Rule(
        "state_write",
        "a program that writes to its state was refused as a whole (M5 Pro), while "
        "others run such programs on the engine",
        (f"{_MOBIUS}/77", f"{_COREMLTOOLS}/issues/2553", _QWEN),
        lambda op: op.type == "write_state",
        reported=True,
    ),
    Rule(
        "moving_slice",
        "a slice whose place is known only when it runs crashed or was refused by the "
        "compiler, while others run such updates of a state on the engine",
        ("https://github.com/apple/coreai-torch/issues/6", _GUIDE, _QWEN),
        _moving,
        reported=True,
    ),
    Rule(
        "long_update",
        f"a state is updated by more than {_MOST_ROWS} rows at once, at which a program "
        "was refused that ran with fewer; others run 64",
        (_ANEMLL, _QWEN),
        _long_update,
        reported=True,
    ),
    Rule(
        "scaled_palette",
        "a palette of floats with a scale on top crashes while it is loaded (macOS 26); others ran "
        "it before",
        (f"{_COREMLTOOLS}/pull/2688", _QWEN),
        _scaled_palette,
        reported=True,
    ),
    Rule(
        "tile",
        "it repeats by something else than 2, 3, 4 or 8",
        (_MATRIX,),
        _odd_tile,
        reported=True,
    ),
    Rule(
        "gather",
        "rows that are picked by number stay on the CPU; the engine has it from A14 and "
        "M2 on, and Core ML's plans do not use it",
        (_LAYERS, _MATRIX, f"{_WHISPER}/blob/main/small/TextDecoder.mlcomputeplan.json"),
        lambda op: op.type in _GATHERS,
        reported=True,
    ),
    Rule(
        "no_path",
        "no engine has it",
        (_MATRIX, _LAYERS, f"{_COREMLTOOLS}/issues/1780"),
        lambda op: op.type in _NOWHERE,
    ),
)
