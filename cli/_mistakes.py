"""Whatever stopped a command goes in; one line on stderr and an exit status come out."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import click

from edgewright.artifacts.errors import EdgewrightError

TRACEBACK_VARIABLE = "EDGEWRIGHT_TRACEBACK"

# Which extra brings a module that the base install leaves out.
_EXTRAS = {
    "torch": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "transformers": "export",
    "safetensors": "export",
    "ziglang": "export",
    "onnxruntime": "cpu",
}
_STOPPED_BY_SIGNAL = 128  # what a shell adds to the signal's number


class Stopped(BaseException):
    """A signal asked us to end; unwinding lets writers remove what they had begun."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Make the polite signals unwind the stack, as Ctrl-C does; signals reach main threads only."""
    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    # nohup leaves SIGHUP ignored: keep it so.
    taken = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _raise_stopped)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _raise_stopped(number: int, _: FrameType | None) -> None:
    raise Stopped(number)


def exit_code_for(error: BaseException) -> int:
    """Say it on stderr, in one line; give the status to end with."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "edgewright"
        _say(f"error: {_one_line(error.format_message())} See `{path} --help`.")
        return error.exit_code
    if isinstance(error, click.Abort | KeyboardInterrupt):
        _say("interrupted")
        return _STOPPED_BY_SIGNAL + signal.SIGINT
    if isinstance(error, Stopped):
        _say(f"stopped by {signal.Signals(error.number).name}")
        return _STOPPED_BY_SIGNAL + error.number
    if _is_broken_pipe(error):
        _forget_stdout()
        return 1  # as click ends when it meets the broken pipe first
    _say(f"error: {_describe(error)}")
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exception(error)
    return 1


def _describe(error: BaseException) -> str:
    if isinstance(error, EdgewrightError):
        return _one_line(str(error))
    if isinstance(error, click.ClickException):
        return _one_line(error.format_message())
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").partition(".")[0]
        if extra := _EXTRAS.get(module):
            return f"{module} is not installed; this needs: pip install 'edgewright[{extra}]'"
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename is not None else ""
        return _one_line(f"{place}{error.strerror}")
    if isinstance(error, MemoryError):
        return "not enough memory"
    return (
        f"{type(error).__name__}: {_one_line(str(error))} (a mistake in edgewright itself; "
        f"{TRACEBACK_VARIABLE}=1 shows where)"
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _is_broken_pipe(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def _forget_stdout() -> None:
    """The reader has gone: what is still buffered must not fail again when Python ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(line: str) -> None:
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
