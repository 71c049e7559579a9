"""Published dimensions of real models, for bundles that measure latency without anybody's weights.

Takes a name; gives a `Preset`, read from presets/. Parameter counts are those of the published
checkpoints. Knows no weights.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgejudge.bundle import from_json
from edgejudge.errors import ExportError
from edgejudge.models.families import is_built

__all__ = ["PRESETS", "Preset", "preset_named"]

PRESETS = (
    "smolvlm2-2.2b",
    "qwen2.5-vl-3b",
    "qwen3-vl-2b",
    "internvl3-1b",
    "internvl3-2b",
    "llava-onevision-0.5b",
    "bluelm-v-3b",
)


@dataclass(frozen=True, slots=True)
class Preset:
    """`config` and `processor` are config.json and preprocessor_config.json as the checkpoint has
    them; `special_tokens` the ids that its tokenizer gives to what its chat format is made of.
    """

    name: str
    source: str  # Hub id, or where the dimensions were published
    parameters: int
    special_tokens: dict[str, int]
    config: dict[str, Any]
    processor: dict[str, Any]

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])

    @property
    def built(self) -> bool:
        """Whether its family can be exported yet."""
        return is_built(self.model_type)


def preset_named(name: str) -> Preset:
    if name not in PRESETS:
        raise ExportError(f"no preset is called {name!r}; known: {', '.join(PRESETS)}")
    file = Path(__file__).parent / "presets" / f"{name}.json"
    return from_json(
        Preset, {**json.loads(file.read_bytes()), "name": name}, file.name, ExportError
    )
