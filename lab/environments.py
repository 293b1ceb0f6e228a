"""A case goes in; what one of the lab's environments answers comes out. Each runs it in a process
of its own, for so long at most, and leaves none behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab import contained
from lab.case import Answer, read_answer
from lab.parts import Part, arm64, chromium, ensure, javascript, mesa, wheels, wine

RUNNERS = Path(__file__).parent / "runners"
Folders = Mapping[str, Path]

_CPU, _WEBGPU = "CPUExecutionProvider", "WebGpuExecutionProvider"
_DML, _QNN = "DmlExecutionProvider", "QNNExecutionProvider"
# Number and architecture, as the QNN SDK counts them.
_SOCS = {"sm8650": ("57", "75"), "sm8750": ("69", "79")}


@dataclass(frozen=True)
class Command:
    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Environment:
    """`command` is given the folders of its parts, the case and where the answer goes."""

    name: str
    provider: str
    parts: tuple[Part, ...]
    command: Callable[[Folders, str, str], Command]
    has_float16: bool = True
    computes_in_float16: bool = False
    seconds: float = 300

    @property
    def can_fall_back(self) -> bool:
        return self.provider != _CPU

    def prepare(self, root: Path) -> Folders:
        return {part.name: ensure(part, root) for part in self.parts}

    def run(self, folders: Folders, case: Path) -> Answer:
        with tempfile.TemporaryDirectory(prefix="edgewright-lab-") as scratch:
            answered, home = Path(scratch) / "answer", Path(scratch) / "home"
            answered.mkdir()
            home.mkdir()
            own = {"HOME": str(home), "TMPDIR": str(home), "OMP_NUM_THREADS": "1"}
            command = self.command(folders, str(case.resolve()), str(answered))
            done = subprocess.run(
                [sys.executable, contained.__file__, str(self.seconds), *command.words],
                env={**os.environ, **own, **command.environment},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
            if (answered / "answer.json").is_file():
                return self._strictly_placed(read_answer(answered))
        if done.returncode == contained.TIME_IS_UP:
            return Answer(error=f"no answer in {self.seconds:.0f} s")
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        return Answer(error=f"no answer; exit status {done.returncode}, and it said: {said}")

    def _strictly_placed(self, answer: Answer) -> Answer:
        if answer.error or set(answer.nodes) == {self.provider}:
            return answer
        told = ", ".join(f"{provider} has {len(ops)}" for provider, ops in answer.nodes.items())
        return Answer(error=f"not all nodes ran on {self.provider}: {told or 'none is known'}")


def _python(part: Part | None, *provider: str) -> Callable[[Folders, str, str], Command]:
    def command(folders: Folders, case: str, answered: str) -> Command:
        python = wheels.python(folders[part.name]) if part else sys.executable
        words = [python, str(RUNNERS / "python_case.py"), case, answered, *provider]
        return Command(words, _vulkan(folders))

    return command


def _arm64(folders: Folders, case: str, answered: str) -> Command:
    program = (str(RUNNERS / "python_case.py"), case, answered, "cpu")
    # ONNX Runtime multiplies in 16 bits without asking whether the processor can.
    return Command(arm64.Arm64Root(folders["arm64"]).python("neon_i8mm", *program))


def _node(provider: str) -> Callable[[Folders, str, str], Command]:
    def command(folders: Folders, case: str, answered: str) -> Command:
        scripts = folders["javascript"]
        program = [javascript.node(scripts), str(RUNNERS / "node_case.mjs")]
        packages = str(scripts / "node_modules")
        return Command([*program, case, answered, provider, packages], _vulkan(folders))

    return command


def _directml(folders: Folders, case: str, answered: str) -> Command:
    scripts = folders["javascript"]
    paths = [RUNNERS / "node_case.mjs", case, answered, "dml", scripts / "node_modules"]
    words = [each if each == "dml" else f"Z:{each}" for each in paths]
    program = wine.program(folders["wine"], javascript.windows_node(scripts), *words)
    # Node refuses the version of Windows that Wine says it is.
    return Command(program, {"NODE_SKIP_PLATFORM_CHECK": "1", **_vulkan(folders)})


def _browser(provider: str, *arguments: str) -> Callable[[Folders, str, str], Command]:
    def command(folders: Folders, case: str, answered: str) -> Command:
        scripts = folders["javascript"]
        program = [javascript.node(scripts), str(RUNNERS / "browser_case.mjs"), case, answered]
        packages = str(scripts / "node_modules")
        words = [*program, provider, packages, chromium.PROGRAM, *arguments]
        return Command(words, chromium.ENVIRONMENT)

    return command


def _vulkan(folders: Folders) -> Mapping[str, str]:
    return mesa.environment(folders["mesa"]) if "mesa" in folders else {}


def _qnn(soc: str) -> Environment:
    command = _python(wheels.QNN, "qnn", *_SOCS[soc])
    return Environment(f"qnn:{soc}", _QNN, (wheels.QNN,), command, computes_in_float16=True)


_SCRIPTS = javascript.PART

ENVIRONMENTS: Mapping[str, Environment] = {
    environment.name: environment
    for environment in (
        Environment("cpu", _CPU, (), _python(None, "cpu")),
        Environment("cpu-arm64", _CPU, (arm64.PART,), _arm64),
        Environment(
            "webgpu", _WEBGPU, (mesa.PART, wheels.WEBGPU), _python(wheels.WEBGPU, "webgpu")
        ),
        Environment("node-cpu", _CPU, (_SCRIPTS,), _node("cpu")),
        Environment("node-webgpu", _WEBGPU, (mesa.PART, _SCRIPTS), _node("webgpu")),
        Environment(
            "browser-webgpu",
            _WEBGPU,
            (chromium.PART, _SCRIPTS),
            _browser("webgpu", "--enable-unsafe-webgpu"),
            has_float16=False,
        ),
        Environment("browser-wasm", _CPU, (chromium.PART, _SCRIPTS), _browser("wasm")),
        Environment("directml", _DML, (mesa.PART, wine.PART, _SCRIPTS), _directml),
        _qnn("sm8650"),
        _qnn("sm8750"),
    )
}
