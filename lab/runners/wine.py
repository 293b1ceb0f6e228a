"""A Windows program and its arguments go in; it runs under Wine, with a screen in memory because
Wine finds Vulkan through one: `python wine.py PREFIX PROGRAM ...`. Standard library only.

Wine leaves servers behind: run it in `contained.py`.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys

_WINE = "/usr/lib/wine/wine64"
_SERVER = "/usr/lib/wine/wineserver64"
_QUIET = {
    "WINEDEBUG": "fixme-all",
    # Not asked for at the first start: it would open a window, and wait.
    "WINEDLLOVERRIDES": "mscoree,mshtml=",
}


def main() -> int:
    prefix, *program = sys.argv[1:]
    os.makedirs(prefix, exist_ok=True)
    # One at a time: the servers of one program would end with another's.
    fcntl.flock(os.open(prefix, os.O_RDONLY), fcntl.LOCK_EX)
    reader, writer = os.pipe()
    screen = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writer), "-screen", "0", "640x480x24", "-nolisten", "tcp"],
        pass_fds=[writer],
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    try:
        with os.fdopen(reader) as numbers:
            number = numbers.readline().strip()
        if not number:
            print("Xvfb opened no screen", file=sys.stderr)
            return 1
        settings = os.environ | {"WINEPREFIX": prefix, "DISPLAY": f":{number}", **_QUIET}
        done = subprocess.run([_WINE, *program], env=settings, check=False)
        # It writes the registry when it ends: a prefix without one starts no program.
        subprocess.run([_SERVER, "--kill"], env=settings, check=False)
        subprocess.run([_SERVER, "--wait"], env=settings, check=False)
        return done.returncode
    finally:
        screen.terminate()
        screen.wait(10)


if __name__ == "__main__":
    sys.exit(main())
