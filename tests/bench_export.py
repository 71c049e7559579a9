"""What an export of a real model's dimensions costs: `make bench-export`.

Takes a preset; writes a bf16 checkpoint of it with random weights, exports it in a process of its
own and prints one JSON line: seconds by phase, peak memory, bytes. Not a test: timings never are.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgejudge.export import preset_checkpoint
from edgejudge.export.weights import CheckpointWeights, Source, row_blocks
from edgejudge.fidelity import export_bundle
from edgejudge.models.preset import preset_named
from edgejudge.policy import load_policy
from edgejudge.profiling import peak_rss_mib


def write_bf16(weights: Source, shapes: dict[str, tuple[int, ...]], file: Path) -> None:
    """One safetensors file, a few rows at a time."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for rows in row_blocks(shape[0], int(np.prod(shape[1:]))):
                bits = weights.rows(name, rows).view(np.uint32)
                stream.write(((bits + 0x8000) >> 16).astype("<u2").tobytes())


def measure(name: str, recipe: str, scratch: Path) -> None:
    """The export itself; runs in a process of its own, for its memory's sake."""
    policy = load_policy("stickers").record()
    texts = [t for rule in policy.rules for either in rule.conditions for t in either]
    (scratch / "opened").mkdir()
    opened = preset_checkpoint(name, scratch / "opened", texts)
    aliases = {opened.family.HEAD: opened.family.EMBEDDINGS}
    opened = replace(opened, weights=CheckpointWeights(scratch / "weights", aliases))
    phases: dict[str, float] = {}
    last, doing = time.monotonic(), "opening"

    def progress(what: str, _: float) -> None:
        nonlocal last, doing
        now = time.monotonic()
        phases[doing] = phases.get(doing, 0.0) + now - last
        last, doing = now, what

    manifest = export_bundle(opened, scratch / "out", recipe, policies=[policy], progress=progress)
    progress("", 0.0)
    report = manifest.fidelity
    result = {
        "preset": name,
        "recipe": recipe,
        "parameters": preset_named(name).parameters,
        "bundle_bytes": sum(f.bytes for f in manifest.files),
        "seconds": {what: round(took, 1) for what, took in phases.items()},
        "peak_rss_mib": round(peak_rss_mib()),
        "graph_error": None if report is None else report.graph_error,
        "hidden_error": None if report is None else report.hidden_error,
    }
    print(json.dumps(result))


def main() -> int:
    name, recipe = sys.argv[1:3]
    if len(sys.argv) > 3:
        measure(name, recipe, Path(sys.argv[3]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        opened = preset_checkpoint(name, scratch, [])
        shapes = dict(opened.family.weight_names(opened.spec))
        if opened.spec.text.tie_word_embeddings:
            shapes.pop(opened.family.HEAD)
        (scratch / "weights").mkdir()
        write_bf16(opened.weights, shapes, scratch / "weights" / "model.safetensors")
        return subprocess.call([sys.executable, __file__, name, recipe, folder])


if __name__ == "__main__":
    sys.exit(main())
