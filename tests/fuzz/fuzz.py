"""Runs Atheris, which is guided by coverage, over the readers in targets.py for a stated time.

Takes seconds for all targets together; prints a line for each: how often it ran, the edges of our
code that it reached, and what it found. Finds lie in build/fuzz/finds; one that was mended belongs
into tests/fuzz/corpus/TARGET. Each target has a process of its own, since a find ends it.

    pip install 'edgejudge[fuzz]'
    python tests/fuzz/fuzz.py --seconds 60
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "build" / "fuzz"
_NAMES = (
    *("manifest", "policy_yaml", "policy_json", "onnx", "image", "calibration"),
    *("tokenizer", "regions", "labels", "rubric", "checklist", "program"),
)
_LAST = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)")
_FIND = re.compile(r"Test unit written to (\S+)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("--target", choices=_NAMES, action="append", help="may be repeated")
    parser.add_argument("--inside", choices=_NAMES, help=argparse.SUPPRESS)
    args, more = parser.parse_known_args()
    if args.inside:
        _inside(args.inside, more)
        return 0
    names = args.target or _NAMES
    each = max(args.seconds // len(names), 1)
    print(f"{'target':12}{'runs':>10}{'edges':>8}{'inputs':>8}  finds")
    found = 0
    for name in names:
        runs, edges, inputs, finds, log = _fuzzed(name, each)
        found += len(finds)
        print(f"{name:12}{runs:10}{edges:8}{inputs:8}  {', '.join(finds) or 'none'}", flush=True)
        if finds or not runs:
            print("\n".join(log[-40:]), file=sys.stderr)
            found += not runs
    print(f"{each} s a target; {found} finds")
    return 1 if found else 0


def _fuzzed(name: str, seconds: int) -> tuple[int, int, int, list[str], list[str]]:
    corpus, finds = PLACE / "corpus" / name, PLACE / "finds" / name
    for folder in (corpus, finds):
        folder.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={finds}/", "-max_len=65536"]
    options += ["-timeout=10", "-rss_limit_mb=3000", "-print_final_stats=1"]
    command = [sys.executable, __file__, "--inside", name, *options, str(corpus)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    log = (done.stdout + done.stderr).splitlines()
    stats = [match for line in log if (match := _LAST.match(line))]
    runs, edges, _, inputs = map(int, stats[-1].groups()) if stats else (0, 0, 0, 0)
    found = [match[1] for line in log if (match := _FIND.search(line))]
    return runs, edges, inputs, found, log


def _inside(name: str, options: Sequence[str]) -> None:
    import atheris

    sys.path.insert(0, str(Path(__file__).parent))
    with atheris.instrument_imports(include=["edgejudge"]):
        import targets
    folder = Path(options[-1])
    for index, seed in enumerate(targets.seeds(name)):
        (folder / f"seed-{index}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *options], lambda data: targets.run(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
