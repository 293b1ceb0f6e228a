"""Whole models beside llama.cpp and transformers: speed of prefill and of decode at some depths.

    pip install llama-cpp-python gguf
    python bench/peers.py mla mamba mamba2 granite [--threads 2] [--folder /big/disk]
        [--llama-python /of/another/venv/bin/python] [--torch bfloat16] [--size small] [--json]

A random float16 checkpoint of each shape is written, exported to a package and converted to GGUF;
with --folder both stay there for the next time, and only the package is made anew. All sides must
first give the same logits. Then each runs in a process of its own, in turns, while the others are
stopped. Medians are compared and, in brackets, the fastest tenths, which other work on the machine
touches least. llama.cpp has a batch of 512, a float16 cache and threads that never sleep, as it
likes best; for attention it runs with and without flash attention, and the faster is what we are
held against. `--size small` tries the bench itself. `--clock cpu` counts the processor's time: with
one thread, that can be compared even where much else is running.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from peer_checkpoint import write_checkpoint
from peer_process import Peer, Peers
from peer_shapes import SHAPES

from edgewright.export import export_checkpoint

PREFILL = 512
SMALL_DEPTHS = {2048: 256, 8192: 512}
LARGEST_CAPACITY = 131072
OURS, LLAMA, LLAMA_PLAIN = "edgewright", "llama.cpp", "llama.cpp, no flash"
# Rounding to float16 here and there, over all layers, in standard deviations of the logits.
AGREEMENT = 0.25


Seconds = dict[str, list[float]]  # of a token, by side


@dataclass(frozen=True)
class Wanted:
    """Least ratios of our speed to llama.cpp's; `None` where none is asked for."""

    prefill: float
    decode: dict[int, float | None]  # by depth
    depth_independent: bool = False


WANTED = {
    "mla": Wanted(1.0, {0: 1.0, 2048: 1.15, 8192: 1.5}),
    "mamba": Wanted(1.0, {0: 1.0, 2048: None}, depth_independent=True),
    "mamba2": Wanted(1.0, {0: 1.0, 2048: None}, depth_independent=True),
    "granite": Wanted(1.0, {0: 1.0, 2048: None}),
}
SCAN_WANTED = 10.0
UNCHANGED = 0.95  # of the speed: less is not noise


@dataclass(frozen=True)
class Row:
    """Tokens a second of each side (or what `what` says), and ours over the best of llama.cpp's.

    `undisturbed` is that ratio of each side's fastest tenth, for a machine that has other work.
    """

    shape: str
    what: str
    rates: dict[str, float]
    ratio: float
    wanted: float | None
    undisturbed: float | None = None

    @property
    def verdict(self) -> str:
        if self.wanted is None:
            return ""
        return "reached" if self.ratio >= self.wanted else "not reached"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help="all unless named")
    parser.add_argument("--size", choices=SHAPES, default="real")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="tokens decoded in a turn")
    parser.add_argument("--cache", choices=["float32", "float16", "int8"], default="float16")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--flash", choices=["both", "auto"], default="both", help="of llama.cpp")
    parser.add_argument("--folder", type=Path, help="keep checkpoints and GGUF files here")
    parser.add_argument("--llama-python", type=Path, default=Path(sys.executable))
    parser.add_argument(
        "--torch", choices=["float32", "bfloat16"], action="append", default=[], dest="torch"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.shapes) - set(WANTED):
        parser.error(f"no shape {min(unknown)}; there are {', '.join(WANTED)}")
    with TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        for name in options.shapes or WANTED:
            for row in compare(name, folder / f"{name}-{options.size}", options):
                print(json.dumps(asdict(row)) if options.json else text(row), flush=True)
            if options.folder is None:
                shutil.rmtree(folder / f"{name}-{options.size}")


def compare(name: str, folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    prepare(name, folder, options)
    wanted = WANTED[name]
    depths = {d: d if options.size == "real" else SMALL_DEPTHS.get(d, 0) for d in wanted.decode}
    room = options.rounds * options.steps + 2 * PREFILL
    with Peers() as peers:
        start(peers, name, folder, max(depths.values()) + room, options)
        report(check_agreement(peers, name, folder, options))
        yield from cache_rows(peers, name)
        yield prefill_row(peers, name, wanted.prefill, options)
        ours: Seconds = {}
        for asked, depth in depths.items():
            seconds = decode_at(peers, name, depth, options)
            ours[f"depth {depth}"] = seconds[OURS]
            yield beside(name, f"decode at {depth}", seconds, wanted.decode[asked])
            if name == "mla" and asked == 2048:
                yield capacity_row(peers, name, folder, depth, options)
    if wanted.depth_independent:
        yield among_ours(name, "our decode, deep over fresh", ours)
    if name == "mamba":
        yield scan_row(name, options)


def prepare(name: str, folder: Path, options: argparse.Namespace) -> None:
    checkpoint, gguf = folder / "checkpoint", folder / "f16.gguf"
    if not checkpoint.exists():
        report(f"{name}: writing a checkpoint ...")
        write_checkpoint(SHAPES[options.size][name], checkpoint)
    if not gguf.exists():
        report(f"{name}: converting it to GGUF ...")
        partial = gguf.with_suffix(".part")
        order = {"kind": "gguf", "model": str(checkpoint), "out": str(partial)}
        with Peers() as peers:
            peers.start("gguf", Peer(options.llama_python, order))
        partial.rename(gguf)
    report(f"{name}: exporting it ...")
    shutil.rmtree(folder / "package", ignore_errors=True)
    export_checkpoint(checkpoint, folder / "package", cache_dtype=options.cache)


def start(
    peers: Peers, name: str, folder: Path, capacity: int, options: argparse.Namespace
) -> None:
    common = {"threads": options.threads, "clock": options.clock}
    common |= {"capacity": -(-capacity // 256) * 256}
    ours = {"kind": "ours", "model": str(folder / "package"), **common}
    peers.start(OURS, Peer(Path(sys.executable), ours))
    llama = {"kind": "llama", "model": str(folder / "f16.gguf"), **common}
    environment = {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": str(options.threads)}
    peers.start(LLAMA, Peer(options.llama_python, llama | {"flash": -1}, environment))
    if name == "mla" and options.flash == "both":
        peers.start(LLAMA_PLAIN, Peer(options.llama_python, llama | {"flash": 0}, environment))
    for dtype in options.torch:
        order = {"kind": "torch", "model": str(folder / "checkpoint"), "dtype": dtype}
        order |= {"threads": options.threads, "clock": options.clock}
        silent = {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
        peers.start(f"torch {dtype}", Peer(Path(sys.executable), order, silent))


def check_agreement(peers: Peers, name: str, folder: Path, options: argparse.Namespace) -> str:
    """The same logits after a prompt and after each of some more tokens."""
    vocab = SHAPES[options.size][name].vocab
    ids = np.random.default_rng(0).integers(0, vocab, 56).tolist()
    found = {}
    for side, peer in peers.items():
        path = folder / "logits.npy"
        peer.ask("logits", ids=ids, split=48, out=str(path))
        found[side] = np.load(path)
    ours, said = found.pop(OURS), []
    for side, theirs in found.items():
        difference = float(np.abs(ours - theirs).max() / theirs.std())
        said.append(f"{side} {difference:.1e}")
        if not difference < AGREEMENT and "bfloat16" not in side:
            raise SystemExit(f"{name}: {side} gives other logits, by {difference:.1e} deviations")
    return f"{name}: largest difference of logits, in deviations: " + ", ".join(said)


def cache_rows(peers: Peers, name: str) -> Iterator[Row]:
    sizes = {side: peers[side].description for side in (OURS, LLAMA)}
    for key, what in (("per_token", "cache, bytes a token"), ("fixed", "state, bytes")):
        rates = {side: float(size[key]) for side, size in sizes.items()}
        if rates[OURS]:
            yield Row(name, what, rates, rates[OURS] / rates[LLAMA], None)


def prefill_row(peers: Peers, name: str, wanted: float, options: argparse.Namespace) -> Row:
    for _, peer in peers.items():
        peer.ask("feed", tokens=32)
    taken: dict[str, list[float]] = {}
    for number in range(options.rounds):
        for side, peer in peers.items():
            if number and side.startswith("torch"):
                continue
            peer.ask("clear")
            taken.setdefault(side, []).append(peer.ask("feed", tokens=PREFILL))
    seconds = {side: [one / PREFILL for one in found] for side, found in taken.items()}
    return beside(name, f"prefill {PREFILL}", seconds, wanted)


def decode_at(peers: Peers, name: str, depth: int, options: argparse.Namespace) -> Seconds:
    sides = {s: p for s, p in peers.items() if not depth or not s.startswith("torch")}
    for side, peer in sides.items():
        peer.ask("clear")
        if depth:
            report(f"{name}: {side} reads {depth} tokens ...")
            peer.ask("feed", tokens=depth)
    return decode_seconds(sides, options)


def decode_seconds(sides: dict[str, Peer], options: argparse.Namespace) -> Seconds:
    for side, peer in sides.items():
        peer.ask("decode", tokens=1 if side.startswith("torch") else 4)
    taken: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(options.rounds):
        for side, peer in sides.items():
            if not number or not side.startswith("torch"):
                taken[side] += peer.ask("decode", tokens=options.steps)
    return taken


def capacity_row(
    peers: Peers, name: str, folder: Path, depth: int, options: argparse.Namespace
) -> Row:
    """Room for many more tokens costs no time; `peers` are at this depth already."""
    order: dict[str, object] = {"kind": "ours", "model": str(folder / "package")}
    order |= {"threads": options.threads, "clock": options.clock, "capacity": LARGEST_CAPACITY}
    with Peers() as more:
        large = more.start("large", Peer(Path(sys.executable), order))
        large.ask("feed", tokens=depth)
        sides = {f"capacity {peer.capacity}": peer for peer in (peers[OURS], large)}
        return among_ours(name, f"our decode at {depth}", decode_seconds(sides, options))


def scan_row(name: str, options: argparse.Namespace) -> Row:
    """From the bench of the kernel by itself, at mamba-1.4b's channels."""
    report(f"{name}: the scan beside LinearAttention ...")
    script = Path(__file__).with_name("selective_scan.py")
    command = [sys.executable, str(script), "--json", "--threads", str(options.threads)]
    rows = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    row = next(row for row in rows if (row["seq"], row["channels"]) == (512, 4096))
    sides = {OURS: row["microseconds"], "LinearAttention": row["linear_attention"]}
    rates = {side: 512 / (spent * 1e-6) for side, spent in sides.items()}
    what = "scan of 512 tokens, one layer"
    return Row(name, what, rates, rates[OURS] / rates["LinearAttention"], SCAN_WANTED)


def beside(name: str, what: str, seconds: Seconds, wanted: float | None) -> Row:
    rates = medians(seconds)
    ratio, undisturbed = (
        each[OURS] / max(rate for side, rate in each.items() if side.startswith(LLAMA))
        for each in (rates, fastest(seconds))
    )
    return Row(name, what, rates, ratio, wanted, undisturbed)


def among_ours(name: str, what: str, seconds: Seconds) -> Row:
    """The last over the first: it must not be slower."""
    rates, fast = medians(seconds), list(fastest(seconds).values())
    ratio = list(rates.values())[-1] / next(iter(rates.values()))
    return Row(name, what, rates, ratio, UNCHANGED, fast[-1] / fast[0])


def medians(seconds: Seconds) -> dict[str, float]:
    return {side: 1 / statistics.median(found) for side, found in seconds.items()}


def fastest(seconds: Seconds) -> dict[str, float]:
    return {side: 1 / sorted(found)[len(found) // 10] for side, found in seconds.items()}


def text(row: Row) -> str:
    wanted = f"wanted {row.wanted:.2f}  {row.verdict}" if row.wanted else ""
    undisturbed = f"({row.undisturbed:.2f})" if row.undisturbed else ""
    rates = "  ".join(f"{side} {rate:,.4g}" for side, rate in row.rates.items())
    return (
        f"{row.shape:8} {row.what:30} ratio {row.ratio:5.2f} {undisturbed:6} {wanted:24}  {rates}"
    )


def report(line: str) -> None:
    print(f"{line}  (load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
