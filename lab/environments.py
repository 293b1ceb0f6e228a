"""A case, or a package, goes in; what one of the lab's environments answers comes out. Each runs it
in a process of its own, for so long at most, and leaves none behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgewright.artifacts.user_dirs import CACHE_VARIABLE, cache_dir
from lab import contained
from lab.case import Answer, PackageAnswer, read_answer
from lab.parts import Part, arm64, chromium, ensure, javascript, mesa, wheels, windows_driver, wine

RUNNERS = Path(__file__).parent / "runners"
DRIVER = Path(__file__).parents[1] / "runtime/javascript"
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
class Job:
    """What a runner is given: where the answer goes, the folder of the case or the package, and
    words that no environment changes."""

    runner: Literal["case", "package"]
    answered: str
    folder: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Environment:
    """`command` is given the folders of its parts. `case_words` tell a case's runner where to run
    it; a package's runner is told one of the package's providers, of which `variants` has those to
    try, by the kind of weights."""

    name: str
    provider: str
    parts: tuple[Part, ...]
    command: Callable[[Folders, Job], Command]
    case_words: tuple[str, ...]
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    has_float16: bool = True
    computes_in_float16: bool = False
    seconds: float = 300
    # Two graphs, and each of some tokens; a device in software takes a second for one.
    package_seconds: float = 900

    @property
    def can_fall_back(self) -> bool:
        return self.provider != _CPU

    def prepare(self, root: Path) -> Folders:
        return {part.name: ensure(part, root) for part in self.parts}

    def run(self, folders: Folders, case: Path) -> Answer:
        return self._answer(folders, "case", case, self.case_words, self.seconds)

    def run_package(
        self, folders: Folders, package: Path, provider: str, ids: Sequence[int], prompt: int
    ) -> PackageAnswer:
        """The logits after the first `prompt` ids and after each other; see package_run.mjs."""
        words = (provider, ",".join(map(str, ids)), str(prompt))
        seconds = self.package_seconds
        return PackageAnswer.of(self._answer(folders, "package", package, words, seconds))

    def _answer(
        self,
        folders: Folders,
        runner: Literal["case", "package"],
        folder: Path,
        words: tuple[str, ...],
        seconds: float,
    ) -> Answer:
        with tempfile.TemporaryDirectory(prefix="edgewright-lab-") as scratch:
            answered, home = Path(scratch) / "answer", Path(scratch) / "home"
            answered.mkdir()
            home.mkdir()
            own = {"HOME": str(home), "TMPDIR": str(home), "OMP_NUM_THREADS": "1"}
            own[CACHE_VARIABLE] = str(cache_dir())  # there is the list of libraries to trust
            command = self.command(
                folders, Job(runner, str(answered), str(folder.resolve()), words)
            )
            done = subprocess.run(
                [sys.executable, contained.__file__, str(seconds), *command.words],
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
            return Answer(error=f"no answer in {seconds:.0f} s")
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        return Answer(error=f"no answer; exit status {done.returncode}, and it said: {said}")

    def _strictly_placed(self, answer: Answer) -> Answer:
        if answer.error or set(answer.nodes) == {self.provider}:
            return answer
        told = ", ".join(f"{provider} has {len(ops)}" for provider, ops in answer.nodes.items())
        return Answer(error=f"not all nodes ran on {self.provider}: {told or 'none is known'}")


def _python(part: Part | None) -> Callable[[Folders, Job], Command]:
    def command(folders: Folders, job: Job) -> Command:
        python = wheels.python(folders[part.name]) if part else sys.executable
        return Command([python, *_python_program(job)], _vulkan(folders))

    return command


def _python_program(job: Job) -> tuple[str, ...]:
    return (str(RUNNERS / f"python_{job.runner}.py"), job.answered, job.folder, *job.words)


def _arm64(folders: Folders, job: Job) -> Command:
    # ONNX Runtime multiplies in 16 bits without asking whether the processor can.
    root = arm64.Arm64Root(folders["arm64"])
    return Command(root.python("neon_i8mm", *_python_program(job)))


def _node(folders: Folders, job: Job) -> Command:
    scripts = folders["javascript"]
    return Command([javascript.node(scripts), *_script("node", scripts, job)], _vulkan(folders))


def _directml(folders: Folders, job: Job) -> Command:
    scripts = folders["javascript"]
    words = [
        f"Z:{word}" if word.startswith("/") else word for word in _script("node", scripts, job)
    ]
    program = wine.program(folders["wine"], javascript.windows_node(scripts), *words)
    # Node refuses the version of Windows that Wine says it is.
    return Command(program, {"NODE_SKIP_PLATFORM_CHECK": "1", **_vulkan(folders)})


def _windows(folders: Folders, job: Job) -> Command:
    words = (job.runner, job.answered, job.folder, *job.words, wine.prefix(folders["wine"]))
    driver = windows_driver.program(folders[windows_driver.PART.name])
    library = javascript.windows_onnxruntime(folders["javascript"])
    return Command((sys.executable, str(RUNNERS / "windows.py"), *words, driver, library))


def _browser(*arguments: str) -> Callable[[Folders, Job], Command]:
    def command(folders: Folders, job: Job) -> Command:
        scripts = folders["javascript"]
        program = [javascript.node(scripts), *_script("browser", scripts, job)]
        return Command([*program, chromium.PROGRAM, *arguments], chromium.ENVIRONMENT)

    return command


def _script(where: str, scripts: Path, job: Job) -> list[str]:
    runner, packages = RUNNERS / f"{where}_{job.runner}.mjs", scripts / "node_modules"
    words = [str(runner), str(packages), job.answered, job.folder, *job.words]
    return [*words, str(DRIVER)] if job.runner == "package" else words


def _vulkan(folders: Folders) -> Mapping[str, str]:
    return mesa.environment(folders["mesa"]) if "mesa" in folders else {}


def _qnn(soc: str) -> Environment:
    name, words = f"qnn:{soc}", ("qnn", *_SOCS[soc])
    return Environment(
        name,
        _QNN,
        (wheels.QNN,),
        _python(wheels.QNN),
        words,
        {"float16": (name,), "4 bits": ()},
        computes_in_float16=True,
    )


_SCRIPTS = javascript.PART

_EITHER = ("float16", "4 bits")
_OURS = dict.fromkeys(_EITHER, ("cpu", "cpu-portable"))
_KERNELS = dict.fromkeys(_EITHER, ("cpu",))
_PORTABLE = dict.fromkeys(_EITHER, ("cpu-portable",))
_GPU = dict.fromkeys(_EITHER, ("webgpu", "webgpu:f32"))

ENVIRONMENTS: Mapping[str, Environment] = {
    environment.name: environment
    for environment in (
        Environment("cpu", _CPU, (), _python(None), ("cpu",), _OURS),
        Environment("cpu-arm64", _CPU, (arm64.PART,), _arm64, ("cpu",), _OURS),
        Environment(
            "cpu-windows",
            _CPU,
            (wine.PART, _SCRIPTS, windows_driver.PART),
            _windows,
            (),
            _KERNELS,
        ),
        Environment(
            "webgpu", _WEBGPU, (mesa.PART, wheels.WEBGPU), _python(wheels.WEBGPU), ("webgpu",), _GPU
        ),
        Environment("node-cpu", _CPU, (_SCRIPTS,), _node, ("cpu",), _PORTABLE),
        Environment("node-webgpu", _WEBGPU, (mesa.PART, _SCRIPTS), _node, ("webgpu",), _GPU),
        Environment(
            "browser-webgpu",
            _WEBGPU,
            (chromium.PART, _SCRIPTS),
            _browser("--enable-unsafe-webgpu"),
            ("webgpu",),
            dict.fromkeys(_EITHER, ("webgpu:f32",)),
            has_float16=False,
        ),
        Environment(
            "browser-wasm", _CPU, (chromium.PART, _SCRIPTS), _browser(), ("wasm",), _PORTABLE
        ),
        Environment(
            "directml",
            _DML,
            (mesa.PART, wine.PART, _SCRIPTS),
            _directml,
            ("dml",),
            dict.fromkeys(_EITHER, ()),
        ),
        _qnn("sm8650"),
        _qnn("sm8750"),
    )
}
