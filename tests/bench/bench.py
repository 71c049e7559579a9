"""edgejudge beside the engines that people would use instead: `make bench`.

Takes nothing but a cache folder; converts one decoder with random weights for each engine by the
engine's own tools, runs every engine in a process of its own with the same number of threads, and
asks them in turns. Prints each command line, tables of medians with their spread, and one JSON line
(BENCH_JSON=FILE writes it). Not a test: timings never are.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from limits import bandwidth, prefill_limit
from prepare import Entrant, entrants, truth, vision_entrants
from shapes import SHAPES

from edgejudge.runtime.settings import processor

PREFILL = (128, 512, 1024)
DECODE, RATIONALE = 64, 96
PREFIX, RULES, LENGTH, SHARED = 272, 12, 24, 12  # tokens of W2 and W2b
SMALLEST_VOCABULARY = 49_280


class Process:
    """One engine, waiting for requests."""

    def __init__(self, entrant: Entrant) -> None:
        self.name, self.failure, self.mib = entrant.name, entrant.failure, entrant.mib
        self.seconds: dict[str, list[float]] = {}
        self.ready: dict[str, Any] = {}
        self.peak = self.error = self.cold = float("nan")
        self._inner: subprocess.Popen[str] | None = None
        if entrant.command is None:
            return
        print(f"{self.name}: {' '.join(entrant.command)}", file=sys.stderr, flush=True)
        began = time.perf_counter()
        self._inner = subprocess.Popen(
            entrant.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.ready = self._read()
        if self.ready.get("ways"):
            self.ask(do="prefill", ids=words(PREFIX, SMALLEST_VOCABULARY, 2))
        self.cold = time.perf_counter() - began

    def _read(self) -> dict[str, Any]:
        assert self._inner is not None and self._inner.stdout is not None
        line = self._inner.stdout.readline()
        found: dict[str, Any] = json.loads(line) if line else {"failure": "the process ended"}
        if "failure" in found:
            self.failure = found["failure"]
        return found

    def ask(self, **request: Any) -> dict[str, Any]:
        if self._inner is None or self.failure:
            return {}
        assert self._inner.stdin is not None
        self._inner.stdin.write(json.dumps(request) + "\n")
        self._inner.stdin.flush()
        return self._read()

    def time(self, label: str, **request: Any) -> None:
        found = self.ask(**request)
        if "seconds" in found:
            self.seconds.setdefault(label, []).append(found["seconds"])
            print(f"  {self.name}: {label} {found['seconds']:.2f} s", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._inner is not None and self._inner.stdin is not None:
            self._inner.stdin.close()
            self._inner.wait(30)


def words(count: int, vocabulary: int, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return [int(i) for i in rng.integers(vocabulary // 8, vocabulary // 2, count)]


def questions(vocabulary: int, shared: int, seed: int) -> list[list[int]]:
    begin = words(shared, vocabulary, seed)
    return [begin + words(LENGTH - shared, vocabulary, seed + 1 + i) for i in range(RULES)]


def run(
    name: str,
    cache: Path,
    rounds: int,
    pictures: int,
    threads: int,
    only: list[str],
    optimum_cli: str,
) -> list[Process]:
    vocabulary = SHAPES[name]().text["vocab_size"]
    peers = [Process(e) for e in entrants(name, cache, threads, only, optimum_cli)]
    for peer in peers:  # once, for what is made at the first token
        if "batch" not in peer.name:
            peer.ask(do="decode", ids=words(64, vocabulary, 3), tokens=4)
    for index in range(rounds):  # interleaved, so that a slow minute hits all alike
        # Others each time: an engine that keeps prefixes shall not know them from before.
        prefix, other = (words(PREFIX, vocabulary, 1000 * index + n) for n in (0, 500))
        apart, common = (questions(vocabulary, n, 1000 * index + n + 1) for n in (0, SHARED))
        for peer in peers:
            ways = peer.ready.get("ways", ())
            if "batch" not in peer.name:
                for tokens in PREFILL:
                    ids = words(tokens, vocabulary, 100 + index)
                    peer.time(f"prefill {tokens}", do="prefill", ids=ids)
                if index < 3:
                    peer.time(f"decode {DECODE}", do="decode", ids=prefix, tokens=DECODE)
                    peer.time("W4", do="text", ids=prefix + apart[0], tokens=RATIONALE)
            for way in ways:
                if way == "again" and index:
                    continue
                ask = {"do": "rules", "way": way}
                peer.time(f"W2 {way}", prefix=prefix, questions=apart, **ask)
                if way != "again":
                    peer.time(f"W2b {way}", prefix=other, questions=common, **ask)
    if pictures:
        library = [
            (words(PREFIX, vocabulary, 10**6 + i), questions(vocabulary, SHARED, 10**6 + 100 * i))
            for i in range(pictures)
        ]
        for peer in peers:  # each by the best way it knows
            way = peer.ready.get("ways", ("",))[0]
            peer.time("W3", do="library", pictures=library, way=way)
    for peer in peers:
        peer.peak = peer.ask(do="memory").get("peak_rss_mib", float("nan"))
    _errors(peers, name, cache, threads, words(128, vocabulary, 3))
    for peer in peers:
        peer.close()
    return peers


def run_vision(name: str, cache: Path, rounds: int, threads: int, only: list[str]) -> list[Process]:
    """The tower alone, after the decoders have gone."""
    shape = SHAPES[name]()
    peers = [Process(e) for e in vision_entrants(name, cache, threads, only)]
    side = shape.preset.config["vision_config"].get("image_size", 0)
    views = [shape.views, 3, side, side]
    for index in range(rounds + 1):  # the first of each is for what is made then
        for peer in peers:
            if index:
                peer.time("vision", do="vision", shape=views, seed=index)
            else:
                peer.ask(do="vision", shape=views, seed=index)
    for peer in peers:
        peer.peak = peer.ask(do="memory").get("peak_rss_mib", float("nan"))
        peer.close()
    return peers


def vision_table(towers: list[Process], peers: list[Process], views: int) -> None:
    """W2 with vision is the sum of two medians: an engine's tower and its best way of W2."""
    print(f"\n| engine | vision of {views} views, s | W2 with vision, s | peak, MiB |")
    print("|---|---|---|---|")
    for tower in towers:
        seconds = tower.seconds.get("vision")
        family = tower.name.split(" Q")[0]
        best = [
            statistics.median(peer.seconds[f"W2 {way}"])
            for peer in peers
            for way in peer.ready.get("ways", ())
            if peer.name.startswith(family)
            and f"W2 {way}" in peer.seconds
            and (peer.name == tower.name or not tower.name.startswith("edgejudge"))
        ]
        both = f"{statistics.median(seconds) + min(best):.2f}" if seconds and best else ""
        print(f"| {tower.name} | {tower.failure or cell(seconds)} | {both} | {tower.peak:.0f} |")


def _errors(peers: list[Process], name: str, cache: Path, threads: int, ids: list[int]) -> None:
    """Relative rms error of the last position's logits against float32."""
    with tempfile.TemporaryDirectory() as folder:
        reference = Process(Entrant("float32", truth(name, cache, threads)))
        file = f"{folder}/logits.npy"
        reference.ask(do="logits", ids=ids, file=file)
        reference.close()
        if reference.failure:
            return
        wanted = np.load(file).astype(np.float64)
        for peer in peers:
            if "batch" in peer.name or peer.failure:
                continue
            peer.ask(do="logits", ids=ids, file=file)
            if peer.failure:  # the file is another's
                continue
            found = np.load(file).astype(np.float64)[: len(wanted)]
            peer.error = float(np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)))


def cell(values: list[float] | None, tokens: int | None = None) -> str:
    """A median with its spread: seconds, or tokens a second."""
    if not values:
        return ""
    found = sorted(tokens / v for v in values) if tokens else sorted(values)
    digits = 1 if tokens else 2
    middle = f"{statistics.median(found):.{digits}f}"
    return (
        middle if len(found) == 1 else f"{middle} ({found[0]:.{digits}f} to {found[-1]:.{digits}f})"
    )


def table(peers: list[Process]) -> None:
    heads = ["engine", *(f"prefill {n}, tok/s" for n in PREFILL), "decode, tok/s"]
    heads += ["W4, s", "cold, s", "error", "peak, MiB", "files, MiB"]
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for peer in peers:
        if "batch" in peer.name:
            continue
        row = [cell(peer.seconds.get(f"prefill {n}"), n) for n in PREFILL]
        row.append(cell(peer.seconds.get(f"decode {DECODE}"), DECODE))
        row += [cell(peer.seconds.get("W4")), f"{peer.cold:.2f}", f"{peer.error:.3f}"]
        row += [f"{peer.peak:.0f}", f"{peer.mib:.0f}"]
        print(f"| {peer.name} | {' | '.join(row) if not peer.failure else peer.failure} |")
    print("\n| engine | way | W2, s | W2b, s | W3, s |\n|---|---|---|---|---|")
    for peer in peers:
        for way in peer.ready.get("ways", ()):
            w2, w2b = (cell(peer.seconds.get(f"{w} {way}")) for w in ("W2", "W2b"))
            w3 = cell(peer.seconds.get("W3")) if way == peer.ready["ways"][0] else ""
            print(f"| {peer.name} | {way} | {w2} | {w2b} | {w3} |")
        if peer.failure:
            print(f"| {peer.name} | {peer.failure} | | | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("build/bench"))
    parser.add_argument("--shape", action="append", choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=64, help="of W3; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", action="append", default=[], help="names that begin so")
    parser.add_argument("--optimum-cli", default="optimum-cli", help="with optimum-intel beside it")
    args = parser.parse_args()
    print(f"memory is read at {bandwidth(args.threads):.1f} GB/s; {args.threads} threads")
    report: dict[str, Any] = {
        "machine": processor(),
        "threads": args.threads,
    }
    for name in args.shape or [name for name in SHAPES if name != "smoke"]:
        print(f"\n{name}: prefix {PREFIX}, {RULES} questions of {LENGTH} tokens")
        print(f"(W2b: {SHARED} of them shared by all)")
        peers = run(
            name,
            args.cache.resolve(),
            args.rounds,
            args.pictures,
            args.threads,
            args.only,
            args.optimum_cli,
        )
        table(peers)
        towers = run_vision(name, args.cache.resolve(), args.rounds, args.threads, args.only)
        if towers:
            vision_table(towers, peers, SHAPES[name]().views)
        limits = {n: prefill_limit(SHAPES[name]().text, n, args.threads) for n in PREFILL}
        print("\n| tokens | limit, tok/s | matrices, s | attention, s | rest, s | reached |")
        print("|---|---|---|---|---|---|")
        for tokens, limit in limits.items():
            most = tokens / sum(limit.values())
            ours = next((p.seconds.get(f"prefill {tokens}") for p in peers), None)
            reached = f"{tokens / statistics.median(ours) / most:.0%}" if ours else ""
            parts = " | ".join(f"{s:.3f}" for s in limit.values())
            print(f"| {tokens} | {most:.1f} | {parts} | {reached} |")
        report[name] = {"limits": limits} | {
            p.name: {
                "about": p.ready.get("about"),
                "load_s": p.ready.get("load_s"),
                "seconds": p.seconds,
                "cold_s": p.cold,
                "peak_rss_mib": p.peak,
                "files_mib": p.mib,
                "error": p.error,
                "failure": p.failure,
            }
            for p in peers
        }
        report[name]["vision"] = {t.name: t.seconds.get("vision", t.failure) for t in towers}
    line = json.dumps(report)
    if file := os.environ.get("BENCH_JSON"):
        Path(file).write_text(line + "\n")
    else:
        print(line)


if __name__ == "__main__":
    main()
