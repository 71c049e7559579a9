"""How far a bundle's Core ML programs are from the reference: `make coreml-canary`.

Takes a bundle that was exported with --targets cpu,coreml; has the programs of each form read from
their files by an interpreter, asks the bundle's canary with its tower and its decoder apart, and
prints how far its label logits are and how far they may be. Every weight is read; a judge of two
billion takes minutes.
"""

import sys
import tempfile
from pathlib import Path

import pytest

from edgejudge.bundle import Bundle
from edgejudge.canaries import tolerance_of
from edgejudge.goldens import canary_distance, step_distance
from edgejudge.runtime import Engine
from edgejudge.runtime.fleet import Fleet
from edgejudge.runtime.placement import read_places, resolved
from interpreted_coreml import pretend

_LONG_S = 1e5


def main(folder: str) -> int:
    bundle, wrong = Bundle.open(folder), 0
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir=folder) as cache:
        patch.setenv("EDGEJUDGE_CACHE", cache)
        pretend(patch)
        engine = Engine.open(bundle)
        places = resolved(read_places("vision=coreml,decoder=coreml"), bundle)
        fleet = engine.fleet = Fleet.of(bundle, places, engine.threads, _LONG_S)
        (accelerator,) = fleet.accelerators
        for record in (r for r in bundle.manifest.targets if r.target == "coreml"):
            limit = tolerance_of(bundle, record)
            for stage in fleet.stages_of(accelerator):
                with fleet.only(stage, accelerator, record.variant):
                    off = canary_distance(bundle, engine)
                    if stage == "decoder":
                        off = max(off, step_distance(bundle, engine))
                wrong += not off <= limit
                print(
                    f"{Path(folder).name} {record.variant} {stage}: label logits of the canary "
                    f"{off:.2g} off, allowed {limit:.2g}",
                    flush=True,
                )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
