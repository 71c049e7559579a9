"""How far a bundle's Core ML programs are from the reference: `make coreml-canary`.

Takes a bundle that was exported with --targets cpu,coreml; has the programs of each form read from
their files, asks the bundle's canary, its tower and its decoder apart, and prints how far its label
logits are and how far they may be. Every weight is read; a judge of two billion takes minutes.
"""

import sys
import tempfile
from pathlib import Path

import pytest

from edgejudge.bundle import Bundle
from edgejudge.canaries import placed, tolerance_of
from edgejudge.runtime import Engine
from interpreted_coreml import pretend


def main(folder: str) -> int:
    bundle = Bundle.open(folder)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir=folder) as cache:
        patch.setenv("EDGEJUDGE_CACHE", cache)
        pretend(patch)
        engine = Engine.open(bundle)
        fleet = placed(bundle, engine, "vision=coreml,decoder=coreml", deadline_s=1e5)
    limits = {r.variant: tolerance_of(bundle, r) for r in bundle.manifest.targets}
    for (_, stage), answers in fleet.answers.items():
        for form, found in answers.items():
            told = found
            if isinstance(found, float):
                told = f"label logits of the canary {found:.2g} off, allowed {limits[form]:.2g}"
            print(f"{Path(folder).name} {form} {stage}: {told}")
    return 1 if fleet.unused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
