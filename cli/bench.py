"""A package goes in; a table of how fast it runs here comes out, or the same as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgewright.cli._options import session_options, whole_numbers

if TYPE_CHECKING:
    from edgewright.runtime.benchmark import Benchmark


@click.command(short_help="Measure speed, memory and the share of the machine's bandwidth.")
@click.argument("package")
@click.option(
    "--depths",
    metavar="0,512,…",
    default="0,512,2048",
    show_default=True,
    callback=whole_numbers,
    help="Tokens in the state before measuring.",
)
@click.option("--prompt-tokens", metavar="N", default=512, show_default=True, type=int)
@click.option("--decode-tokens", metavar="N", default=32, show_default=True, type=int)
@click.option("--repeats", metavar="N", default=3, show_default=True, type=int)
@session_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
@click.option("--output", "-o", metavar="FILE", help="Write the JSON to a file too.")
def command(
    package: str,
    depths: tuple[int, ...],
    prompt_tokens: int,
    decode_tokens: int,
    repeats: int,
    provider: str | None,
    capacity: int | None,
    threads: int | None,
    as_json: bool,
    output: str | None,
) -> None:
    """Measure PACKAGE on this machine: load time, prefill and decode speed after so many tokens of
    context, state and memory, and which part of the memory's bandwidth decoding reaches.

    Speeds are medians over the repeats. The fraction counts the bytes of weights that one step
    reads, not the state's: with a long state it is a lower bound.
    """
    from edgewright.runtime.benchmark import Options, Plan, run_benchmark

    result = run_benchmark(
        package,
        Plan(depths, prompt_tokens, decode_tokens, repeats),
        Options(provider, capacity, threads),
        progress=lambda step: click.echo(f"measuring: {step}", err=True),
    )
    document = json.dumps(result.to_json(), indent=2)
    if output is not None:
        Path(output).write_text(document + "\n")
    click.echo(document if as_json else _render(result))


def _render(result: Benchmark) -> str:
    lines = [
        f"{result.package}, variant {result.variant} ({result.kernels} kernels), "
        f"{result.parameters / 1e6:,.1f}M parameters",
        f"{result.cpu}, {result.threads} threads, onnxruntime {result.onnxruntime}",
        "",
        f"load              {result.load_seconds:.3f} s",
        f"state             {result.state_bytes_per_token:,} bytes a token, "
        f"{result.state_bytes_fixed:,} fixed",
        f"peak memory       {_megabytes(result.peak_memory_bytes)}, of which private "
        f"{_megabytes(result.private_memory_bytes)}",
        f"memory bandwidth  {result.memory_bandwidth_bytes_per_second / 1e9:.1f} GB/s"
        f" ({result.memory_bandwidth_method})",
        f"weights           {result.weight_bytes_per_token / 1e6:,.1f} MB a token"
        f" ({result.weight_bytes_counted})",
        "",
        f"{'depth':>8} {'prefill tok/s':>15} {'decode tok/s':>14} {'of bandwidth':>14}",
    ]
    lines += [
        f"{speed.depth:>8} {speed.prefill_tokens_per_second:>15,.1f} "
        f"{speed.decode_tokens_per_second:>14,.1f} {speed.bandwidth_fraction:>14.0%}"
        for speed in result.speeds
    ]
    if result.depths_left_out:
        depths = ", ".join(map(str, result.depths_left_out))
        lines.append(f"depth {depths}: not measured, the context is too short")
    lines.append(
        f"medians of {result.repeats}; {result.prompt_tokens} tokens read, "
        f"{result.decode_tokens} made"
    )
    return "\n".join(lines)


def _megabytes(size: int | None) -> str:
    return "not known here" if size is None else f"{size / 1e6:,.0f} MB"
