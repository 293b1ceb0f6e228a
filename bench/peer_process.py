"""Workers, each a process that runs only while it is asked something: an idle one may spin."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import ItemsView, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

_WORKER = Path(__file__).with_name("peer_worker.py")


class Peer:
    """peer_worker.py in an interpreter; `order` is the first line that it reads."""

    def __init__(
        self, python: Path, order: Mapping[str, Any], environment: Mapping[str, str] | None = None
    ) -> None:
        self.capacity = order.get("capacity")
        self._process = subprocess.Popen(
            [str(python), str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | dict(environment or {}),
        )
        self.description = self._exchange(order)

    def ask(self, do: str, **arguments: Any) -> Any:
        self._process.send_signal(signal.SIGCONT)
        return self._exchange({"do": do, **arguments})

    def _exchange(self, order: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"a worker ended at {dict(order)!r:.200}")
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGSTOP)
        return json.loads(answer)

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


class Peers:
    """Those of a comparison by name; leaving it ends them."""

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}

    def start(self, name: str, peer: Peer) -> Peer:
        self._peers[name] = peer
        return peer

    def __getitem__(self, name: str) -> Peer:
        return self._peers[name]

    def items(self) -> ItemsView[str, Peer]:
        return self._peers.items()

    def __enter__(self) -> Peers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for peer in self._peers.values():
            peer.end()
