"""Runs a command for so many seconds at most, and ends every process that came of it, whichever
group or session it moved to: `python contained.py SECONDS COMMAND ...`. Standard library only.

Exits as the command does, or with 124 when its time was up.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
TIME_IS_UP = 124


def main() -> int:
    seconds, command = float(sys.argv[1]), sys.argv[2:]
    # Whose parent ends becomes ours, not the system's: so none gets away.
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # We end with whoever asked for us, and all of ours then end with us.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        return subprocess.run(command, timeout=seconds, check=False).returncode
    except subprocess.TimeoutExpired:
        return TIME_IS_UP
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 127
    finally:
        end_children()


def end_children() -> None:
    """Until there is none: the children of one that ends are ours next."""
    while children := _children():
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)


def _children() -> list[int]:
    # All of them are still to be waited for, so that no number can have become another's.
    ours = os.getpid()
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(after_name[1]) == ours:
            found.append(int(status.parent.name))
    return found


def _stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
