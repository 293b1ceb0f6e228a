"""A checkpoint goes in; one of another shape comes out, with what the change costs and saves."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgewright.cli._progress import Progress


@click.command(
    short_help="Give a checkpoint a latent cache.", context_settings={"show_default": True}
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--to", "shape", type=click.Choice(["mla"]), required=True)
@click.option("--out", "-o", type=click.Path(path_type=Path), required=True, metavar="DIR")
@click.option("--rank", type=click.IntRange(min=1), required=True, help="Of the latents.")
@click.option(
    "--rope-dim",
    type=click.IntRange(min=2),
    help="Key values that stay rotated; half of what one head has otherwise.",
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    default=("stdlib",),
    metavar="DIR|FILE|stdlib",
    help="Text to calibrate on, and, held out, to judge by. May be repeated.",
)
@click.option("--tokens", type=click.IntRange(min=256), default=16384, help="To calibrate on.")
@click.option("--uncalibrated", is_flag=True, help="Decompose the weights alone, for comparison.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def command(
    checkpoint: Path,
    shape: str,
    out: Path,
    rank: int,
    rope_dim: int | None,
    texts: tuple[str, ...],
    tokens: int,
    uncalibrated: bool,
    as_json: bool,
) -> None:
    """Turn a checkpoint with grouped-query attention into one with latent attention.

    Keys and values are made of one narrow vector a token, of --rank values, and of one rotated key
    that all heads share; the cache holds only those. The factors are those that lose least on the
    text. OUT becomes a checkpoint that `edgewright export` takes, and the perplexity before and
    after, on text that the calibration has not seen, is printed.

    \b
      edgewright convert examples/llama --to mla --rank 96 -o llama-mla
    """
    from edgewright.model.conversion.convert import Conversion, convert_to_latent
    from edgewright.model.training.corpus import read_corpus

    conversion = Conversion(rank, rope_dim, calibration_tokens=tokens, calibrated=not uncalibrated)
    bar = Progress()
    try:
        found = convert_to_latent(checkpoint, out, read_corpus(texts), conversion, bar)
    finally:
        bar.finish()
    saved = 1 - found.cache_values_after / found.cache_values_before
    if as_json:
        click.echo(
            json.dumps(
                {
                    "rank": found.rank,
                    "rope_dim": found.rope_dim,
                    "cache_values_before": found.cache_values_before,
                    "cache_values_after": found.cache_values_after,
                    "cache_saved": saved,
                    "perplexity_before": found.perplexity_before,
                    "perplexity_after": found.perplexity_after,
                    "perplexity_rise": found.rise,
                    "evaluated_tokens": found.evaluated_tokens,
                }
            )
        )
        return
    click.echo(
        f"{out}: {found.cache_values_before} -> {found.cache_values_after} cached values a token"
        f" and layer ({saved:.0%} saved); perplexity {found.perplexity_before:.2f} ->"
        f" {found.perplexity_after:.2f} ({found.rise:+.1%}) on {found.evaluated_tokens:,} tokens"
    )
