"""What an export costs, and what its gate says: `make bench-export`.

Takes names of presets and folders of checkpoints, each with a recipe (NAME:RECIPE), and targets. Of
a preset it writes a bf16 checkpoint with random weights. Each is exported in a process of its own,
for its memory's sake. Prints one table, one of what the files of each target take, and one JSON
line. Not a test: timings never are.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shapes import judge_checkpoint

from edgejudge.bundle import Manifest, to_json
from edgejudge.export import Checkpoint, open_checkpoint
from edgejudge.fidelity import export_bundle
from edgejudge.models.preset import PRESETS, preset_named
from edgejudge.policy import load_policy
from edgejudge.profiling import peak_rss_mib
from edgejudge.runtime.mlpackage import package_name

DEFAULTS = (
    "smolvlm2-2.2b:balanced",
    "qwen2.5-vl-3b:balanced",
    "models/nano/checkpoint:w8",
    "models/nano/checkpoint:fast",
    "models/nano/qwen:w8",
    "models/nano/qwen:balanced",
    "models/nano/qwen:fast",
)
REFERENCE = ("golden vectors by the reference", "decisions by the reference")


def opened_from(name: str, scratch: Path) -> Checkpoint:
    """A folder's checkpoint, or a preset's in bf16 with random weights, written to `scratch`."""
    if name not in PRESETS:
        return open_checkpoint(name)
    policy = load_policy("stickers").record()
    texts = [t for rule in policy.rules for either in rule.conditions for t in either]
    return judge_checkpoint(preset_named(name), scratch, texts)


def measure(name: str, recipe: str, targets: str, scratch: Path, out: Path) -> None:
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
    wanted = targets.split(",")
    manifest = export_bundle(
        opened, out, recipe, policies=[policy], targets=wanted, progress=progress
    )
    progress("", 0.0)
    result = {
        "name": name,
        "recipe": recipe,
        "parameters": opened.weights.parameters,
        "bundle_bytes": sum(f.bytes for f in manifest.files),
        "programs": programs(manifest),
        "seconds": {what: round(took, 1) for what, took in phases.items()},
        "peak_rss_mib": round(peak_rss_mib()),
        "fidelity": to_json(manifest.fidelity),
    }
    print(json.dumps(result))


def programs(manifest: Manifest) -> dict[str, int]:
    """What each Core ML package takes, by name."""
    sizes = {file.name: file.bytes for file in manifest.files}
    return {
        package_name(graph): sizes[graph.file] + sum(sizes[name] for name in graph.weight_files)
        for graph in manifest.graphs
        if graph.target == "coreml"
    }


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
    parser.add_argument("--targets", default="cpu", help="as of edgejudge export (default: cpu)")
    parser.add_argument("--within", type=Path, help=argparse.SUPPRESS)  # the process of one export
    args = parser.parse_args()
    if args.within:
        name, _, recipe = args.judges[0].rpartition(":")
        measure(name, recipe, args.targets, args.within, args.out)
        return 0
    results = []
    for judge in args.judges:
        name, _, recipe = judge.rpartition(":")
        with tempfile.TemporaryDirectory() as folder:
            opened_from(name, Path(folder))  # what it writes must not count
            out = (args.out or Path(folder)) / f"{Path(name).name}-{recipe}"
            command = [sys.executable, __file__, judge, "--targets", args.targets]
            command += ["--within", folder, "--out", str(out)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            return done.returncode
        results.append(json.loads(done.stdout.splitlines()[-1]))
    heads = ("judge", "recipe", "parameters", "bundle, bytes", "s + s of the reference")
    print(f"| {' | '.join(heads)} | peak RSS, MiB | gate |")
    print("|---" * 7 + "|")
    for result in results:
        print(row(result))
    for result in results:
        for name, size in result["programs"].items():
            print(f"{result['name']} {result['recipe']}: {name} {size / 2**20:.1f} MiB")
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
