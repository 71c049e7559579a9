"""The profile of devices that was measured here for one bundle, in the user's cache.

Takes an opened bundle; gives what `edgejudge tune --costs` kept for it, or nothing. A record of
another processor, another ONNX Runtime or another bundle is not used, and of a device whose
provider has another version now no row is. Does not measure.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from edgejudge.bundle import Bundle, keep_json
from edgejudge.runtime.scheduling.profile import Profile, ProfileError
from edgejudge.runtime.settings import costs_file, machine

__all__ = ["here", "keep_profile", "kept_profile"]


def here() -> dict[str, str]:
    """What all measurements on this machine depend on, as a profile has it."""
    return {name: str(value) for name, value in machine().items()}


def kept_profile(bundle: Bundle, versions: Mapping[str, str] | None = None) -> Profile | None:
    """`versions` are those of the providers that are here, by ONNX Runtime's names; a device of
    another version, or of a provider that is not here, is left out. None leaves none out.
    """
    with contextlib.suppress(ProfileError):
        found = Profile.read(costs_file(bundle))
        if found.machine == here() and found.bundle == bundle.fingerprint:
            return found if versions is None else _of_versions(found, versions)
    return None


def keep_profile(bundle: Bundle, profile: Profile) -> Path:
    """Written whole or not at all. Raises OSError."""
    file = costs_file(bundle)
    own = replace(profile, bundle=bundle.fingerprint, machine=here())
    keep_json(file, own.to_json())
    return file


def _of_versions(profile: Profile, versions: Mapping[str, str]) -> Profile | None:
    devices = tuple(d for d in profile.devices if versions.get(d.provider) == d.version)
    if not devices:
        return None
    return profile.of({device.name: device.name for device in devices})
