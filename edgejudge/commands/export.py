"""`edgejudge export`: a checkpoint in, a sealed bundle out.

Takes the command's arguments; prints what was made, what it cost and how far it is from the
reference. The export itself, and the gate it has to pass, are edgejudge.fidelity's.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgejudge.commands.arguments import size
from edgejudge.errors import ExportError

if TYPE_CHECKING:
    from edgejudge.bundle import DecisionsRecord, Manifest
    from edgejudge.coreml_report import ProgramReport
    from edgejudge.fidelity import Progress

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "export",
        help="turn a checkpoint into a bundle",
        description="Exports a Hugging Face checkpoint to a bundle, compares it with the fp32 "
        "reference and seals it. Needs the extra: pip install 'edgejudge[export]'.",
        epilog="exit codes: 0 sealed; 2 no bundle, for the reason given; 3 no bundle, since its "
        "verdicts differ too much from the checkpoint's",
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", nargs="?", help="a checkpoint folder or a Hub id"
    )
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a Hub id")
    parser.add_argument("--out", metavar="DIR", help="the bundle's new folder")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        "--budget",
        type=size,
        metavar="SIZE",
        help="in place of a recipe: the least loss that so many bytes of weights allow, like "
        "900MiB, with four or eight bits for each role of each layer",
    )
    precision.add_argument(
        "--recipe",
        default="balanced",
        choices=("exact", "balanced", "small", "w8", "fast", "fast8"),
        help="precision of the weights: float32, four bits with eight where judges are sensitive, "
        "four in the whole decoder, eight everywhere, or integers on both sides of every matrix, "
        "seven bits of weights for any processor or eight for those with VNNI or ARM (default: "
        "balanced)",
    )
    cut = parser.add_mutually_exclusive_group()
    cut.add_argument(
        "--parts",
        type=int,
        metavar="N",
        help="cut the decoder into so many graphs of about equal weight (default: one)",
    )
    cut.add_argument(
        "--part-bytes",
        type=size,
        metavar="SIZE",
        help="cut it into as few graphs as keep the weights of each under this, like 1GiB",
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help="shrink larger pictures to this many pixels, in families that keep a picture's own "
        "grid or cut crops that suit it (default: what the checkpoint says)",
    )
    parser.add_argument(
        "--kv",
        choices=("float32", "int8", "int4"),
        default="float32",
        help="keys and values of the cache: int8 takes a quarter of the room and more time, int4 "
        "an eighth, and moves verdicts more (default: float32)",
    )
    parser.add_argument(
        "--targets",
        default="cpu",
        metavar="LIST",
        help="what to write graphs for: cpu is always among them; gpu for WebGPU and CUDA, npu for "
        "Qualcomm's and others, npu:a16w4 with weights of four bits, coreml for Apple's, "
        "coreml:rows with weights as its Neural Engine takes them (default: cpu)",
    )
    parser.add_argument(
        "--policy",
        action="append",
        dest="policies",
        metavar="NAME|FILE",
        help="compile this policy in; may be repeated (default: stickers)",
    )
    parser.add_argument(
        "--accept-flips",
        type=float,
        metavar="R",
        help="seal the bundle although up to this share of its decisions differ; recorded in it",
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="the published dimensions of a model, in place of a checkpoint; needs "
        "--random-weights (--preset list shows them)",
    )
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="make the weights up: for latency and size, its verdicts mean nothing",
    )
    parser.add_argument("--force", action="store_true", help="replace a bundle that is there")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    return parser


def run(args: argparse.Namespace) -> int:
    if args.preset == "list":
        return _list_presets()
    if (args.checkpoint is None) == (args.preset is None):
        raise ExportError("give either a CHECKPOINT or a --preset")
    if args.out is None:
        raise ExportError("--out is missing: name the bundle's new folder")
    if bool(args.preset) != args.random_weights:
        raise ExportError(
            "--preset and --random-weights go together: a preset is dimensions without weights"
        )
    if args.accept_flips is not None and not 0 <= args.accept_flips <= 1:
        raise ExportError(f"--accept-flips is {args.accept_flips}, expected a share from 0 to 1")
    import tempfile

    from edgejudge.fidelity import export_bundle, exporting_tools
    from edgejudge.policy import COMPILED, load_policy

    policies = [load_policy(p).record() for p in args.policies or COMPILED]
    with tempfile.TemporaryDirectory() as scratch, _shown() as progress:
        checkpoint = args.checkpoint
        if args.preset:
            rules = [rule for policy in policies for rule in policy.rules]
            texts = [text for rule in rules for either in rule.conditions for text in either]
            make = exporting_tools().preset_checkpoint
            checkpoint = make(args.preset, Path(scratch), texts, args.max_pixels)
        manifest = export_bundle(
            checkpoint,
            args.out,
            recipe=args.recipe,
            parts=args.parts,
            part_bytes=args.part_bytes,
            budget=args.budget,
            max_pixels=args.max_pixels,
            revision=args.revision,
            policies=policies,
            accept_flips=args.accept_flips,
            kv=args.kv,
            targets=[target.strip() for target in args.targets.split(",")],
            force=args.force,
            progress=progress,
        )
        progress.stop()
    _report(args, manifest, progress.seconds)
    return 0


def _list_presets() -> int:
    from edgejudge.models.preset import PRESETS, preset_named

    for name in PRESETS:
        preset = preset_named(name)
        built = "" if preset.built else f"  (family {preset.model_type} is not built yet)"
        print(f"{name:24}{preset.parameters / 1e9:6.2f} B  {preset.source}{built}")
    return 0


class _Phases:
    """How long each thing took; told what is being done, again and again."""

    def __init__(self, show: "Progress") -> None:
        self.seconds: dict[str, float] = {}
        self._show = show
        self._last = time.monotonic()
        self._now: str | None = None

    def __call__(self, what: str, share: float) -> None:
        self.stop()
        self._now = what
        self._show(what, share)

    def stop(self) -> None:
        now = time.monotonic()
        if self._now is not None:
            self.seconds[self._now] = self.seconds.get(self._now, 0.0) + now - self._last
        self._last = now


@contextmanager
def _shown() -> Iterator[_Phases]:
    """A bar on a terminal, else a line for each thing begun."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress as Bar

        with Bar(console=Console(stderr=True), transient=True) as bar:
            tasks: dict[str, Any] = {}

            def show(what: str, share: float) -> None:
                if what not in tasks:
                    for task in tasks.values():
                        bar.update(task, completed=1.0)
                    tasks[what] = bar.add_task(what, total=1.0)
                bar.update(tasks[what], completed=share)

            yield _Phases(show)
        return
    begun = set()

    def say(what: str, _: float) -> None:
        if what not in begun:
            begun.add(what)
            print(what, file=sys.stderr)

    yield _Phases(say)


def _report(args: argparse.Namespace, manifest: "Manifest", phases: dict[str, float]) -> None:
    from edgejudge.bundle import Bundle, to_json
    from edgejudge.coreml_report import report as report_of_programs
    from edgejudge.profiling import peak_rss_mib

    report = manifest.fidelity
    if report is None:
        raise AssertionError("export_bundle gives sealed bundles only")
    size_bytes = sum(file.bytes for file in manifest.files)
    peak = peak_rss_mib()
    if args.json:
        result = {
            "out": args.out,
            "name": manifest.name,
            "recipe": manifest.recipe,
            "random_weights": manifest.random_weights,
            "fingerprint": manifest.sha256,
            "bytes": size_bytes,
            "seconds": {what: round(took, 1) for what, took in phases.items()},
            "peak_rss_mib": round(peak),
            "quantization": to_json(manifest.quantization),
            "fidelity": to_json(report),
            "targets": to_json(manifest.targets),
        }
        print(json.dumps(result, sort_keys=True))
        return
    print(f"{args.out}: {manifest.name}, {manifest.recipe}, {size_bytes / 2**20:.1f} MiB")
    print(f"{sum(phases.values()):.1f} s, peak RSS {peak:.0f} MiB")
    for what, took in phases.items():
        print(f"  {took:7.1f} s  {what}")
    for group in manifest.quantization:
        print(
            f"  {group.group:12}{group.bits:3} bits {group.tensors:5} tensors "
            f"{group.bytes / 2**20:9.1f} MiB  moved by {group.relative_rms_error:.2%}"
        )
    print(f"fingerprint {manifest.sha256}")
    print(
        f"label logits within {report.graph_error:g} of the reference over the same weights; "
        f"hidden states {report.hidden_error:.2%} from the fp32 weights'; "
        f"questions packed together move a probability by {report.packing_error:g} at most"
    )
    if report.writing is not None:
        text = report.writing
        print(
            f"with the graphs that write text {text.flips} of {text.decisions} decisions flip (at "
            f"most {text.flips_upper:.2%}), probabilities move by {text.probability_error_99} "
            f"(99th percentile); the likeliest first word is a label in {text.words}, in "
            f"{text.agree} the one that the verdict says"
        )
    if report.side is not None and report.side.error is not None:
        side = report.side
        print(
            f"exact columns beside {side.matrices} of {side.of} matrices: label logits move by "
            f"{side.error} (root mean square, {side.pictures} pictures), without them by "
            f"{side.error_without}"
        )
    if report.decisions is None:
        print("random weights: the bundle is for latency alone, its verdicts mean nothing")
    else:
        _report_decisions(report.picture_set, report.decisions)
    has_programs = any(target.target == "coreml" for target in manifest.targets)
    programs = report_of_programs(Bundle.open(args.out)).programs if has_programs else ()
    for target in manifest.targets:
        if found := target.decisions:
            print(
                f"{target.target} {target.variant}: {found.flips} of {found.decisions} decisions "
                f"flip (at most {found.flips_upper:.2%}) on the CPU provider, probabilities move "
                f"by {found.probability_error_99} (99th percentile); {found.pictures} pictures"
            )
        elif target.target == "coreml":
            own = [program for program in programs if program.variant == target.variant]
            _report_programs(args.out, target.variant, own)
        else:
            print(f"{target.target} {target.variant}: not compared")


def _report_programs(out: str, variant: str, found: "Sequence[ProgramReport]") -> None:
    sizes = [program.weight_bytes / 2**20 for program in found]
    functions = [function for program in found for function in program.functions]
    print(
        f"coreml {variant}: {len(found)} programs for {found[0].systems}, {sum(sizes):.1f} MiB of "
        f"weights, {max(sizes):.1f} in the largest; of {sum(f.computing for f in functions)} "
        f"operations {sum(f.leaving for f in functions)} are known to leave the Neural Engine and "
        f"{sum(f.reported for f in functions)} more are reported to: `edgejudge coreml {out}`"
    )


def _report_decisions(pictures: str, found: "DecisionsRecord") -> None:
    print(
        f"{found.flips} of {found.decisions} decisions flip (at most {found.flips_upper:.2%} with "
        f"95 % confidence): {found.unsafe_to_safe} unsafe to safe, {found.safe_to_unsafe} safe to "
        f"unsafe; {found.near_flips} of {found.near_decisions} near the threshold; "
        f"{found.pictures} pictures ({pictures})"
    )
    print(
        f"probabilities move by {found.probability_error_99} (99th percentile), "
        f"{found.probability_error_max} at most; label mass {found.label_mass.mean} on average, "
        f"{found.label_mass.minimum} at least"
    )
    if found.underpowered:
        print(
            "underpowered: the limits want 3000 decisions, 600 of them near their threshold; "
            "the bounds above are what these pictures support"
        )
    if found.accepted_flips is not None:
        print(f"sealed with --accept-flips {found.accepted_flips}")
