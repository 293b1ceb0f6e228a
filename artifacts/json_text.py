"""Untrusted bytes go in; JSON with one meaning only comes out, or one line saying what is wrong."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import cast

from edgewright.artifacts.errors import EdgewrightError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

_DIGITS_LIMIT = 40


def parse_json(
    data: bytes,
    source: str,
    error: type[EdgewrightError],
    remedy: str = "",
    infinity: bool = False,
) -> Json:
    """`source` names the file, and `remedy` ends the line where the file may be cut short. With
    `infinity` the word Infinity, which some writers use for "no limit", is a number too."""
    try:
        parsed: Json = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_repeats,
            parse_constant=_infinity_alone if infinity else _refuse_constant,
            parse_float=_finite_number,
            parse_int=_whole_number,
        )
    except _Refused as refused:
        raise error(f"{source}: {refused}") from None
    except UnicodeDecodeError as refused:
        raise error(f"{source}: not UTF-8 text at byte {refused.start}") from None
    except json.JSONDecodeError as refused:
        where = f"line {refused.lineno} column {refused.colno}"
        raise error(f"{source}: not valid JSON ({refused.msg}, {where}){remedy}") from None
    except RecursionError:
        raise error(f"{source}: nested too deeply") from None
    return parsed


def one_line(text: str, limit: int = 200) -> str:
    """Text from a file, fit to stand in an error: printable and short."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: limit + 1])
    return shown if len(text) <= limit else shown[:limit] + "…"


class _Refused(Exception):
    """What is wrong; becomes the caller's error once the file's name is known."""


def _without_repeats(pairs: list[tuple[str, Json]]) -> Json:
    """A repeated key hides one value behind another."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _Refused(f"the key {one_line(twice, 80)} appears twice in one object")
    return cast(Json, found)


def _refuse_constant(name: str) -> Json:
    raise _Refused(f"{name} is not JSON")


def _infinity_alone(name: str) -> Json:
    return math.inf if name == "Infinity" else _refuse_constant(name)


def _finite_number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _Refused(f"the number {one_line(digits, 40)} is too large")
    return value


def _whole_number(digits: str) -> int:
    # int() takes quadratic time; no field is ever near this long.
    if len(digits) > _DIGITS_LIMIT:
        raise _Refused(f"a number of {len(digits)} digits; at most {_DIGITS_LIMIT} are allowed")
    return int(digits)
