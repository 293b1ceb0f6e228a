"""Options that several commands share, and the forms in which their values are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def session_options(function: F) -> F:
    """How a session is opened: --provider, --capacity, --threads."""
    options = (
        click.option("--provider", metavar="NAME", help="Run this variant, not the best one here."),
        click.option(
            "--capacity", metavar="N", type=int, help="Context in tokens; else the model's own."
        ),
        click.option(
            "--threads", metavar="N", type=int, help="Threads; one for each core otherwise."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def whole_numbers(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """ "1,2,3" as numbers."""
    if value is None:
        return None
    try:
        return tuple(int(part) for part in value.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of whole numbers like 1,2,3.") from None
