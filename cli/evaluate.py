"""A package and a text go in; how well it predicts the text, and how far it is from another model's
predictions, come out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgewright.cli._progress import Progress

if TYPE_CHECKING:
    from edgewright.export.validate.reference import Reference
    from edgewright.runtime.context import Logits
    from edgewright.runtime.evaluation import Evaluation, Model, TokenText


@click.command(short_help="Measure perplexity on a text, and what was lost of another model.")
@click.argument("package")
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="UTF-8 text that the model has not seen.",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="CHECKPOINT|PACKAGE",
    help="Compare with this model: the one that PACKAGE was made from, or another package of it.",
)
@click.option(
    "--tokens", metavar="N", type=click.IntRange(min=1), help="Predict no more than N tokens."
)
@click.option(
    "--window",
    metavar="N",
    type=click.IntRange(min=1),
    help="Tokens read at once; else the context, but at most 2048.",
)
@click.option("--provider", metavar="NAME", help="Run this variant, not the best one here.")
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(min=1),
    help="Threads; one for each core otherwise.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def command(
    package: str,
    text: Path,
    against: Path | None,
    tokens: int | None,
    window: int | None,
    provider: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how well PACKAGE predicts a text and, with --against, how far its predictions are
    from those of another model with the same tokens.

    The text is read in windows. Each starts from an empty state and with what the tokenizer puts
    before a text, and overlaps the one before by a quarter of a window, so that every token has at
    least so many before it (the first window's excepted). Every token is predicted once: all
    figures are means over them, and perplexity is e to the mean loss in nats.

    KL is that of the package's distribution from the other model's, KL(other || package), over the
    whole vocabulary. A checkpoint is run in float32 by transformers' own model where that can be
    had; the package runs in ONNX Runtime, without PyTorch.

    \b
      edgewright evaluate tiny-3.1 --text held-out.txt --against examples/tiny
    """
    from edgewright.runtime.evaluation import evaluate, read_text, tokenise
    from edgewright.runtime.session import Session

    session = Session.open(package, provider, threads=threads)
    content = read_text(text)
    encoded = tokenise(session.codec, content)
    progress = Progress()
    try:
        reference = _open(against, content, encoded, threads, progress) if against else None
        result = evaluate(
            session, encoded, against=reference, tokens=tokens, window=window, progress=progress
        )
    finally:
        progress.finish()
    if as_json:
        click.echo(json.dumps({"text": text.name, **result.to_json()}, indent=2))
    else:
        click.echo(_render(result, text.name))


def _open(
    path: Path, content: str, encoded: TokenText, threads: int | None, progress: Progress
) -> Model:
    from edgewright.artifacts.errors import SessionError
    from edgewright.artifacts.manifest import MANIFEST_NAME
    from edgewright.runtime.evaluation import PackageModel, tokenise
    from edgewright.runtime.session import Session

    progress("loading the reference", 0, 1)
    if not (path / MANIFEST_NAME).is_file():
        return _open_checkpoint(path, threads)
    other = Session.open(path, threads=threads)
    if tokenise(other.codec, content) != encoded:
        raise SessionError(
            f"{path} cuts the text into other tokens; only packages with the same tokenizer can "
            "be compared"
        )
    return PackageModel(other)


def _open_checkpoint(path: Path, threads: int | None) -> Model:
    import torch

    from edgewright.export.validate.reference import open_reference
    from edgewright.model.loading import open_model

    if threads:
        torch.set_num_threads(threads)
    model = open_model(path)
    return _CheckpointModel(open_reference(path, model), model.config.vocab_size)


class _CheckpointModel:
    """PyTorch's model as one of a comparison: a window at once, without a cache."""

    def __init__(self, reference: Reference, vocab_size: int) -> None:
        self._reference = reference
        self.name = reference.name
        self.vocab_size = vocab_size

    def logits(self, ids: list[int], start: int) -> Iterator[Logits]:
        yield self._reference.logits(ids, (len(ids),))[start:]


def _render(result: Evaluation, text: str) -> str:
    lines = [
        f"{result.package}, variant {result.variant} ({result.kernels} kernels), "
        f"{result.bits_per_weight:.2f} bits a weight",
        f"{text}: {result.tokens:,} tokens predicted, in windows of {result.window:,} that overlap "
        f"by {result.overlap:,}",
        "",
        f"perplexity            {result.perplexity:.4f}  ({result.loss:.4f} nats a token)",
    ]
    if (other := result.against) is not None:
        lines += [
            f"of the other model    {other.perplexity:.4f}  ({other.loss:.4f} nats a token)",
            f"KL from it            {other.kl:.6f} ± {other.kl_standard_error:.6f} nats a token",
            f"same likeliest token  {other.top1_agreement:.2%}",
            f"the other model is    {other.reference}",
        ]
    return "\n".join(lines)
