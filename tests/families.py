"""Makers of tiny checkpoints, by the family that they are of: what every family has to pass."""

from typing import Any

import tiny
import tiny_internvl
import tiny_llava
import tiny_qwen
import tiny_qwen3

__all__ = ["FAMILIES"]

FAMILIES: dict[str, Any] = {
    "smolvlm": tiny,
    "qwen2_5_vl": tiny_qwen,
    "qwen3_vl": tiny_qwen3,
    "internvl": tiny_internvl,
    "llava_onevision": tiny_llava,
}
