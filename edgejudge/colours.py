"""Colour profiles: the pixels of a picture as its embedded profile means them, in sRGB.

Takes an opened image and its profile; gives an image in sRGB, and notes. A profile that cannot be
used is left aside, as viewers do. Knows nothing of files, transparency or judges.
"""

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from edgejudge.verdict import Note

__all__ = ["gamma_notes", "in_srgb"]

_MOST_BYTES = 16 << 20  # of a profile
_KEPT_BYTES = 64 << 10  # of one that is remembered: hardly any RGB profile is larger
_SAME_LEVELS = 2  # a profile that moves no colour further is as good as sRGB
_STRANGE_LEVELS = 48.0  # the widest profiles in use move a picture by less than half of this
_USUAL_GAMMA = (0.3, 0.6)  # 1 / 2.2 is sRGB's, 1 / 1.8 that of old Macs
_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def in_srgb(image: Image.Image, notes: list[Note]) -> Image.Image:
    """An image without transparency; as it is where it has no profile or one that changes nothing.
    CMYK and grey become RGB where a profile of theirs was applied.
    """
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile:
        return image
    try:
        ask = _about if len(profile) <= _KEPT_BYTES else _about.__wrapped__
        wanted, is_srgb = ask(profile)
        colours = image if image.mode == wanted else _as_mode(image, wanted)
        if is_srgb:
            return image
        made = _applied(colours, profile)
    except Exception as error:  # profiles are hostile input too, and their readers raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        message = f"its colour profile cannot be used ({reason}); judged without it"
        notes.append(Note("profile_unusable", message))
        return image
    if wanted != "CMYK":
        before = np.asarray(colours.convert("RGB"), np.int16)
        if np.abs(np.asarray(made, np.int16) - before).mean() > _STRANGE_LEVELS:
            message = "its colour profile changes it beyond recognition for who does not obey it"
            notes.append(Note("profile_strange", message, doubtful=True))
    return made


def gamma_notes(image: Image.Image) -> list[Note]:
    """A PNG may ask for a gamma that shows another picture to viewers that obey it."""
    info = image.info
    gamma = info.get("gamma")
    if not isinstance(gamma, float) or "srgb" in info or "icc_profile" in info:
        return []
    if _USUAL_GAMMA[0] <= gamma <= _USUAL_GAMMA[1]:
        return []
    message = f"it asks for a gamma of {gamma:g}, which some viewers obey; judged without"
    return [Note("gamma", message, doubtful=True)]


@lru_cache(maxsize=64)
def _about(profile: bytes) -> tuple[str, bool]:
    """The mode of the pixels that a profile is for, and whether it is as good as sRGB: by what it
    does to a grid of colours, and not by its name. Raises anything for one that is of no use.
    """
    if len(profile) > _MOST_BYTES:
        raise ValueError(f"more than {_MOST_BYTES} bytes")
    space = _opened(profile).profile.xcolor_space
    if space not in _SPACES:
        raise ValueError(f"it is for {space.strip()} colours")
    if (mode := _SPACES[space]) != "RGB":
        return mode, False
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(27, 27, 3)
    found = np.asarray(_applied(Image.fromarray(grid), profile), np.int16)
    return mode, int(np.abs(found - grid).max()) <= _SAME_LEVELS


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    """Grey is RGB too, and so is a palette. Raises ValueError for a profile of another space."""
    if mode == "RGB" and image.mode != "CMYK":
        return image.convert("RGB")
    if mode == "L" and image.mode == "1":
        return image.convert("L")
    raise ValueError(f"it is for {mode} and the picture is {image.mode}")


def _applied(image: Image.Image, profile: bytes) -> Image.Image:
    from PIL import ImageCms

    made = ImageCms.profileToProfile(
        image, _opened(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert made is not None
    return made


def _opened(profile: bytes) -> Any:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(io.BytesIO(profile))
