"""A package and the checkpoint it was made from go in; whether they agree comes out."""

from __future__ import annotations

import click

from edgewright.cli._options import whole_numbers
from edgewright.cli._progress import Progress


@click.command(short_help="Prove a package's tokens against PyTorch's.")
@click.argument("package")
@click.option(
    "--against", "checkpoint", metavar="CHECKPOINT", required=True, help="What it was made from."
)
@click.option("--provider", metavar="NAME", help="Validate this variant, not the best one here.")
@click.option(
    "--prompt-tokens",
    metavar="1,17,300",
    default="1,17,300",
    show_default=True,
    callback=whole_numbers,
    help="Lengths of the random prompts.",
)
@click.option(
    "--greedy-tokens",
    metavar="N",
    default=64,
    show_default=True,
    type=click.IntRange(min=1),
    help="Tokens to generate and compare.",
)
@click.option("--layers", is_flag=True, help="Compare every value, layer by layer, even if equal.")
@click.option("--seed", metavar="N", default=0, show_default=True, help="Draws the prompts.")
@click.option("--no-store", is_flag=True, help="Leave the package's evidence as it is.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def command(
    context: click.Context,
    package: str,
    checkpoint: str,
    provider: str | None,
    prompt_tokens: tuple[int, ...],
    greedy_tokens: int,
    layers: bool,
    seed: int,
    no_store: bool,
    as_json: bool,
) -> None:
    """Compare PACKAGE with the PyTorch model of CHECKPOINT, and store the result as evidence.

    The reference is transformers' own model where that is installed, run once over each prompt in
    float32 without a cache. The package is fed the same tokens at once, in sevens, one by one,
    after a resume, and in a batch; then it generates. Where they differ, every value of the graph
    is compared, and the first layer and op that differ are named. Exit status 1 means they differ.
    """
    from edgewright.export.validate import store_report, validate

    progress = Progress()
    try:
        report = validate(
            package,
            checkpoint,
            provider=provider,
            prompt_tokens=prompt_tokens,
            greedy_tokens=greedy_tokens,
            layers=layers,
            seed=seed,
            store=False,  # shown first: where it cannot be stored, the work is not lost
            progress=progress,
        )
    finally:
        progress.finish()
    click.echo(report.to_json() if as_json else report.render(), nl=not as_json)
    if not no_store:
        store_report(package, report)
    context.exit(0 if report.passed else 1)
