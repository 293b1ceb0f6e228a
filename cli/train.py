"""Text goes in; a small checkpoint with a tokenizer of its own comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgewright.cli._progress import Progress

if TYPE_CHECKING:
    from edgewright.model.training.trainer import Step


@click.command(short_help="Train a small decoder on text.", context_settings={"show_default": True})
@click.option(
    "--text",
    "texts",
    multiple=True,
    required=True,
    metavar="DIR|FILE|stdlib",
    help="Text to train on; `stdlib` is the running Python's own library. May be repeated.",
)
@click.option("--out", "-o", type=click.Path(path_type=Path), required=True, metavar="DIR")
@click.option("--steps", type=click.IntRange(min=1), help="Stop after so many steps.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help="Stop after this time.")
@click.option("--resume", is_flag=True, help="Go on with the unfinished run in --out.")
@click.option("--seed", type=int, default=0)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    help="Of the matrix products; bfloat16 is faster on CPUs with instructions for it.",
)
@click.option(
    "--architecture",
    type=click.Choice(["latent_hybrid", "llama"]),
    default="latent_hybrid",
    help="Mamba-2 and latent attention in turn, or a plain llama.",
)
@click.option("--tokenizer-vocab", "vocabulary", type=click.IntRange(257, 65536), default=4096)
@click.option("--hidden", type=click.IntRange(min=1), default=256)
@click.option("--layers", type=click.IntRange(min=1), default=6)
@click.option("--heads", type=click.IntRange(min=1), default=4)
@click.option("--kv-heads", type=click.IntRange(min=1), default=2, help="llama only.")
@click.option("--rank", type=click.IntRange(min=1), default=64, help="Of latent attention.")
@click.option("--state", type=click.IntRange(min=1), default=64, help="Of Mamba-2's channels.")
@click.option("--intermediate", type=click.IntRange(min=1), default=512)
@click.option("--context", type=click.IntRange(min=2), default=1024)
@click.option("--batch-rows", type=click.IntRange(min=1), default=8, help="Rows of a step.")
@click.option("--threads", type=click.IntRange(min=1), help="One for each core otherwise.")
@click.option(
    "--save-minutes",
    type=click.FloatRange(min=0),
    default=5.0,
    help="Time between checkpoints.",
)
def command(
    texts: tuple[str, ...],
    out: Path,
    resume: bool,
    threads: int | None,
    save_minutes: float,
    **choices: Any,
) -> None:
    """Train a small decoder on text, and a byte-level BPE tokenizer with it.

    OUT becomes a Hugging Face checkpoint directory (float16 safetensors). The rates rise, hold and
    fall with the share of --steps or --hours that is done. A run that was killed goes on with
    --resume and the same --text; its other options are those it began with. By --steps, the same
    seed and text give the same weights on the same machine.

    \b
      edgewright train --text stdlib --out tiny --hours 1.25 --precision bfloat16
    """
    import torch

    from edgewright.model.training.corpus import read_corpus
    from edgewright.model.training.recipe import Recipe
    from edgewright.model.training.trainer import Trainer

    if threads:
        torch.set_num_threads(threads)
    corpus = read_corpus(texts)
    if resume:
        trainer = Trainer.resume(out, corpus)
    else:
        trainer = Trainer.start(out, Recipe(**choices), corpus)
    parameters = sum(p.numel() for p in trainer.decoder.parameters())
    click.echo(
        f"{len(corpus.train)} documents, {trainer.train_tokens:,} tokens;"
        f" {parameters:,} parameters",
        err=True,
    )
    bar = Progress()
    try:
        trainer.run(_reporter(bar), save_minutes * 60)
    finally:
        bar.finish()
    click.echo(
        f"{out}: {parameters:,} parameters, {trainer.tokens_seen / 1e6:.2f}M tokens seen in"
        f" {trainer.history.seconds / 60:,.1f} minutes,"
        f" held-out loss {trainer.history.held_out[-1][2]:.3f}"
    )


def _reporter(bar: Progress) -> Callable[[Step], None]:
    """A line for each checkpoint, which a log keeps; between them the bar."""

    def report(step: Step) -> None:
        if step.held_out is None:
            stage = f"loss {step.loss:.3f}, {step.tokens_per_second:,.0f} tokens/s"
            bar(stage, int(step.share * 1000), 1000)
            return
        bar.finish()
        click.echo(
            f"{step.share:6.1%}  step {step.step:,}  {step.tokens / 1e6:.2f}M tokens"
            f"  {step.tokens_per_second:,.0f}/s  loss {step.loss:.3f}"
            f"  held out {step.held_out:.3f}",
            err=True,
        )

    return report
