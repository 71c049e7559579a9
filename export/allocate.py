"""Which matrices get eight bits where a budget of bytes leaves room for some.

Takes a checkpoint and a budget; gives a plan of four and eight bits, decided for each role of each
layer. What four bits cost is measured for each role over all layers and for each band of layers
over all roles, by a pass of the reference each; an exact search then spends the budget. Without
calibration pictures, or with random weights, what was measured of nano stands for it. Knows no
graph.
"""

import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from edgejudge.errors import ExportError
from edgejudge.export.blocks import Plan
from edgejudge.export.calibration import CalibrationPicture, read_calibration, split_pictures
from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.divergence import answers, expected_divergence
from edgejudge.export.quantize import dequantize
from edgejudge.export.recipe import layer_of
from edgejudge.export.smoothing import linear_weights
from edgejudge.export.stored import Exact, Stored
from edgejudge.export.weights import matrix_shape

__all__ = [
    "ALLOCATED",
    "BASE",
    "KINDS",
    "Group",
    "allocate",
    "check_budget",
    "best_within",
    "kind_of",
    "losses_of",
    "spent",
    "weight_bytes",
    "weight_groups",
]

ALLOCATED = "allocated"
BASE = "small"  # the recipe that has everything but the bits
_FEW, _MANY = 4, 8  # bits
_BANDS = 6  # of layers, as deep as one another
_CELLS = 200_000  # of the search, at most
# Of the divergence that the matrix would cause: no verdict meets the LM head, only text does.
_HEAD_SHARE = 1e-3
_MEASURING = "measuring what four bits cost"
# Divergence, in 1e-6 nats, of one group of nano with four bits (`make bench-allocation` prints it);
# the first pattern that matches a kind counts.
KINDS = {
    "vision": 58,
    "connector*": 11,
    "vision.first.*": 8.7,
    "vision.last.*": 3.8,
    "vision.*": 1.1,
    "head": 0.00042,
    "decoder.first.*": 2.2,
    "*.q_proj": 0.24,
    "*.k_proj": 0.45,
    "*.v_proj": 0.52,
    "*.o_proj": 0.25,
    "*.gate_proj": 0.092,
    "*.up_proj": 0.2,
    "*": 0.12,
}


@dataclass(frozen=True, slots=True)
class Group:
    """Matrices that get the same bits, a role of a layer; eight take `more_bytes` than four."""

    name: str
    weights: tuple[str, ...]
    more_bytes: int


def weight_groups(checkpoint: Checkpoint, plan: Plan) -> list[Group]:
    """All matrices, in the order of the forward pass."""
    found: dict[str, list[str]] = {}
    family, spec, source = checkpoint.family, checkpoint.spec, checkpoint.weights
    for name in linear_weights(family, spec, source):
        group, layer = family.group_of(name), layer_of(name)
        role = name.removesuffix(".weight").rpartition(".")[2]
        deep = layer is not None and group in _depths(checkpoint)
        key = f"{group}.{layer}.{role}" if deep else group
        found.setdefault(key, []).append(name)

    def more(names: Sequence[str]) -> int:
        shapes = [matrix_shape(source, name) for name in names]
        few, many = (sum(_stored(s, plan, bits) for s in shapes) for bits in (_FEW, _MANY))
        return many - few

    return [Group(key, tuple(names), more(names)) for key, names in found.items()]


def weight_bytes(checkpoint: Checkpoint, plan: Plan, groups: Sequence[Group]) -> int:
    """Of a plan of four and eight bits: of its matrices, and of everything that is none, which is
    embeddings in their dtype, and norms and biases in float32.
    """
    total = 0
    for group in groups:
        for name in group.weights:
            total += _stored(matrix_shape(checkpoint.weights, name), plan, plan.bits_of(name))
    matrices = {name for group in groups for name in group.weights}
    for name, shape in checkpoint.family.weight_names(checkpoint.spec):
        values = int(np.prod(shape))
        if name == checkpoint.family.EMBEDDINGS:
            total += values * np.dtype(plan.recipe.embeddings).itemsize
        elif name not in matrices:
            total += values * 4
    return total


def _stored(shape: tuple[int, int], plan: Plan, bits: int | None) -> int:
    rows, inner, block = *shape, plan.recipe.block
    if bits is None:
        return rows * inner * 4
    return rows * -(-inner // block) * (block * bits // 8 + 4)


def check_budget(checkpoint: Checkpoint, plan: Plan, budget: int) -> list[Group]:
    """All matrices. Raises ExportError for a budget that four bits everywhere would exceed."""
    groups = weight_groups(checkpoint, plan)
    least = weight_bytes(checkpoint, _with_many(plan, groups, ()), groups)
    if budget < least:
        raise ExportError(
            f"the budget is {budget} bytes, the weights take {least} with four bits in every "
            f"matrix; allow at least {-(-least // (1 << 10))}KiB, or take a smaller checkpoint"
        )
    return groups


def allocate(
    checkpoint: Checkpoint,
    plan: Plan,
    budget: int,
    progress: Callable[[str, float], None] = lambda *_: None,
) -> Plan:
    """`plan` with the bits that move label probabilities least, in at most so many bytes of
    weights. Raises ExportError as `check_budget`.
    """
    groups = check_budget(checkpoint, plan, budget)
    losses = losses_of(checkpoint, plan, groups, progress)
    return spent(checkpoint, plan, groups, losses, budget)


def spent(
    checkpoint: Checkpoint,
    plan: Plan,
    groups: Sequence[Group],
    losses: Mapping[str, float],
    budget: int,
) -> Plan:
    """`plan` with the bits that lose least in a budget that four bits everywhere do not exceed."""
    least = weight_bytes(checkpoint, _with_many(plan, groups, ()), groups)
    return _with_many(plan, groups, best_within(groups, losses, budget - least))


def _with_many(plan: Plan, groups: Sequence[Group], many: Collection[str]) -> Plan:
    bits = {
        name: _MANY if group.name in many else _FEW for group in groups for name in group.weights
    }
    return plan.allocated(ALLOCATED, bits)


def best_within(groups: Sequence[Group], losses: Mapping[str, float], room: int) -> set[str]:
    """Names of the groups for which eight bits save the most together, in at most `room` bytes more
    than four take. Exact but for bytes that are counted in cells.
    """
    costs = [group.more_bytes for group in groups]
    if sum(costs) <= room:
        return {group.name for group in groups}
    cell = max(int(np.gcd.reduce(costs)), -(-room // _CELLS))
    cells = room // cell
    best = np.zeros(cells + 1)  # what so many cells save at most
    taken = np.zeros((len(groups), cells + 1), np.bool_)
    for index, group in enumerate(groups):
        need = -(-costs[index] // cell)
        if need > cells:
            continue
        with_it = best[: cells + 1 - need] + losses[group.name]
        taken[index, need:] = with_it > best[need:]
        best[need:] = np.maximum(best[need:], with_it)
    found, left = set(), cells
    for index in reversed(range(len(groups))):
        if taken[index, left]:
            found.add(groups[index].name)
            left -= -(-costs[index] // cell)
    return found


def losses_of(
    checkpoint: Checkpoint,
    plan: Plan,
    groups: Sequence[Group],
    progress: Callable[[str, float], None] = lambda *_: None,
) -> dict[str, float]:
    """Group -> what it loses by four bits in place of eight."""
    pictures = _pictures(checkpoint)
    if not pictures or checkpoint.random_weights:
        return {group.name: _recorded(checkpoint, group) for group in groups}
    progress("estimating what four bits cost", 0.0)
    guessed = {g.name: _relative_error(checkpoint, plan, g) for g in groups}
    truth = answers(checkpoint, Exact(checkpoint.weights), pictures)

    def measured(some: Sequence[Group]) -> float:
        names = [name for group in some for name in group.weights]
        few = plan.allocated(ALLOCATED, dict.fromkeys(names, _FEW))
        moved = answers(checkpoint, _Some(checkpoint, few, names), pictures)
        return expected_divergence(truth, moved)

    found: dict[str, float] = {}
    tables = _tables(checkpoint, groups)
    for number, table in enumerate(tables):
        progress(_MEASURING, number / len(tables))
        roles = {role: measured(some) for role, some in table.roles.items()}
        bands = {band: measured(some) for band, some in table.bands.items()}
        for role, band, some in table.cells():
            cell = roles[role] * bands[band] / (sum(bands.values()) or 1.0)
            whole = sum(guessed[group.name] for group in some) or 1.0
            found |= {group.name: cell * guessed[group.name] / whole for group in some}
    rate = statistics.median(found[name] / guessed[name] for name in found if guessed[name])
    for group in groups:  # the LM head
        found.setdefault(group.name, guessed[group.name] * rate * _HEAD_SHARE)
    return found


@dataclass(frozen=True, slots=True)
class _Table:
    """Groups of one part of the model, by their role and by how deep their layer lies."""

    roles: dict[str, list[Group]]
    bands: dict[int, list[Group]]

    def cells(self) -> Iterator[tuple[str, int, list[Group]]]:
        for role, some in self.roles.items():
            for band, others in self.bands.items():
                if both := [group for group in some if group in others]:
                    yield role, band, both


def _tables(checkpoint: Checkpoint, groups: Sequence[Group]) -> list[_Table]:
    """Of tower and decoder, and one for each group beside their layers; none for the LM head."""
    depths = _depths(checkpoint)
    found: dict[str, _Table] = {}
    for group in groups:
        part, layer, role = (*group.name.split("."), "", "")[:3]
        if _is_head(checkpoint, group):
            continue
        table = found.setdefault(part if layer else group.name + " alone", _Table({}, {}))
        band = _band(int(layer), depths[part]) if layer else 0
        table.roles.setdefault(role, []).append(group)
        table.bands.setdefault(band, []).append(group)
    return list(found.values())


def _band(layer: int, layers: int) -> int:
    """The first and the last layer are bands of their own: they often are unlike all others."""
    if layer in (0, layers - 1):
        return 0 if layer == 0 else _BANDS - 1
    return 1 + (layer - 1) * (_BANDS - 2) // (layers - 2)


def _pictures(checkpoint: Checkpoint) -> list[CalibrationPicture]:
    """Those set apart for choices, that scales were not fitted to; else those they were."""
    if checkpoint.calibration_folder is None:
        return []
    split = split_pictures(read_calibration(checkpoint.calibration_folder))
    return split.selection or split.calibration


class _Some(Stored):
    """These matrices as the plan stores them, all others as the checkpoint has them."""

    def __init__(self, checkpoint: Checkpoint, plan: Plan, names: Sequence[str]) -> None:
        super().__init__(checkpoint.weights, plan)
        self._names = names

    def blocks(self, name: str) -> Iterator[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        yield from super().blocks(name) if name in self._names else Exact.blocks(self, name)


def _relative_error(checkpoint: Checkpoint, plan: Plan, group: Group) -> float:
    """What four bits move the outputs by beyond what eight do, squared and in units of the
    outputs, as far as the mean square of each column of the inputs says.
    """
    source, total = checkpoint.weights, 0.0
    for name in group.weights:
        inner = matrix_shape(source, name)[1]
        known = plan.importance(name)
        weight = np.ones(inner) if known is None else known.astype(np.float64)
        few, many = (
            plan.allocated(ALLOCATED, {name: bits}).quantized(source, name)
            for bits in (_FEW, _MANY)
        )
        moved = energy = 0.0
        row = 0
        for one, other in zip(few, many, strict=True):
            rows = slice(row, row + len(one.q.scales))
            row = rows.stop
            exact = source.rows(name, rows).reshape(-1, inner)
            by_few, by_many = (
                np.square(dequantize(part.q) - exact, dtype=np.float64) for part in (one, other)
            )
            moved += float(((by_few - by_many) @ weight).sum())
            energy += float((np.square(exact, dtype=np.float64) @ weight).sum())
        total += max(moved, 0.0) / (energy or 1.0)
    return total


def _is_head(checkpoint: Checkpoint, group: Group) -> bool:
    return checkpoint.family.HEAD in group.weights


def kind_of(checkpoint: Checkpoint, group: str) -> str:
    """Of a group's name, as recipes have it: the place of a layer for its number."""
    part, layer, role = (*group.split("."), "", "")[:3]
    if not layer:
        return group
    depth = _depths(checkpoint)[part]
    place = {0: "first", depth - 1: "last"}.get(int(layer), "middle")
    return f"{part}.{place}.{role}"


def _depths(checkpoint: Checkpoint) -> dict[str, int]:
    spec = checkpoint.spec
    return {"vision": spec.vision.layers, "decoder": spec.text.layers}


def _recorded(checkpoint: Checkpoint, group: Group) -> float:
    kind = kind_of(checkpoint, group.name)
    return next(loss for pattern, loss in KINDS.items() if fnmatchcase(kind, pattern))
