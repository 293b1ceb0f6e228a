"""Rows of floats go in, rows of int8 that carry their own scale come out, and back: as nodes of a
graph, for bodies and lowerings.

A row has eight values or more. Code c in 0..255 stands for the scale 2^(c / 8 - 24); a row's code
is the smallest whose scale brings its largest magnitude to at most 127, and lies in the lowest bits
of the row's first eight bytes. So every value is its byte times the row's scale, and nothing has to
be kept beside the rows.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from edgewright.custom_ops.recorder import Recorder

LEAST = 8  # values in a row
MOST = 127.0
LOWEST_EXPONENT = -24
OCTAVES = 32
# 2^(i / 8) as float32.
FRACTIONS = (
    1.0,
    float.fromhex("0x1.172b84p0"),
    float.fromhex("0x1.306fe0p0"),
    float.fromhex("0x1.4bfdaep0"),
    float.fromhex("0x1.6a09e6p0"),
    float.fromhex("0x1.8ace54p0"),
    float.fromhex("0x1.ae89fap0"),
    float.fromhex("0x1.d5818ep0"),
)
_POWERS = tuple(2.0 ** (LOWEST_EXPONENT + i) for i in range(OCTAVES))
_INT8 = int(ir.DataType.INT8)
_FLOAT = int(ir.DataType.FLOAT)
_INT64 = int(ir.DataType.INT64)


def encode(op: Recorder, x: ir.Value, size: int | None = None) -> ir.Value:
    """float32 [..., n] → int8 [..., n]. With `size`, which is n, no shape is asked for."""
    return op("Cast", _encode(op, x, size), to=_INT8)


def is_int8(op: Recorder, cache: ir.Value) -> ir.Value:
    """Whether a cache, whose dtype a body learns as it runs, is of int8: no half fits in."""
    return op("Equal", op("Cast", op("CastLike", 0.5, cache), to=_FLOAT), 0.0)


def to_cache(op: Recorder, x: ir.Value, quantised: ir.Value) -> ir.Value:
    """Rows of float32 as what is left to be cast to the cache's dtype."""
    return _if(op, quantised, x, lambda inner: _encode(inner, x, None))


def from_cache(op: Recorder, rows: ir.Value, quantised: ir.Value) -> ir.Value:
    """Rows of a cache, of either kind, as float32."""
    rows = op("Cast", rows, to=_FLOAT)
    return _if(op, quantised, rows, lambda inner: decode(inner, rows))


def _if(
    op: Recorder, condition: ir.Value, value: ir.Value, change: Callable[[Recorder], ir.Value]
) -> ir.Value:
    changed, same = Recorder("int8."), Recorder("as_it_is.")
    return op(
        "If",
        condition,
        then_branch=changed.graph([change(changed)]),
        else_branch=same.graph([same("Identity", value)]),
    )


def _encode(op: Recorder, x: ir.Value, size: int | None) -> ir.Value:
    x = op("Where", op("IsNaN", x), 0.0, x)
    peak = op("ReduceMax", op("Abs", x), (-1,))
    octave = _count_above(op, peak, tuple(MOST * FRACTIONS[-1] * power for power in _POWERS[:-1]))
    power = op("Gather", _POWERS, octave)
    within = op("Div", peak, power)
    eighth = _count_above(op, within, tuple(MOST * fraction for fraction in FRACTIONS[:-1]))
    scale = op("Mul", power, op("Gather", FRACTIONS, eighth))
    code = op("Add", op("Mul", op("Cast", octave, to=_FLOAT), 8.0), op("Cast", eighth, to=_FLOAT))

    def by_lane(head: tuple[float, ...], rest: float) -> ir.Value | tuple[float, ...]:
        """A value for each of the first eight of a row, and one for the others."""
        if size is not None:
            return (*head, *(rest,) * (size - LEAST))
        lane = op("Min", op("Range", 0, op("Squeeze", op("Shape", x, start=-1)), 1), LEAST)
        return op("Gather", (*head, rest), lane)

    # Bit i of the code: floor(c / 2^i) - 2 floor(c / 2^(i + 1)).
    weights = tuple(2.0**i for i in range(LEAST))
    shifted = op("Floor", op("Div", code, by_lane(weights, 256.0)))
    halved = op("Floor", op("Div", code, by_lane(tuple(2 * w for w in weights), 256.0)))
    bit = op("Sub", shifted, op("Mul", halved, 2.0))
    step = by_lane((2.0,) * LEAST, 1.0)
    low, high = by_lane((-64.0,) * LEAST, -MOST), by_lane((63.0,) * LEAST, MOST)
    whole = op("Round", op("Div", op("Sub", op("Div", x, scale), bit), step))
    bounded = op("Min", op("Max", whole, low), high)
    return op("Add", op("Mul", bounded, step), bit)


def decode(op: Recorder, rows: ir.Value) -> ir.Value:
    """int8 [..., n] → float32 [..., n]."""
    head = op("Cast", op("Gather", rows, tuple(range(LEAST)), axis=-1), to=_FLOAT)
    odd = op("Sub", head, op("Mul", op("Floor", op("Mul", head, 0.5)), 2.0))
    code = op("ReduceSum", op("Mul", odd, tuple(2.0**i for i in range(LEAST))), (-1,))
    octave = op("Floor", op("Mul", code, 0.125))
    eighth = op("Sub", code, op("Mul", octave, 8.0))
    power = op("Gather", _POWERS, op("Cast", octave, to=_INT64))
    scale = op("Mul", power, op("Gather", FRACTIONS, op("Cast", eighth, to=_INT64)))
    return op("Mul", op("Cast", rows, to=_FLOAT), scale)


def _count_above(op: Recorder, value: ir.Value, limits: tuple[float, ...]) -> ir.Value:
    """[..., 1] → how many of the limits it exceeds, as int64."""
    return op("ReduceSum", op("Cast", op("Greater", value, limits), to=_INT64), (-1,))
