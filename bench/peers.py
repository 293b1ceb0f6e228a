"""Whole models beside llama.cpp, onnxruntime-genai and transformers: prefill, and decode at depths.

    pip install llama-cpp-python gguf onnxruntime-genai
    python bench/peers.py llama mla mamba mamba2 granite [--bits 3.1,4.1] [--threads 2]
        [--folder /big/disk] [--llama-python /of/another/venv/bin/python] [--torch bfloat16]
        [--rivals Q4_0,Q3_K_M,genai] [--size small] [--json]

A random float16 checkpoint of each shape is written, exported to a package and converted to GGUF;
with --folder what was made stays there for the next time, and only packages are made anew, unless
--keep-packages. Each side runs in a process of its own, in turns, while the others are stopped.
Medians are compared and, in brackets, the fastest tenths, which other work on the machine touches
least. llama.cpp has a batch of 512, a float16 cache and threads that never sleep, as it likes best;
for latent attention it runs with and without flash attention, and the faster is what we are held
against. `--size small` tries the bench itself. `--clock cpu` counts the processor's time: with one
thread, that can be compared even where much else is running.

All sides must first run the same model. At 16 bits they give the same logits. With --bits each side
rounds the weights in its own way, by its own quantiser, data-free (the weights are random): each
one's logits must then go with those of llama.cpp at 16 bits, from whose file it quantises; 0 would
be another model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from peer_models import Models
from peer_process import Peer, Peers
from peer_shapes import SHAPES
from peer_wanted import (
    GENAI,
    LLAMA,
    OURS,
    PREFILL,
    SCAN_WANTED,
    WANTED,
    Row,
    Seconds,
    Target,
    among_ours,
    beside,
)

PREFILL_TOKENS = 512
SMALL_DEPTHS = {2048: 256, 8192: 512}
LARGEST_CAPACITY = 131072
# Rounding to float16 here and there, over all layers, in standard deviations of the logits.
AGREEMENT = 0.25
# Two or three bits leave little of a random model; of another one's logits 0.01 would be chance.
CORRELATION = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help="all unless named")
    parser.add_argument("--bits", help="of our packages, such as 3.1,4.1; else 16 on all sides")
    parser.add_argument("--rivals", default="Q4_0,Q4_K_M,Q3_K_M,Q2_K,genai", help="with --bits")
    parser.add_argument("--size", choices=SHAPES, default="real")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="tokens decoded in a turn")
    parser.add_argument("--cache", choices=["float32", "float16", "int8"], default="float16")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--flash", choices=["both", "auto"], default="both", help="of llama.cpp")
    parser.add_argument("--depths", help="such as 0,8192; else those of the shape")
    parser.add_argument("--folder", type=Path, help="keep checkpoints and GGUF files here")
    parser.add_argument("--keep-packages", action="store_true", help="those of the last time too")
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
            for row in Comparison(name, folder / f"{name}-{options.size}", options).rows():
                print(json.dumps(asdict(row)) if options.json else row, flush=True)
            if options.folder is None:
                shutil.rmtree(folder / f"{name}-{options.size}")


class Comparison:
    """One shape, all sides of it, and what is measured in turns."""

    def __init__(self, name: str, folder: Path, options: argparse.Namespace) -> None:
        self.name, self.options, self.wanted = name, options, WANTED[name]
        self.models = Models(
            folder, options.size, name, options.llama_python, report, options.keep_packages
        )
        bits = options.bits.split(",") if options.bits else []
        self.bits = {f"{OURS} {each}": float(each) for each in bits}
        depths = [int(d) for d in options.depths.split(",")] if options.depths else []
        small = {} if options.size == "real" else SMALL_DEPTHS
        self.depths = {d: small.get(d, d) for d in depths or self.wanted.depths}
        room = options.rounds * options.steps + 2 * PREFILL_TOKENS
        self.capacity = -(-(max(self.depths.values()) + room) // 256) * 256

    @property
    def ours(self) -> list[str]:
        return list(self.bits) or [OURS]

    def rows(self) -> Iterator[Row]:
        name = self.name
        with Peers() as peers:
            self._start(peers)
            report(self._agreement(peers))
            yield from self._cache_rows(peers)
            yield from self._targets(PREFILL, f"prefill {PREFILL_TOKENS}", self._prefill(peers))
            decoded: dict[str, Seconds] = {side: {} for side in self.ours}
            for asked, depth in self.depths.items():
                seconds = self._decode_at(peers, depth)
                for side in self.ours:
                    decoded[side][f"depth {depth}"] = seconds[side]
                yield from self._targets(asked, f"decode at {depth}", seconds)
                if name == "mla" and asked == 2048 and not self.bits:
                    yield self._capacity_row(peers, depth)
        if self.wanted.depth_independent:
            for side, seconds in decoded.items():
                yield among_ours(name, f"{side} decode, deep over fresh", seconds)
        if name == "mamba" and not self.bits:
            yield scan_row(self.options)

    def _start(self, peers: Peers) -> None:
        options, models = self.options, self.models
        common = {"threads": options.threads, "clock": options.clock, "capacity": self.capacity}
        for side in self.ours:
            package = models.package(options.cache, self.bits.get(side))
            peers.start(
                side, Peer(Path(sys.executable), {"kind": "ours", "model": str(package), **common})
            )
        if not self.bits:
            self._start_llama(peers, LLAMA, models.gguf())
        for rival in options.rivals.split(",") if self.bits else []:
            if rival != "genai":
                self._start_llama(peers, f"{LLAMA} {rival}", models.quantised_gguf(rival))
            elif self.name == "llama":  # its builder knows no other of our shapes
                order = {"kind": "genai", "model": str(models.genai()), **common}
                peers.start(GENAI, Peer(options.llama_python, order))
        for dtype in options.torch:
            order = {"kind": "torch", "model": str(models.checkpoint()), "dtype": dtype}
            order |= {"threads": options.threads, "clock": options.clock}
            silent = {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
            peers.start(f"torch {dtype}", Peer(Path(sys.executable), order, silent))

    def _start_llama(self, peers: Peers, side: str, model: Path) -> None:
        options = self.options
        order = {"kind": "llama", "model": str(model), "threads": options.threads}
        order |= {"clock": options.clock, "capacity": self.capacity}
        environment = {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": str(options.threads)}
        python = options.llama_python
        peers.start(side, Peer(python, order | {"flash": -1}, environment))
        if self.name == "mla" and options.flash == "both":
            plain = order | {"flash": 0}
            peers.start(f"{side}, no flash", Peer(python, plain, environment))

    def _agreement(self, peers: Peers) -> str:
        """After a prompt and after each of some more tokens."""
        found = {side: self._logits(peer) for side, peer in peers.items()}
        if not self.bits:
            return self._same(found)
        with Peers() as full:
            self._start_llama(full, LLAMA, self.models.gguf())
            expected = self._logits(full[LLAMA])
        said = []
        for side, logits in found.items():
            correlation = float(np.corrcoef(logits.ravel(), expected.ravel())[0, 1])
            said.append(f"{side} {correlation:.2f}")
            if not correlation > CORRELATION:
                raise SystemExit(
                    f"{self.name}: {side} is another model, its logits go with those at 16 bits "
                    f"by {correlation:.2f}"
                )
        return f"{self.name}: correlation of logits with those at 16 bits: " + ", ".join(said)

    def _logits(self, peer: Peer) -> NDArray[np.float32]:
        vocab = SHAPES[self.options.size][self.name].vocab
        ids = np.random.default_rng(0).integers(0, vocab, 56).tolist()
        path = self.models.folder / "logits.npy"
        peer.ask("logits", ids=ids, split=48, out=str(path))
        logits: NDArray[np.float32] = np.load(path)
        return logits

    def _same(self, found: dict[str, NDArray[np.float32]]) -> str:
        ours, said = found.pop(OURS), []
        for side, theirs in found.items():
            difference = float(np.abs(ours - theirs).max() / theirs.std())
            said.append(f"{side} {difference:.1e}")
            if not difference < AGREEMENT and "bfloat16" not in side:
                raise SystemExit(
                    f"{self.name}: {side} gives other logits, by {difference:.1e} deviations"
                )
        return f"{self.name}: largest difference of logits, in deviations: " + ", ".join(said)

    def _cache_rows(self, peers: Peers) -> Iterator[Row]:
        rival = next(side for side, _ in peers.items() if side.startswith(LLAMA))
        sizes = {side: peers[side].description for side in (self.ours[0], rival)}
        for key, what in (("per_token", "cache, bytes a token"), ("fixed", "state, bytes")):
            rates = {side: float(size[key]) for side, size in sizes.items()}
            if rates[self.ours[0]]:
                yield Row(self.name, what, rates, rates[self.ours[0]] / rates[rival], None)

    def _targets(self, what: str | int, said: str, seconds: Seconds) -> Iterator[Row]:
        """Each side of ours beside each rival; where no ratio is wanted, for comparison."""
        wanted = self.wanted.quantised if self.bits else self.wanted.at_16_bits
        rivals = dict.fromkeys(side.partition(", ")[0] for side in seconds)
        for side in self.ours:
            for rival in rivals:
                if rival in self.ours or rival.startswith("torch"):
                    continue
                least = [t.least for t in wanted if self._is_meant(t, what, side, rival)]
                yield beside(self.name, said, side, rival, seconds, least[0] if least else None)

    def _is_meant(self, target: Target, what: str | int, side: str, rival: str) -> bool:
        if (target.what, target.rival) != (what, rival):
            return False
        return target.bits is None or target.bits == int(self.bits[side])

    def _prefill(self, peers: Peers) -> Seconds:
        for _, peer in peers.items():
            peer.ask("clear")
            peer.ask("feed", tokens=32)
        taken: Seconds = {}
        for number in range(self.options.rounds):
            for side, peer in peers.items():
                if number and side.startswith("torch"):
                    continue
                peer.ask("clear")
                seconds = peer.ask("feed", tokens=PREFILL_TOKENS) / PREFILL_TOKENS
                taken.setdefault(side, []).append(seconds)
        return taken

    def _decode_at(self, peers: Peers, depth: int) -> Seconds:
        sides = {s: p for s, p in peers.items() if not depth or not s.startswith("torch")}
        for side, peer in sides.items():
            peer.ask("clear")
            if depth:
                report(f"{self.name}: {side} reads {depth} tokens ...")
                peer.ask("feed", tokens=depth)
        return self._decode(sides)

    def _decode(self, sides: dict[str, Peer]) -> Seconds:
        for side, peer in sides.items():
            peer.ask("decode", tokens=1 if side.startswith("torch") else 4)
        taken: Seconds = {side: [] for side in sides}
        for number in range(self.options.rounds):
            for side, peer in sides.items():
                if not number or not side.startswith("torch"):
                    taken[side] += peer.ask("decode", tokens=self.options.steps)
        return taken

    def _capacity_row(self, peers: Peers, depth: int) -> Row:
        """Room for many more tokens costs no time; `peers` are at this depth already."""
        order: dict[str, object] = {"kind": "ours", "model": str(self.models.folder / "package")}
        order |= {"threads": self.options.threads, "clock": self.options.clock}
        with Peers() as more:
            peer = Peer(Path(sys.executable), order | {"capacity": LARGEST_CAPACITY})
            large = more.start("large", peer)
            large.ask("feed", tokens=depth)
            sides = {f"capacity {peer.capacity}": peer for peer in (peers[OURS], large)}
            return among_ours(self.name, f"our decode at {depth}", self._decode(sides))


def scan_row(options: argparse.Namespace) -> Row:
    """From the bench of the kernel by itself, at mamba-1.4b's channels."""
    report("mamba: the scan beside LinearAttention ...")
    script = Path(__file__).with_name("selective_scan.py")
    command = [sys.executable, str(script), "--json", "--threads", str(options.threads)]
    rows = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    row = next(row for row in rows if (row["seq"], row["channels"]) == (512, 4096))
    sides = {OURS: row["microseconds"], "LinearAttention": row["linear_attention"]}
    rates = {side: 512 / (spent * 1e-6) for side, spent in sides.items()}
    what = "scan of 512 tokens, one layer"
    return Row("mamba", what, rates, rates[OURS] / rates["LinearAttention"], SCAN_WANTED)


def report(line: str) -> None:
    print(f"{line}  (load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
