"""What was asked for goes in; checked options of a quantisation come out, or one clear error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops.packed_weights import BLOCKS

Method = Literal["auto", "rtn", "gptq", "awq"]

# Whole 2-bit and 8-bit weights with nothing beside them; what a model allows lies between.
_LEAST_BITS, _MOST_BITS = 2.0, 16.0
_MOST_OUTLIERS = 0.05


@dataclass(frozen=True)
class QuantizeOptions:
    bits: float  # of all stored bytes, by the parameters they stand for
    method: Method = "auto"
    block: int = 128
    outliers: float = 0.005  # the share of a tensor's weights that may have a correction
    seed: int = 0
    text: str | None = None  # a file, a directory or `stdlib`
    tokens: int | None = None  # of the text to calibrate with
    resume: Path | None = None  # where a run keeps its work; None: in the user's cache
    tune: bool = True

    @staticmethod
    def check(
        bits: float,
        method: str = "auto",
        block: int = 128,
        outliers: float = 0.005,
        seed: int = 0,
        text: str | Path | None = None,
        tokens: int | None = None,
        resume: str | Path | None = None,
        tune: bool = True,
    ) -> QuantizeOptions:
        if not _LEAST_BITS < bits <= _MOST_BITS:
            raise ExportError(
                f"bits={bits} cannot be met: a mean above {_LEAST_BITS:g} and up to"
                f" {_MOST_BITS:g} bits is possible, what is stored beside the codes included"
            )
        chosen = next((name for name in get_args(Method) if name == method), None)
        if chosen is None:
            raise ExportError(
                f"method {method!r} is not known; choose from {', '.join(get_args(Method))}"
            )
        if chosen in ("gptq", "awq") and text is None:
            raise ExportError(f"method {chosen} needs text to calibrate with: give --text")
        if block not in BLOCKS:
            raise ExportError(f"block={block}; choose from {', '.join(map(str, BLOCKS))}")
        if not 0 <= outliers <= _MOST_OUTLIERS:
            raise ExportError(f"outliers={outliers}; a share from 0 to {_MOST_OUTLIERS} is needed")
        if tokens is not None and tokens < 1:
            raise ExportError(f"tokens={tokens}; at least one is needed")
        return QuantizeOptions(
            float(bits),
            chosen,
            block,
            float(outliers),
            seed,
            None if text is None else str(text),
            tokens,
            None if resume is None else Path(resume),
            tune,
        )

    def as_settings(self) -> Mapping[str, str | float | int | bool | None]:
        """All that the result depends on, besides the checkpoint and what the text says."""
        settings = asdict(self)
        for name in ("resume", "text"):
            del settings[name]
        return settings
