"""Bits a weight beside what they cost: perplexity and KL of quantised models on text held out.

    python bench/bits.py [tiny] [trained] [--bits 2.3,3.1] [--methods rtn,auto-blind,gptq,awq,auto]
        [--tokens 20000] [--text-tokens 32768] [--rows rows.jsonl] [--threads 2]

`tiny` is examples/tiny; `trained` the model of trained_model.py, trained if it is not in the cache.
Both are judged on the modules of the standard library that training holds out by name, and
calibrated on the others, which is what `--text stdlib` means to `edgewright export`.
The quantised weights are put into the float32 model, so the table is of weights alone; `edgewright
evaluate` is for a package as it runs. With --rows, rows that the file has of the same model and
texts are not made again: begin another file when the quantisers have changed.

Baselines, of which nothing is shared with ours: plain_quantisers.py. All tables and matrices that
we quantise are quantised by them too, and what is not counts with its own bytes for all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from plain_quantisers import PlainRecipe, all_gptq, all_rounded
from trained_model import RECIPE, trained_model

from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops.packed_weights import unpack
from edgewright.export.exporter import traced_graph
from edgewright.export.quantize.groups import values_of
from edgewright.export.quantize.options import QuantizeOptions
from edgewright.export.quantize.plan import WeightGroup, plan_of
from edgewright.export.quantize.quantize import quantize_model
from edgewright.export.quantize.stream import LayerStream
from edgewright.export.quantize.text import read_text
from edgewright.model.loading import LazyModel, open_model
from edgewright.model.token_rows import checkpoint_tokenizer
from edgewright.model.training.corpus import STDLIB, read_corpus
from edgewright.runtime.evaluation import TokenText, measure

BITS = (2.3, 2.6, 3.1, 3.5, 4.1, 8.0)
# How each is called, its method and whether it reads text.
METHODS = {
    "rtn": ("rtn", False),
    "auto-blind": ("auto", False),
    "gptq": ("gptq", True),
    "awq": ("awq", True),
    "auto": ("auto", True),
}
GPTQ_3, GPTQ_3_ZEROS = PlainRecipe(3, 128), PlainRecipe(3, 128, zeros=True)
RTN_4 = PlainRecipe(4, 32)
LOSS_SHARE = 0.5  # of what plain GPTQ loses, at 3.1 bits


@dataclass(frozen=True)
class Row:
    model: str
    method: str
    asked: float | None  # bits
    bits: float  # of everything that is stored
    perplexity: float
    lost: float  # nats a token more than the full-precision model's
    kl: float
    top1_agreement: float
    seconds: float  # of quantising
    tokens: int  # that it was judged on
    text_tokens: int  # that it was calibrated with


class StreamModel:
    """Our decoder in float32 as one of the models of a comparison."""

    name = "float32"

    def __init__(self, stream: LayerStream) -> None:
        self._stream = stream
        self.vocab_size = stream.config.vocab_size

    @torch.no_grad()
    def logits(self, ids: list[int], start: int) -> Iterator[NDArray[np.float32]]:
        x = embedded = self._stream.embed(torch.tensor([ids]))
        for index in range(len(self._stream)):
            seen = embedded if self._stream.sees_embedding else None
            x = self._stream.run_layer(index, x, seen)
        yield self._stream.logits(x[:, start:])[0].numpy()


class Bench:
    """One checkpoint, its plan and the text that it is judged on."""

    def __init__(self, name: str, checkpoint: Path, options: argparse.Namespace) -> None:
        self.name, self.options = name, options
        self.model = open_model(checkpoint)
        self.plan = plan_of(traced_graph(self.model).model.graph, self.model)
        documents = read_corpus([STDLIB]).held_out
        tokenizer = checkpoint_tokenizer(self.model.checkpoint, "nothing can be judged")
        ids = [token for text in documents for token in tokenizer.encode(text).ids]
        self.text = TokenText((), tuple(ids)).cut(options.tokens)
        self._full = StreamModel(self.stream())

    def stream(self) -> LayerStream:
        stream = LayerStream(self.model)
        stream.hold()
        return stream

    def judged(
        self, method: str, asked: float | None, bits: float, stream: LayerStream, seconds: float
    ) -> Row:
        window = min(self.model.config.max_context, 2048)
        found = measure(StreamModel(stream), self.text, window, against=self._full)
        assert found.against is not None
        return Row(
            self.name, method, asked, bits,
            perplexity=float(np.exp(found.loss)),
            lost=found.loss - found.against.loss,
            kl=found.against.kl,
            top1_agreement=found.against.top1_agreement,
            seconds=seconds,
            tokens=found.tokens,
            text_tokens=self.options.text_tokens,
        )  # fmt: skip

    def full(self) -> Row:
        bits = 8 * self.model.stored_bytes / self.model.parameter_count
        return self.judged("as trained", None, bits, self.stream(), 0.0)

    def ours(self, method: str, bits: float) -> Row:
        name, reads = METHODS[method]
        text = STDLIB if reads else None
        began = time.monotonic()
        with TemporaryDirectory() as scratch:
            options = QuantizeOptions.check(
                bits, name, text=text, tokens=self.options.text_tokens, resume=Path(scratch)
            )
            made = quantize_model(self.model, self.plan, options, _progress, _say)
            seconds = time.monotonic() - began
            stream = self.stream()
            for group in self.plan:
                blob = np.frombuffer(b"".join(made.groups[group.key].pieces()), np.uint8)
                for name, value in values_of(group, unpack(blob)).items():
                    with torch.no_grad():
                        held = stream.parameter(name)
                        held.copy_(value.reshape(held.shape))
        return self.judged(method, bits, made.bits, stream, seconds)

    def plain(self, method: str, recipe: PlainRecipe, make: Callable[[LayerStream], object]) -> Row:
        began = time.monotonic()
        stream = self.stream()
        make(stream)
        bits = _plain_bits(self.model, self.plan, recipe)
        return self.judged(method, None, bits, stream, time.monotonic() - began)

    def baselines(self) -> Iterator[tuple[str, Callable[[], Row]]]:
        def of_gptq(method: str, recipe: PlainRecipe) -> Row:
            text = read_text(self.model, self._calibration())
            assert text is not None
            return self.plain(
                method, recipe, lambda stream: all_gptq(stream, self.plan, recipe, text.sample)
            )

        yield PLAIN_GPTQ, lambda: of_gptq(PLAIN_GPTQ, GPTQ_3)
        yield PLAIN_GPTQ_ZEROS, lambda: of_gptq(PLAIN_GPTQ_ZEROS, GPTQ_3_ZEROS)
        yield (
            PLAIN_RTN,
            lambda: self.plain(
                PLAIN_RTN, RTN_4, lambda stream: all_rounded(stream, self.plan, RTN_4)
            ),
        )

    def _calibration(self) -> QuantizeOptions:
        """The very rows that ours are calibrated with."""
        return QuantizeOptions.check(3.1, text=STDLIB, tokens=self.options.text_tokens)


PLAIN_GPTQ = "plain gptq 3 bits, blocks of 128"
PLAIN_GPTQ_ZEROS = "plain gptq 3 bits, 128, zero points"
PLAIN_RTN = "plain rtn 4 bits, blocks of 32"


def _plain_bits(model: LazyModel, plan: Sequence[WeightGroup], recipe: PlainRecipe) -> float:
    planned = {name for group in plan for name in group.names}
    kept = sum(t.nbytes for name, t in model.parameters.items() if name not in planned)
    stored = sum(recipe.stored_bytes(*group.shape[1:]) for group in plan)
    return 8 * (kept + stored) / model.parameter_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="tiny|trained", help="both unless named")
    parser.add_argument("--bits", default=",".join(map(str, BITS)))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--tokens", type=int, help="judge by no more than these")
    parser.add_argument("--text-tokens", type=int, default=32768, help="calibrate with these")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rows", type=Path, help="keep the rows here, and make none again")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.models) - set(CHECKPOINTS):
        parser.error(f"no model {min(unknown)}; there are {', '.join(CHECKPOINTS)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in options.models or CHECKPOINTS:
        rows = list(rows_of(name, options))
        if not options.json:
            print("\n".join(verdicts(rows)), flush=True)


CHECKPOINTS: dict[str, Callable[[], Path]] = {
    "tiny": lambda: Path(__file__).parents[1] / "examples" / "tiny",
    "trained": lambda: trained_model(RECIPE),
}


def rows_of(name: str, options: argparse.Namespace) -> Iterator[Row]:
    bench = Bench(name, CHECKPOINTS[name](), options)
    if not options.json:
        print(heading(bench), flush=True)
    same = (name, bench.text.predicted, options.text_tokens)
    known = {
        (row.method, row.asked): row
        for row in _read_rows(options.rows)
        if (row.model, row.tokens, row.text_tokens) == same
    }
    for key, make in _asked(bench, options):
        row = known.get(key)
        if row is None:
            try:
                row = make()
            except ExportError as error:
                _say(f"{name} {key}: {error}")
                continue
            if options.rows:
                with options.rows.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
        print(json.dumps(asdict(row)) if options.json else text(row), flush=True)
        yield row


_Key = tuple[str, float | None]  # method, bits that were asked for


def _asked(bench: Bench, options: argparse.Namespace) -> Iterator[tuple[_Key, Callable[[], Row]]]:
    yield ("as trained", None), bench.full
    for method, make in bench.baselines():
        yield (method, None), make
    for bits in map(float, options.bits.split(",")):
        for method in options.methods.split(","):
            yield (method, bits), lambda method=method, bits=bits: bench.ours(method, bits)  # type: ignore[misc]


def _read_rows(path: Path | None) -> Iterator[Row]:
    if path is not None and path.exists():
        for line in path.read_text().splitlines():
            yield Row(**json.loads(line))


def heading(bench: Bench) -> str:
    return (
        f"{bench.name}: {bench.model.parameter_count:,} parameters, judged on "
        f"{bench.text.predicted:,} tokens held out\n"
        f"{'method':36} {'asked':>5} {'bits':>6} {'perplexity':>11} {'lost':>8} {'KL':>9} "
        f"{'same top':>9} {'seconds':>8}"
    )


def text(row: Row) -> str:
    asked = "" if row.asked is None else f"{row.asked:g}"
    return (
        f"{row.method:36} {asked:>5} {row.bits:6.3f} {row.perplexity:11.4f} {row.lost:8.4f} "
        f"{row.kl:9.5f} {row.top1_agreement:9.2%} {row.seconds:8.1f}"
    )


def verdicts(rows: Sequence[Row]) -> Iterator[str]:
    """What the default loses, in nats a token; beside the better of plain GPTQ's two forms."""
    ours = {row.asked: row for row in rows if row.method == "auto"}
    plain = {row.method: row for row in rows if row.method.startswith("plain")}
    if 3.1 in ours:
        other = min((plain[PLAIN_GPTQ], plain[PLAIN_GPTQ_ZEROS]), key=lambda row: row.lost)
        for what, found, limit in (
            ("loses", ours[3.1].lost, other.lost),
            ("diverges", ours[3.1].kl, other.kl),
        ):
            share = found / limit
            yield (
                f"3.1 bits {what} {share:.2f} of what '{other.method}' ({other.bits:.3f}) does: "
                + ("reached" if share <= LOSS_SHARE else f"not reached, wanted {LOSS_SHARE}")
            )
    if 4.1 in ours:
        other = plain[PLAIN_RTN]
        better = ours[4.1].lost < other.lost
        yield (
            f"4.1 bits loses {ours[4.1].lost:.4f}, '{other.method}' ({other.bits:.3f}) "
            f"{other.lost:.4f}: {'reached' if better else 'not reached'}"
        )


def _progress(stage: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{stage} {done}/{total}", end="", file=sys.stderr, flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
