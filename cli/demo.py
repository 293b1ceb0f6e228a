"""The embedded example goes in; what Edgewright does with it, step by step, comes out."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgewright.artifacts.errors import CheckpointError, EdgewrightError
from edgewright.cli._progress import Progress

if TYPE_CHECKING:
    from edgewright.artifacts import Package

_EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny"
_NEW_TOKENS = 48


@click.command(short_help="Export, validate and run the embedded example.")
@click.argument("checkpoint", required=False)
@click.option("--output", "-o", metavar="PACKAGE", help="Keep the package here.")
def command(checkpoint: str | None, output: str | None) -> None:
    """Take the example, a small decoder trained on Python's standard library, all the way: export
    it, validate the package against PyTorch, and complete a few prompts that you can judge.

    The example is part of the repository, not of the wheel: without a clone, name a CHECKPOINT.
    """
    source = Path(checkpoint) if checkpoint is not None else _EXAMPLE
    if checkpoint is None and not source.is_dir():
        raise EdgewrightError(
            "the example is in the repository, not in the installed wheel: edgewright demo"
            " CLONE/examples/tiny"
        )
    began = time.perf_counter()
    prompts = _read_prompts(source / "prompts.json")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(output) if output is not None else Path(scratch) / "package"
        package = _export(source, out)
        _validate(package, source)
        _complete(package, prompts)
        kept = f"edgewright run {out} --prompt '…'" if output else "edgewright demo -o PACKAGE"
        what = "Go on with" if output else "To keep the package:"
        click.echo(f"\nAll of it took {time.perf_counter() - began:.1f} s. {what}  {kept}")


def _read_prompts(path: Path) -> list[str]:
    try:
        prompts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ["import os\n\ndef read_lines(path):\n"]
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise CheckpointError(f"{path} must hold a list of strings")
    return prompts


def _step(title: str) -> None:
    click.echo(f"\n{title}\n{'─' * len(title)}")


def _export(source: Path, out: Path) -> Package:
    from edgewright.artifacts.summary import size_text, summarise
    from edgewright.export import export_checkpoint

    _step("1  Export the checkpoint, with PyTorch")
    progress, began = Progress(), time.perf_counter()
    try:
        package = export_checkpoint(source, out, progress=progress, warn=progress.warn)
    finally:
        progress.finish()
    seconds = time.perf_counter() - began
    summary = summarise(package)
    model, variant = package.manifest.model, package.manifest.variants[0]
    stored = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    libraries = ", ".join(variant.libraries) or "no machine"
    click.echo(
        f"Checkpoint  {source.name}: {model.architecture}, {model.parameters:,} parameters in"
        f" {', '.join(model.weight_dtypes)}, {size_text(stored)}\n"
        f"Package     {size_text(summary.size_bytes)} in {summary.file_count} files: weights"
        f" {size_text(summary.weight_bytes(variant))}, kernels for {libraries}\n"
        f"State       {summary.state_bytes_per_token:,} bytes a token"
        f" and {summary.state_bytes_fixed:,} fixed, context {model.max_context:,}\n"
        f"Time        {seconds:.1f} s"
    )
    return package


def _validate(package: Package, source: Path) -> None:
    from edgewright.export.validate import validate

    _step("2  Validate: is it what PyTorch computes?")
    progress, began = Progress(), time.perf_counter()
    try:
        report = validate(package.root, source, progress=progress)
    finally:
        progress.finish()
    if not report.passed:
        raise EdgewrightError(f"the package is not what PyTorch computes: {report.render()}")
    longest = max(check.prompt_tokens for check in report.logits)
    ways = dict.fromkeys(check.schedule for check in report.logits)
    tokens = sum(check.new_tokens for check in report.greedy)
    click.echo(
        f"Reference   {report.reference}, one float32 pass without a cache\n"
        f"Fed         {', '.join(ways)}; up to {longest} tokens\n"
        f"Logits      differ by at most {report.worst.difference.error:.1e} of their spread;"
        f" {report.tolerance:g} is allowed\n"
        f"Greedy      {tokens} of {tokens} tokens equal\n"
        f"Time        {time.perf_counter() - began:.1f} s; the package keeps the report as evidence"
    )


def _complete(package: Package, prompts: list[str]) -> None:
    from edgewright.runtime import Session

    _step("3  Run: greedy completions, with ONNX Runtime alone")
    began = time.perf_counter()
    session = Session.open(package.root)
    click.echo(
        f"Opened      {time.perf_counter() - began:.2f} s, {session.kernels} kernels,"
        f" {session.threads} threads"
    )
    for prompt in prompts:
        began = time.perf_counter()
        text = "".join(session.stream(prompt, _NEW_TOKENS))
        seconds = time.perf_counter() - began
        made = len(session.tokens[0]) - len(session.encode(prompt)) + 1
        lines = (prompt + "▸" + text).rstrip().splitlines()
        click.echo("\n" + "\n".join(f"  │ {line}" for line in lines))
        click.echo(
            f"  {made} tokens in {seconds:.2f} s, prompt and all; ▸ is where the model begins"
        )
