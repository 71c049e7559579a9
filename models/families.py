"""The families there are, one module per architecture, in an explicit tuple.

Takes a checkpoint's config; gives the family that reads it.
"""

from edgejudge.errors import ExportError
from edgejudge.models import internvl, llava_onevision, qwen2_5_vl, qwen3_vl, smolvlm
from edgejudge.models.family import Family
from edgejudge.models.hf_config import HfConfig

__all__ = ["FAMILIES", "family_for", "family_named", "is_built"]

FAMILIES: tuple[Family, ...] = (smolvlm, qwen2_5_vl, qwen3_vl, internvl, llava_onevision)


def family_for(config: HfConfig) -> Family:
    """The family that reads this config.json."""
    found = config.value.get("model_type")
    for family in FAMILIES:
        if family.FAMILY == found:
            return family
    known = ", ".join(family.FAMILY for family in FAMILIES)
    raise ExportError(f"{config.where}: 'model_type' is {found!r}, supported families: {known}")


def is_built(name: str) -> bool:
    return any(family.FAMILY == name for family in FAMILIES)


def family_named(name: str) -> Family:
    for family in FAMILIES:
        if name == family.FAMILY:
            return family
    known = ", ".join(family.FAMILY for family in FAMILIES)
    raise ExportError(f"no family is called {name!r}; known: {known}")
