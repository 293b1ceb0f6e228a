"""A package or a checkpoint goes in; what it is, how large, and what its state costs come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgewright.artifacts.errors import EdgewrightError

if TYPE_CHECKING:
    from edgewright.artifacts.json_text import Json


@click.command(short_help="Show what a package or a checkpoint holds and what it costs.")
@click.argument("path", metavar="PACKAGE|CHECKPOINT")
@click.option("--verify", is_flag=True, help="Hash every file of the package first.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(path: str, verify: bool, as_json: bool) -> None:
    """Show what a package or a checkpoint holds: parameters, bits per weight, what the state costs
    for each token, variants, tokenizer, and where it came from.

    A package needs the base install alone; a checkpoint needs edgewright[export].
    """
    if (Path(path) / "manifest.json").exists():
        text, values = _package(path, verify)
    elif (Path(path) / "config.json").exists():
        if verify:
            raise click.UsageError("--verify is for packages: a checkpoint lists no hashes.")
        text, values = _checkpoint(path)
    else:
        found = "no such directory"
        if Path(path).exists():
            found = "neither a package (no manifest.json) nor a checkpoint (no config.json)"
        raise EdgewrightError(f"{path}: {found}")
    click.echo(json.dumps(values, indent=2, ensure_ascii=False) if as_json else text.rstrip("\n"))


def _package(path: str, verify: bool) -> tuple[str, dict[str, Json]]:
    from edgewright.artifacts import Package
    from edgewright.artifacts.summary import render, summarise

    summary = summarise(Package.open(path, verify=verify))
    return render(summary), summary.to_json()


def _checkpoint(path: str) -> tuple[str, dict[str, Json]]:
    from edgewright.artifacts.summary import size_text
    from edgewright.model.loading import open_model

    model = open_model(path)
    config, layout = model.config, model.decoder.layout
    parameters, stored_bytes = model.parameter_count, model.stored_bytes
    dtypes = model.weight_dtypes
    values: dict[str, Json] = {
        "kind": "checkpoint",
        "name": model.checkpoint.path.resolve().name,
        "architecture": config.architecture,
        "parameters": parameters,
        "bits_per_weight": 8 * stored_bytes / parameters,
        "weight_dtypes": [*dtypes],
        "layers": len(config.layers),
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "max_context": config.max_context,
        "size_bytes": stored_bytes,
        "state_bytes_per_token": layout.bytes_per_token,
        "state_bytes_fixed": layout.bytes_fixed,
        "variants": [],
        "tokenizer": [file.name for file in model.checkpoint.tokenizer_files],
    }
    full = layout.bytes_fixed + config.max_context * layout.bytes_per_token
    names = ", ".join(file.name for file in model.checkpoint.tokenizer_files)
    rows = (
        ("Model", f"{parameters:,} parameters in {', '.join(dtypes)}; {len(config.layers)} layers,"
                  f" hidden size {config.hidden_size:,}, vocabulary {config.vocab_size:,}"),
        ("Context", f"{config.max_context:,} tokens"),
        ("State", f"{layout.bytes_per_token:,} bytes per token + {layout.bytes_fixed:,} fixed, in"
                  f" float32; {size_text(full)} at the full context"),
        ("Size", size_text(stored_bytes)),
        ("Tokenizer", names or "none: prompts must be token ids"),
    )  # fmt: skip
    title = f"{values['name']}: a checkpoint, {config.architecture}"
    return "\n".join([title, "", *(f"{label:<12}{text}" for label, text in rows)]), values
