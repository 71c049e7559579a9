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
from edgejudge.runtime.session import default_threads
from edgejudge.runtime.settings import costs_file, machine

__all__ = ["here", "keep_profile", "kept_profile"]

_THREADS = "threads"  # of the processor, in a profile's `machine`


def here() -> dict[str, str]:
    """What all measurements on this machine depend on, as a profile has it."""
    return {name: str(value) for name, value in machine().items()}


def kept_profile(
    bundle: Bundle, versions: Mapping[str, str] | None = None, threads: int | None = None
) -> Profile | None:
    """`versions` are those of the providers that are here, by ONNX Runtime's names; a device of
    another version, or of a provider that is not here, is left out. None leaves none out. What was
    measured with other `threads` is not used where they are given.
    """
    with contextlib.suppress(ProfileError):
        found = Profile.read(costs_file(bundle))
        own = found.machine.get(_THREADS, "")
        if threads is not None and own != str(threads):
            return None
        if found.machine == here() | {_THREADS: own} and found.bundle == bundle.fingerprint:
            return found if versions is None else _of_versions(found, versions)
    return None


def keep_profile(bundle: Bundle, profile: Profile) -> Path:
    """Written whole or not at all. A profile that does not say with how many threads it was
    measured is one of as many as judges have. Raises OSError.
    """
    file = costs_file(bundle)
    threads = profile.machine.get(_THREADS, str(default_threads()))
    own = replace(profile, bundle=bundle.fingerprint, machine=here() | {_THREADS: threads})
    keep_json(file, own.to_json())
    return file


def _of_versions(profile: Profile, versions: Mapping[str, str]) -> Profile | None:
    devices = tuple(d for d in profile.devices if versions.get(d.provider) == d.version)
    if not devices:
        return None
    return profile.of({device.name: device.name for device in devices})
