"""Which layers see only a sliding window: `layer_types`, or the older keys that stood for it."""

from __future__ import annotations

from collections.abc import Sequence

from edgewright.model.config_reader import ConfigReader

_FULL, _SLIDING = "full_attention", "sliding_attention"


def read_windows(
    reader: ConfigReader, layers: int, window: int | None, default: Sequence[bool]
) -> list[int]:
    """Each layer's window, 0 for none; `default` says which layers slide without `layer_types`."""
    types = reader.strings(
        "layer_types", [_SLIDING if slides else _FULL for slides in default], layers
    )
    for name in types:
        if name not in (_FULL, _SLIDING):
            raise reader.wrong("layer_types", name, f"{_FULL} or {_SLIDING}")
    if window is None and _SLIDING in types:
        raise reader.error(f"layer_types has {_SLIDING}, but there is no sliding_window")
    return [window or 0 if name == _SLIDING else 0 for name in types]


def read_late_windows(reader: ConfigReader, layers: int) -> list[int]:
    """Qwen's rule: windows only where `use_sliding_window` is set, from `max_window_layers` on."""
    window = read_switched_window(reader)
    first = reader.integer("max_window_layers", 28, minimum=0)
    return read_windows(
        reader, layers, window, [window is not None and i >= first for i in range(layers)]
    )


def read_switched_window(reader: ConfigReader, default: int | None = 4096) -> int | None:
    """`sliding_window`, which counts only where `use_sliding_window` says so."""
    if reader.boolean("use_sliding_window", False):
        return reader.integer_or_null("sliding_window", default)
    reader.ignore("sliding_window")
    return None


def every_nth_full(layers: int, period: int) -> list[bool]:
    """All layers slide but every `period`th."""
    return [(index + 1) % period != 0 for index in range(layers)]
