"""What an export costs, and what its gate says: `make bench-export`.

Takes names of presets and folders of checkpoints, each with a recipe (NAME:RECIPE). Of a preset it
writes a bf16 checkpoint with random weights. Each is exported in a process of its own, for its
memory's sake. Prints one table and one JSON line. Not a test: timings never are.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgejudge.bundle import to_json
from edgejudge.export import Checkpoint, open_checkpoint, preset_checkpoint
from edgejudge.export.weights import CheckpointWeights, Source, row_blocks
from edgejudge.fidelity import export_bundle
from edgejudge.models.preset import PRESETS
from edgejudge.policy import load_policy
from edgejudge.profiling import peak_rss_mib

DEFAULTS = (
    "smolvlm2-2.2b:balanced",
    "qwen2.5-vl-3b:balanced",
    "models/nano/checkpoint:w8",
    "models/nano/qwen:w8",
    "models/nano/qwen:balanced",
)
REFERENCE = ("golden vectors by the reference", "decisions by the reference")


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


def written(name: str, scratch: Path) -> None:
    """A bf16 checkpoint of a preset with random weights, in `scratch`."""
    opened = preset_checkpoint(name, scratch, [])
    shapes = dict(opened.family.weight_names(opened.spec))
    if opened.spec.text.tie_word_embeddings:
        shapes.pop(opened.family.HEAD)
    (scratch / "weights").mkdir()
    write_bf16(opened.weights, shapes, scratch / "weights" / "model.safetensors")


def opened_from(name: str, scratch: Path) -> Checkpoint:
    if name not in PRESETS:
        return open_checkpoint(name)
    policy = load_policy("stickers").record()
    texts = [t for rule in policy.rules for either in rule.conditions for t in either]
    (scratch / "opened").mkdir()
    opened = preset_checkpoint(name, scratch / "opened", texts)
    aliases = {opened.family.HEAD: opened.family.EMBEDDINGS}
    return replace(opened, weights=CheckpointWeights(scratch / "weights", aliases))


def measure(name: str, recipe: str, scratch: Path, out: Path) -> None:
    """The export itself, to `out`; prints what it cost as JSON."""
    opened = opened_from(name, scratch)
    phases: dict[str, float] = {}
    last, doing = time.monotonic(), "opening"

    def progress(what: str, _: float) -> None:
        nonlocal last, doing
        now = time.monotonic()
        phases[doing] = phases.get(doing, 0.0) + now - last
        last, doing = now, what

    policy = load_policy("stickers").record()
    manifest = export_bundle(opened, out, recipe, policies=[policy], progress=progress)
    progress("", 0.0)
    result = {
        "name": name,
        "recipe": recipe,
        "parameters": opened.weights.parameters,
        "bundle_bytes": sum(f.bytes for f in manifest.files),
        "seconds": {what: round(took, 1) for what, took in phases.items()},
        "peak_rss_mib": round(peak_rss_mib()),
        "fidelity": to_json(manifest.fidelity),
    }
    print(json.dumps(result))


def gate_of(fidelity: dict[str, Any]) -> str:
    found = fidelity["decisions"]
    if found is None:
        return f"random weights: hidden states move by {fidelity['hidden_error']:.2%}"
    return (
        f"{found['flips']} of {found['decisions']} decisions on {found['pictures']} pictures flip "
        f"(at most {found['flips_upper']:.2%}), near ones {found['near_flips']} of "
        f"{found['near_decisions']}" + (", underpowered" if found["underpowered"] else "")
    )


def row(result: dict[str, Any]) -> str:
    seconds: dict[str, float] = result["seconds"]
    reference = sum(took for what, took in seconds.items() if what.endswith(REFERENCE))
    cells = [
        result["name"],
        result["recipe"],
        f"{result['parameters']:,}",
        f"{result['bundle_bytes']:,}",
        f"{sum(seconds.values()) - reference:.0f} + {reference:.0f}",
        f"{result['peak_rss_mib']:,}",
        gate_of(result["fidelity"]),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("judges", nargs="*", default=DEFAULTS, metavar="NAME:RECIPE")
    parser.add_argument("--out", type=Path, help="keep the bundles in this folder")
    parser.add_argument("--within", type=Path, help=argparse.SUPPRESS)  # the process of one export
    args = parser.parse_args()
    if args.within:
        name, _, recipe = args.judges[0].rpartition(":")
        measure(name, recipe, args.within, args.out)
        return 0
    results = []
    for judge in args.judges:
        name, _, recipe = judge.rpartition(":")
        with tempfile.TemporaryDirectory() as folder:
            if name in PRESETS:
                written(name, Path(folder))
            out = (args.out or Path(folder)) / f"{Path(name).name}-{recipe}"
            command = [sys.executable, __file__, judge, "--within", folder, "--out", str(out)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            return done.returncode
        results.append(json.loads(done.stdout.splitlines()[-1]))
    heads = ("judge", "recipe", "parameters", "bundle, bytes", "s + s of the reference")
    print(f"| {' | '.join(heads)} | peak RSS, MiB | gate |")
    print("|---" * 7 + "|")
    for result in results:
        print(row(result))
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
