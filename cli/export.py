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
    help="Quantise to so many bits per weight, the mean over everything stored. [default: the"
    " checkpoint's own values]",
)
@click.option(
    "--method",
    type=click.Choice(["auto", "rtn", "gptq", "awq"]),
    default="auto",
    show_default=True,
    help="How to round: auto takes the best that the text allows; gptq and awq need text.",
)
@click.option(
    "--text",
    metavar="FILE|DIR|stdlib",
    help="Text to calibrate on, like what the model will read. [default: what the model makes up]",
)
@click.option("--tokens", metavar="N", type=click.IntRange(min=1), help="How many of them to read.")
@click.option(
    "--block",
    type=click.Choice(["32", "64", "128"]),
    default="128",
    show_default=True,
    help="Weights that share one scale.",
)
@click.option(
    "--outliers",
    metavar="SHARE",
    type=float,
    default=0.005,
    show_default=True,
    help="The worst weights, which get a correction each.",
)
@click.option("--seed", metavar="N", default=0, show_default=True, help="Same seed, same bytes.")
@click.option(
    "--resume",
    metavar="DIR",
    help="Where interrupted work goes on. [default: a folder of this very export in the cache]",
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
@click.option(
    "--allow-fallback",
    is_flag=True,
    help="Leave nodes that a provider does not take to the processor, and list them in the"
    " manifest; else they are an error.",
)
@click.option(
    "--compile",
    "compile_ahead",
    is_flag=True,
    help="Compile the graphs for a chip ahead, as `edgewright compile` does later.",
)
def command(
    checkpoint: str,
    out: str,
    providers: tuple[str, ...],
    bits: float | None,
    method: str,
    text: str | None,
    tokens: int | None,
    block: str,
    outliers: float,
    seed: int,
    resume: str | None,
    targets: tuple[str, ...],
    cache_dtype: str,
    allow_fallback: bool,
    compile_ahead: bool,
) -> None:
    """Make a package of CHECKPOINT, a Hugging Face directory with config.json and safetensors.

    The package holds the checkpoint's own values, or with --bits what they are rounded to, the
    graph, the kernels and the tokenizer; it runs without PyTorch. It is written beside PACKAGE and
    renamed at the end: there is never half a package.

    --bits 3.1 means the mean over the whole model, scales, corrections and embeddings included.
    Tensors get more or fewer bits as they need. Text makes the result better: the weights are
    rounded so that what the layers give on it changes least. A run that was stopped goes on where
    it was when it is started again.

    \b
      edgewright export Llama-3.2-1B -o llama.pkg
      edgewright export Llama-3.2-1B -o llama.pkg --bits 3.1 --text my-text.txt
      edgewright export Llama-3.2-1B -o llama.pkg --target linux-aarch64 --target linux-x86_64
    """
    from edgewright.export import export_checkpoint
    from edgewright.export.providers import find_provider
    from edgewright.runtime.compiling import compilable, compile_variant, require_plugin

    if bits is None and (method != "auto" or resume):
        raise click.UsageError("--method and --resume go with --bits.")
    integers = any(find_provider(name).computes_in_integers for name in providers)
    if bits is None and not integers and (text is not None or tokens is not None):
        raise click.UsageError(
            "--text and --tokens go with --bits, or a provider that computes in integers."
        )
    progress, began = Progress(), time.monotonic()
    for provider in providers if compile_ahead else ():
        require_plugin(provider)
    try:
        package = export_checkpoint(
            checkpoint,
            out,
            providers or ("cpu",),
            bits,
            method=method,
            text=text,
            tokens=tokens,
            block=int(block),
            outliers=outliers,
            seed=seed,
            resume=resume,
            targets=[name for name in targets if name != "none"] if targets else None,
            cache_dtype=cache_dtype,
            allow_fallback=allow_fallback,
            progress=progress,
            warn=progress.warn,
        )
        for variant in compilable(package):
            if compile_ahead:
                package = compile_variant(package, variant, progress=progress)
            else:
                progress.warn(
                    f"{variant.provider}: no binary was compiled ahead; `edgewright compile"
                    f" {out}` adds it"
                )
    finally:
        progress.finish()
    model = package.manifest.model
    click.echo(
        f"{out}: {model.architecture}, {model.parameters:,} parameters at"
        f" {model.bits_per_weight:.4g} bits per weight, {package.size_bytes / 1e6:,.1f} MB,"
        f" {time.monotonic() - began:.1f} s"
    )
