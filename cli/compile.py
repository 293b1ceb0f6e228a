"""A package goes in; the same package comes out, its graphs for a chip compiled ahead."""

from __future__ import annotations

import click

from edgewright.cli._progress import Progress


@click.command(short_help="Compile a package's graphs for a chip ahead.")
@click.argument("package")
@click.option(
    "--provider",
    metavar="NAME",
    help="Compile this variant alone. [default: every one that is for a chip]",
)
@click.option(
    "--seconds",
    metavar="N",
    type=click.FloatRange(min=0, min_open=True),
    help="How long a graph may take. [default: ten minutes, and one second for each MB]",
)
def command(package: str, provider: str | None, seconds: float | None) -> None:
    """Compile the graphs of PACKAGE's variants for a chip, and add what comes of it to PACKAGE.

    Without that a graph is compiled whenever it is opened. It takes the chip maker's plugin, as
    onnxruntime-qnn, but not the chip. Each graph is compiled in a process of its own, and then read
    back. A binary holds the weights, so it is as large as they are, for each of the two graphs.

    \b
      edgewright compile llama.pkg
      edgewright compile llama.pkg --provider qnn:sm8650
    """
    from edgewright.artifacts import Package
    from edgewright.artifacts.errors import SessionError
    from edgewright.artifacts.summary import size_text
    from edgewright.runtime.compiling import compilable, compile_variant

    progress = Progress()
    opened = Package.open(package)
    try:
        variants = compilable(opened, provider)
        if not variants:
            raise SessionError(
                f"{package}: no variant for {provider or 'a chip'} to compile; it has"
                f" {', '.join(each.provider for each in opened.manifest.variants)}"
            )
        for variant in variants:
            opened = compile_variant(opened, variant, seconds=seconds, progress=progress)
            compiled = opened.manifest.variant(variant.name).compiled
            assert compiled is not None
            for role, made in compiled.graphs.items():
                size = size_text(opened.manifest.files[made.binary].size)
                click.echo(f"{variant.provider} {role}: {size}, {made.seconds:.1f} s")
    finally:
        progress.finish()
