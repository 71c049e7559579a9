"""Recipes: the precision in which a bundle stores each group of weights.

Takes a name; gives a `Recipe`, read from a small file in recipes/. A recipe speaks of kinds of
weights: a group (`vision`, `connector`, `decoder`, `head`), in the decoder followed by the place of
the layer (`first`, `middle`, `last`) and the role of the matrix (`v_proj`). Knows no model.
"""

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from edgejudge.bundle import from_json
from edgejudge.errors import ExportError

__all__ = [
    "DEFAULT_RECIPE",
    "RECIPE_NAMES",
    "Kinds",
    "Recipe",
    "kinds_of",
    "layer_of",
    "recipe_named",
]

DEFAULT_RECIPE = "balanced"
RECIPE_NAMES = ("exact", "balanced", "small", "w8", "fast", "fast8")
Kinds = Callable[[str], str]  # weight name -> kind
# Kinds whose rounding flips the most verdicts.
_SENSITIVE = (
    *("vision", "connector", "decoder.first", "decoder.last"),
    *("decoder.*.v_proj", "decoder.*.down_proj"),
)
_LAYER = re.compile(r"\.(?:layers?|blocks)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Recipe:
    """`bits` of linear weights by kind, the most specific pattern winning; none is float32."""

    name: str
    embeddings: str  # dtype of the embedding file
    # Allowed |runtime - reference| on a label logit, where both compute with the stored weights.
    tolerance: float
    default_bits: int | None = None
    bits: dict[str, int] = field(default_factory=dict)
    block: int = 32  # weights along the inner axis that share a scale; 0 is a whole row
    # Kinds whose activations are rounded to eight bits before they meet a block of weights, in
    # blocks of the same length: no number depends on what else is in the pass.
    rounded: tuple[str, ...] = ()
    search: bool = False  # of the best scale of each 4-bit block
    # Levels by what their errors do together on calibration pictures, in place of the nearest ones.
    second_order: bool = False
    # Kinds that are multiplied in integers: weights in rows of one scale, activations rounded to
    # eight bits with one scale for each token, so that none depends on what else is in the pass.
    integer: tuple[str, ...] = ()
    # Of those weights. Where a processor adds two products of bytes in 16 bits (x86 without VNNI),
    # those of seven bits are the largest that fit.
    integer_bits: int = 7
    rotate: bool = False  # turns the residual stream first, so that no channel towers
    smooth: bool = False  # moves what is hard to round from activations into weights first
    # How many times smaller the rounding error of activations must become for a matrix to have
    # columns that stay exact; 0 is no such columns.
    side_gain: float = 0.0
    # Of the decoder's weights in the graphs that write text, a token at a time; None is as in those
    # that judge.
    writing_bits: int | None = None
    writing_block: int = 32

    def bits_of(self, kind: str) -> int | None:
        """Bits of a kind's weights; None is float32."""
        if self.on_integers(kind):
            return self.integer_bits
        if self.default_bits is None:
            return None
        matching = [p for p in self.bits if _matches(kind, p)]
        return self.bits[max(matching, key=len)] if matching else self.default_bits

    def on_integers(self, kind: str) -> bool:
        """Whether weights of the kind meet rounded activations."""
        return any(_matches(kind, p) for p in self.integer)

    def rounds(self, kind: str) -> bool:
        """Whether activations are rounded for the kind's blocks."""
        return any(_matches(kind, p) for p in self.rounded)

    def for_writing(self) -> "Recipe | None":
        """The recipe of what only text needs: the LM head, and the decoder for one token after
        another, where reading weights takes all the time and float activations would multiply it.
        None where nothing is quantized.
        """
        if self.default_bits is None:
            return None
        if self.writing_bits is None:
            return replace(self, rounded=("*",))
        return replace(
            self,
            default_bits=self.writing_bits,
            bits={"head": 8},
            block=self.writing_block,
            rounded=("*",),
            integer=(),
            search=True,
        )

    def for_gpu(self) -> "Recipe":
        """The recipe of graphs that compute in floats: integers become blocks of eight bits."""
        if not self.integer:
            return replace(self, rounded=())
        return replace(self, integer=(), rounded=(), bits={})

    def for_npu(self, bits: int) -> "Recipe":
        """The recipe of static graphs: rows of one scale, of eight bits, or of four with eight
        where judges are sensitive.
        """
        wide = {kind: 8 for kind in _SENSITIVE} if bits == 4 else {}
        return replace(
            self,
            default_bits=bits,
            bits=wide,
            block=0,
            rounded=(),
            search=bits == 4,
            integer=(),
        )

    def searches(self, bits: int) -> bool:
        """Seven bits have levels enough: clipping gains nothing there."""
        return self.search and bits < 7


def _matches(kind: str, pattern: str) -> bool:
    return fnmatchcase(kind, pattern) or kind.startswith(f"{pattern}.")


def layer_of(name: str) -> int | None:
    """The layer a weight's name says it belongs to."""
    match = _LAYER.search(name)
    return None if match is None else int(match[1])


def kinds_of(group_of: Callable[[str], str], layers: int) -> Kinds:
    """A family's groups, refined for recipes; `layers` of the decoder."""

    def kind(name: str) -> str:
        group, layer = group_of(name), layer_of(name)
        if group != "decoder" or layer is None:
            return group
        place = {0: "first", layers - 1: "last"}.get(layer, "middle")
        role = name.removesuffix(".weight").rpartition(".")[2]
        return f"{group}.{place}.{role}"

    return kind


@cache
def recipe_named(name: str) -> Recipe:
    if name not in RECIPE_NAMES:
        raise ExportError(f"no recipe is called {name!r}; known: {', '.join(RECIPE_NAMES)}")
    file = Path(__file__).parent / "recipes" / f"{name}.toml"
    defaults: dict[str, Any] = {
        "default_bits": None,
        "bits": {},
        "block": 32,
        "rounded": [],
        "search": False,
        "second_order": False,
        "integer": [],
        "integer_bits": 7,
        "rotate": False,
        "smooth": False,
        "side_gain": 0.0,
        "writing_bits": None,
        "writing_block": 32,
    }
    value = {**defaults, **tomllib.loads(file.read_text("utf-8")), "name": name}
    return from_json(Recipe, value, file.name, ExportError)
