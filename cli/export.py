"""A checkpoint directory goes in; a package comes out."""

from __future__ import annotations

import time

import click

from edgewright.cli._progress import Progress


@click.command(short_help="Make a package of a checkpoint.")
@click.argument("checkpoint")
@click.option("--output", "-o", "out", metavar="PACKAGE", required=True, help="Must not exist yet.")
@click.option(
    "--provider",
    "providers",
    metavar="NAME",
    multiple=True,
    help="What the package is to run on; may be repeated. [default: cpu]",
)
@click.option(
    "--bits",
    metavar="N",
    type=float,
    help="Bits per weight. This version keeps the checkpoint's own values, so leave it out.",
)
@click.option(
    "--target",
    "targets",
    metavar="SYSTEM-CPU",
    multiple=True,
    help="A machine to compile the kernels for, such as linux-aarch64; may be repeated; `none` for"
    " no kernels. [default: this machine]",
)
@click.option(
    "--cache",
    "cache_dtype",
    type=click.Choice(["float32", "float16", "int8"]),
    default="float32",
    show_default=True,
    help="How keys and values are kept; float16 halves the cache and rounds it, int8 quarters it.",
)
def command(
    checkpoint: str,
    out: str,
    providers: tuple[str, ...],
    bits: float | None,
    targets: tuple[str, ...],
    cache_dtype: str,
) -> None:
    """Make a package of CHECKPOINT, a Hugging Face directory with config.json and safetensors.

    The package holds the checkpoint's own values, the graph, the kernels and the tokenizer; it
    runs without PyTorch. It is written beside PACKAGE and renamed at the end: there is never half
    a package.

    \b
      edgewright export Llama-3.2-1B -o llama.pkg
      edgewright export Llama-3.2-1B -o llama.pkg --target linux-aarch64 --target linux-x86_64
    """
    from edgewright.export import export_checkpoint

    progress, began = Progress(), time.monotonic()
    try:
        package = export_checkpoint(
            checkpoint,
            out,
            providers or ("cpu",),
            bits,
            targets=[name for name in targets if name != "none"] if targets else None,
            cache_dtype=cache_dtype,
            progress=progress,
            warn=progress.warn,
        )
    finally:
        progress.finish()
    model = package.manifest.model
    click.echo(
        f"{out}: {model.architecture}, {model.parameters:,} parameters at"
        f" {model.bits_per_weight:.3g} bits, {package.size_bytes / 1e6:,.1f} MB,"
        f" {time.monotonic() - began:.1f} s"
    )
