"""A command line goes in; the file of the command that it names does the work."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from edgewright.cli._mistakes import exit_code_for, stopping_on_signals
from edgewright.cli._terminal import prepare_terminal

__all__ = ["main"]

# The order of the help page: the way of a model. A command that no section names comes last.
_SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "From a checkpoint to a package",
        ("train", "convert", "export", "compile", "validate", "inspect"),
    ),
    ("From a package to tokens", ("run", "bench", "evaluate")),
    ("All of it, on the example", ("demo",)),
)


class _Page(click.Group):
    """The group: its commands are the files beside this one, each with its `command`."""

    def list_commands(self, context: click.Context) -> list[str]:
        found = {module.name for module in pkgutil.iter_modules(__path__)}
        found = {name for name in found if not name.startswith("_")}
        ordered = [name for _, names in _SECTIONS for name in names if name in found]
        return ordered + sorted(found.difference(ordered))

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(context):
            return None
        command = import_module(f"{__name__}.{name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in self._sections(context):
            commands = ((name, self.get_command(context, name)) for name in names)
            rows = [(name, cmd.get_short_help_str(100)) for name, cmd in commands if cmd]
            with formatter.section(title):
                formatter.write_dl(rows)

    def _sections(self, context: click.Context) -> Iterator[tuple[str, list[str]]]:
        rest = self.list_commands(context)
        for title, names in _SECTIONS:
            present = [name for name in names if name in rest]
            rest = [name for name in rest if name not in present]
            if present:
                yield title, present
        if rest:
            yield "More", rest

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        """Every way out of the program: a mistake is one line on stderr, never a traceback."""
        prepare_terminal()
        extra = {"prog_name": "edgewright", **extra, "standalone_mode": False}
        try:
            with stopping_on_signals():
                code = super().main(args, *rest, **extra)
                sys.stdout.flush()
        except BaseException as error:
            code = exit_code_for(error)
        sys.exit(code if isinstance(code, int) else 0)


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"edgewright {version('edgewright')}")
        context.exit()


@click.group(
    cls=_Page,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`edgewright COMMAND --help` explains a command. Exit status: 0 done, 1 it could not be"
    " done (one line on stderr says why), 2 the command line is wrong.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and leave.",
)
def main() -> None:
    """Turn a language model's checkpoint into a package that small devices can trust, and run it.

    A Hugging Face checkpoint directory goes in; `export` makes a package of it, `validate` proves
    that the package computes what PyTorch computes, and `run` turns it into text with ONNX Runtime
    alone: no PyTorch on the device.
    """
