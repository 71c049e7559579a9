"""What packages need beside ONNX Runtime, for an environment in which another wheel is it.

Takes names of installed packages, with extras (`edgejudge[test]`); prints a requirement a line for
pip. `onnxruntime-webgpu` and `onnxruntime-gpu` install the import name of `onnxruntime` and do not
count as it, so whoever wants to have one asks pip for no dependencies, and for these afterwards.
"""

import re
import sys
from importlib.metadata import requires

BASE = "onnxruntime"


def needs(wanted: str) -> set[str]:
    """Of one package; what an extra names of the package itself is followed."""
    name, extras = _split(wanted)
    found: set[str] = set()
    for line in requires(name) or []:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        if marker:
            extra = re.fullmatch(r"extra == [\"']([^\"']+)[\"']", marker)
            if not extra:
                raise ValueError(f"{name} asks for {line}: only extras are understood here")
            if extra[1] not in extras:
                continue
        other, _ = _split(requirement)
        if other == name:
            found |= needs(requirement)
        elif other != BASE:
            found.add(requirement)
    return found


def _split(requirement: str) -> tuple[str, set[str]]:
    """The package and its extras: edgejudge[export,text]"""
    parsed = re.match(r"([\w.-]+)(?:\[([^]]*)\])?", requirement)
    if not parsed:
        raise ValueError(f"{requirement} names no package")
    extras = {extra.strip() for extra in (parsed[2] or "").split(",")}
    return parsed[1].lower().replace("_", "-"), extras


if __name__ == "__main__":
    print("\n".join(sorted(set().union(*map(needs, sys.argv[1:])))))
