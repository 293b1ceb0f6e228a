"""Every way a command can end, as a shell sees it: status, stdout, stderr."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest

# A command of the test's own, hung into the group as a file beside the others would be.
PROGRAM = """
import click, os, signal, sys
import edgewright.cli as cli

@click.command()
def probe() -> None:
    from edgewright.artifacts.errors import PackageError
    {body}

cli.main.add_command(probe)
cli._Page.get_command = lambda self, context, name: probe
cli.main(["probe"])
"""


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def probe(body: str) -> subprocess.CompletedProcess[str]:
    return run_python("-c", PROGRAM.format(body=body))


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        ("raise PackageError('pkg: no manifest\\n here')", 1, "error: pkg: no manifest here"),
        ("raise click.ClickException('no')", 1, "error: no"),
        (
            "raise click.BadParameter('must be 3')",
            2,
            "error: Invalid value: must be 3 See `edgewright probe --help`.",
        ),
        ("open('/nowhere/at/all')", 1, "error: /nowhere/at/all: No such file or directory"),
        ("raise OSError(28, 'No space left on device')", 1, "error: No space left on device"),
        ("raise KeyboardInterrupt", 130, "interrupted"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "stopped by SIGTERM"),
        ("raise MemoryError", 1, "error: not enough memory"),
        ("sys.exit(3)", 3, ""),
        ("click.get_current_context().exit(4)", 4, ""),
        (
            "raise ModuleNotFoundError('gone', name='torch.nn')",
            1,
            "error: torch is not installed; this needs: pip install 'edgewright[export]'",
        ),
        (
            "raise ModuleNotFoundError('gone', name='onnxruntime')",
            1,
            "error: onnxruntime is not installed; this needs: pip install 'edgewright[cpu]'",
        ),
        (
            "raise KeyError('x')",
            1,
            "error: KeyError: 'x' (a mistake in edgewright itself;"
            " EDGEWRIGHT_TRACEBACK=1 shows where)",
        ),
    ],
)
def test_an_ending_is_one_line_and_a_status(body: str, status: int, line: str) -> None:
    ended = probe(body)
    assert (ended.returncode, ended.stdout, ended.stderr.strip()) == (status, "", line)


def test_unwinding_on_a_signal_runs_the_cleanups() -> None:
    ended = probe("""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        print("removed", flush=True)""")
    assert (ended.returncode, ended.stdout) == (128 + signal.SIGTERM, "removed\n")


def test_a_reader_that_leaves_ends_it_without_a_word() -> None:
    script = PROGRAM.format(body="[click.echo('x' * 100) for _ in range(100_000)]")
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_both_names_of_the_program_answer_alike(arguments: Sequence[str]) -> None:
    as_module = run_python("-m", "edgewright.cli", *arguments)
    as_script = run_python("-c", "from edgewright.cli import main; main()", *arguments)
    assert as_module.returncode == 0
    assert as_module.stdout == as_script.stdout != ""


def test_an_unknown_command_is_a_usage_mistake() -> None:
    ended = run_python("-m", "edgewright.cli", "exprot")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: No such command 'exprot'")
    assert ended.stderr.count("\n") == 1


def test_help_imports_no_room() -> None:
    heavy = ("torch", "onnx", "onnxruntime", "numpy", "transformers", "tokenizers", "jinja2")
    ended = run_python(
        "-c",
        "import sys; from edgewright.cli import main\n"
        "try: main(['--help'])\n"
        f"finally: print(sorted(set(sys.modules) & set({heavy!r})), file=sys.stderr)",
    )
    assert ended.stderr.strip() == "[]"
