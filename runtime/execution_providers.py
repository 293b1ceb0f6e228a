"""A variant's provider goes in; the ONNX Runtime execution provider that runs it comes out.

A provider of ours that is made for one chip has the chip's name after a colon."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from edgewright.artifacts.errors import SessionError
from edgewright.runtime.ort import one_line

_CPU_NAME = "CPUExecutionProvider"


@dataclass(frozen=True)
class Chip:
    """A system on a chip, by the numbers that Qualcomm gives it and its HTP."""

    soc_model: int
    htp_arch: int

    @property
    def options(self) -> dict[str, str]:
        """Without a chip the plugin computes in float32, and refuses what it would take."""
        numbers = {"soc_model": str(self.soc_model), "htp_arch": str(self.htp_arch)}
        return {"backend_type": "htp", **numbers}


@dataclass(frozen=True)
class Plugin:
    """An execution provider in a wheel of its own, which places every node of a graph or none."""

    module: str
    distribution: str
    extra: str
    chips: Mapping[str, Chip]

    @staticmethod
    def chip_name(provider: str) -> str:
        """A provider of ours may say more after the chip: qnn:sm8650-w8a16."""
        return provider.partition(":")[2].partition("-")[0]

    def chip(self, provider: str) -> Chip:
        name = self.chip_name(provider)
        if name not in self.chips:
            known = ", ".join(self.chips)
            raise SessionError(f"{provider}: this runtime knows no chip {name!r}; it knows {known}")
        return self.chips[name]

    def missing(self) -> SessionError:
        return SessionError(
            f"{self.module} cannot be imported; install it with"
            f" pip install 'edgewright[{self.extra}]'"
        )


@dataclass(frozen=True)
class ExecutionProvider:
    """`extra` is that of ours whose ONNX Runtime has this provider built in, on `system` alone if
    that is given; `options` are the provider's own."""

    name: str
    plugin: Plugin | None = None
    extra: str | None = None
    system: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    _registered: list[str] = field(default_factory=list, compare=False)

    @property
    def has_memory(self) -> bool:
        """Of its own: what is bound is copied there when it is bound, not when it is run."""
        return self.extra is not None

    def add_to(self, ort: Any, options: Any, provider: str, *, strict: bool = True) -> None:
        """What comes with ONNX Runtime is named to the session; a plugin is put in here. `strict`:
        no node may fall to the processor."""
        if self.extra is not None:
            self._require_built_in(ort, provider)
        if self.plugin is not None:
            chip = self.plugin.chip(provider)
            self._register(ort)
            devices = [device for device in ort.get_ep_devices() if device.ep_name == self.name]
            if not devices:
                raise SessionError(f"{provider}: {self.name} found no device on this machine")
            options.add_provider_for_devices(devices, chip.options)
        if strict and self.name != _CPU_NAME:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")

    def _require_built_in(self, ort: Any, provider: str) -> None:
        if self.name not in ort.get_available_providers():
            where = f" on {self.system}" if self.system else ""
            raise SessionError(
                f"{provider}: the onnxruntime {ort.__version__} that is installed has no"
                f" {self.name}; install one that has with pip install 'edgewright[{self.extra}]'"
                f"{where}"
            )

    def _register(self, ort: Any) -> None:
        assert self.plugin is not None
        if self._registered:
            return
        try:
            module = importlib.import_module(self.plugin.module)
        except ImportError as error:
            raise self.plugin.missing() from error
        try:
            ort.register_execution_provider_library(self.name, module.get_library_path())
        except Exception as error:
            raise SessionError(
                f"{self.plugin.distribution} {_version_of(self.plugin)} cannot be loaded by"
                f" onnxruntime {ort.__version__}: {one_line(error)}"
            ) from error
        self._registered.append(self.name)


def _version_of(plugin: Plugin) -> str:
    try:
        return version(plugin.distribution)
    except PackageNotFoundError:
        return "of an unknown version"


_QNN = ExecutionProvider(
    "QNNExecutionProvider",
    Plugin(
        "onnxruntime_qnn",
        "onnxruntime-qnn",
        "qnn",
        {
            "sm8550": Chip(43, 73),
            "sm8650": Chip(57, 75),
            "sm8750": Chip(69, 79),
            "sc8380xp": Chip(60, 73),
        },
    ),
)
_CPU = ExecutionProvider(_CPU_NAME)
_COREML = ExecutionProvider(
    "CoreMLExecutionProvider",
    extra="coreml",
    system="macOS",
    options={"ModelFormat": "MLProgram", "RequireStaticInputShapes": "1"},
)
_OPENVINO = ExecutionProvider(
    "OpenVINOExecutionProvider",
    extra="openvino",
    # Else it computes in bfloat16 where the processor does.
    options={"device_type": "CPU", "precision": "FP32"},
)

# In the order in which a variant is chosen when the caller names none; what is made for a chip is
# run only where it is asked for.
EXECUTION_PROVIDERS = {
    "cpu": _CPU,
    "cpu-portable": _CPU,
    "qnn": _QNN,
    "coreml": _COREML,
    "directml": ExecutionProvider("DmlExecutionProvider", extra="directml"),
    "webgpu": ExecutionProvider("WebGpuExecutionProvider", extra="webgpu"),
    "openvino": _OPENVINO,
}


def execution_provider(provider: str) -> ExecutionProvider | None:
    return EXECUTION_PROVIDERS.get(provider.partition(":")[0])
