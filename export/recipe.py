"""Recipes: the precision in which a bundle stores each group of weights.

Takes a name; gives a `Recipe`. Knows no model: a recipe speaks of linear layers, embeddings and
the rest.
"""

from dataclasses import dataclass

from edgejudge.errors import ExportError

__all__ = ["RECIPES", "Recipe", "recipe_named"]


@dataclass(frozen=True, slots=True)
class Recipe:
    name: str
    bits: int | None  # of linear weights, in symmetric blocks along the inner axis; None is float32
    block: int
    # What MatMulNBits may round activations to: 1 keeps float32, 4 takes int8 blocks of one row, so
    # that no number depends on what else is in the pass.
    accuracy_level: int
    embeddings: str  # dtype of the embedding file
    # Allowed |runtime - reference| on a label logit, where both compute with the stored weights.
    tolerance: float


RECIPES = (
    Recipe("fp32", None, 0, 0, "float32", 1e-3),
    Recipe("w8", 8, 32, 1, "float16", 1e-3),
    Recipe("w4", 4, 32, 1, "float16", 1e-3),
)


def recipe_named(name: str) -> Recipe:
    for recipe in RECIPES:
        if recipe.name == name:
            return recipe
    raise ExportError(f"no recipe is called {name!r}; known: {', '.join(r.name for r in RECIPES)}")
