"""Untrusted JSON goes in; frozen dataclasses come out, or a PackageError that names the field.

The dataclasses say what is allowed, in their annotations; nothing else is accepted: no unknown,
missing or repeated field, no number outside its range, no text outside its pattern.
"""

from __future__ import annotations

import json
import math
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from edgewright.artifacts.errors import PackageError
from edgewright.artifacts.json_text import Json, parse_json

T = TypeVar("T")

ITEMS_LIMIT = 100_000
# JavaScript reads manifests too, and its numbers are exact up to here.
WHOLE_LIMIT = (1 << 53) - 1


@dataclass(frozen=True)
class Range:
    """The smallest and the largest number allowed."""

    minimum: float
    maximum: float


@dataclass(frozen=True)
class Text:
    """The most characters allowed, and the pattern that all of them together must match."""

    limit: int
    pattern: str | None = None
    meaning: str = "text"


@dataclass(frozen=True)
class Items:
    """The fewest and the most entries of a list or a mapping."""

    minimum: int = 0
    maximum: int = ITEMS_LIMIT


def parse(data: bytes, source: str) -> Json:
    return parse_json(data, source, PackageError, "; copy or export the package again")


def decode(cls: type[T], value: Json, source: str) -> T:
    """`value` as a `cls`, whose annotations are the rules."""
    try:
        return cast(T, _decode(cls, value, ""))
    except _Refused as refused:
        raise PackageError(f"{source}: {refused}") from None


def encode(value: object) -> Json:
    """The inverse of decode: fields in the order they are declared, mapping keys sorted."""
    if is_dataclass(value):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: encode(value[key]) for key in sorted(value)}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def dump(value: object) -> bytes:
    text = json.dumps(encode(value), indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", errors="surrogatepass") + b"\n"


class _Refused(Exception):
    """What is wrong; becomes a PackageError once the file's name is known."""


def _decode(kind: object, value: Json, where: str) -> object:
    origin = get_origin(kind)
    if origin is Annotated:
        base, rule = get_args(kind)
        decoded = _decode(base, value, where)
        _check(rule, value, where)
        return decoded
    if origin in (Union, types.UnionType):
        return _decode_union(kind, value, where)
    if origin is Literal:
        for option in get_args(kind):
            if type(option) is type(value) and option == value:
                return value
        raise _mismatch(kind, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise _mismatch(kind, value, where)
        _check(Items(), value, where)
        item_kind = get_args(kind)[0]
        return tuple(_decode(item_kind, item, f"{where}[{n}]") for n, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        return _decode_mapping(kind, value, where)
    if isinstance(kind, type) and is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    return _decode_scalar(kind, value, where)


def _decode_union(kind: object, value: Json, where: str) -> object:
    refusals: list[_Refused] = []
    for option in get_args(kind):
        try:
            return _decode(option, value, where)
        except _Refused as refused:
            refusals.append(refused)
    if value is not None and type(None) in get_args(kind) and len(refusals) == 2:
        raise next(r for o, r in zip(get_args(kind), refusals, strict=True) if o is not type(None))
    raise _mismatch(kind, value, where)


def _decode_mapping(kind: object, value: Json, where: str) -> object:
    if not isinstance(value, dict):
        raise _mismatch(kind, value, where)
    _check(Items(), value, where)
    key_kind, value_kind = get_args(kind)
    return {
        _decode(key_kind, key, f"{where}: the key {_shown(key)}"): _decode(
            value_kind, item, f"{where}[{_shown(key)}]"
        )
        for key, item in value.items()
    }


def _decode_dataclass(kind: type, value: Json, where: str) -> object:
    if not isinstance(value, dict):
        raise _mismatch(kind, value, where)
    kinds = field_kinds(kind)
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in kinds:
            raise _Refused(f"{prefix}{_shown(key)[1:-1]} is not a field of this format version")
    for name in kinds:
        if name not in value:
            raise _Refused(f"{prefix}{name} is missing")
    return kind(**{name: _decode(k, value[name], f"{prefix}{name}") for name, k in kinds.items()})


def _decode_scalar(kind: object, value: Json, where: str) -> object:
    if kind is float and type(value) is int and abs(value) <= WHOLE_LIMIT:
        return float(value)
    wanted = type(None) if kind is None else kind
    if type(value) is not wanted or (isinstance(value, float) and not math.isfinite(value)):
        raise _mismatch(kind, value, where)
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise _Refused(f"{where} holds half a surrogate pair") from None
    if type(value) is int and abs(value) > WHOLE_LIMIT:
        raise _Refused(f"{where} is {value}; at most {WHOLE_LIMIT} is allowed")
    return value


def _check(rule: object, value: Json, where: str) -> None:
    if isinstance(rule, Range) and isinstance(value, int | float):
        if not rule.minimum <= value <= rule.maximum:
            low, high = f"{rule.minimum:.16g}", f"{rule.maximum:.16g}"
            raise _Refused(f"{where} is {value}; {low} to {high} is required")
    elif isinstance(rule, Text) and isinstance(value, str):
        if len(value) > rule.limit:
            raise _Refused(f"{where} has {len(value)} characters; at most {rule.limit} are allowed")
        if rule.pattern is not None and not re.fullmatch(rule.pattern, value):
            raise _Refused(f"{where} is {_shown(value)}, which is not {rule.meaning}")
    elif (
        isinstance(rule, Items)
        and isinstance(value, list | dict)
        and not rule.minimum <= len(value) <= rule.maximum
    ):
        wanted = f"{rule.minimum} to {rule.maximum}"
        raise _Refused(f"{where} has {len(value)} entries; {wanted} are required")


def _mismatch(kind: object, value: Json, where: str) -> _Refused:
    subject = where or "the document"
    return _Refused(f"{subject} is {_shown(value)}; {_expected(kind)} is required")


def _expected(kind: object) -> str:
    """What a person would call a value of this kind."""
    origin = get_origin(kind)
    if origin is Annotated:
        base, rule = get_args(kind)
        return rule.meaning if isinstance(rule, Text) else _expected(base)
    if origin in (Union, types.UnionType):
        return " or ".join(_expected(option) for option in get_args(kind))
    if origin is Literal:
        return " or ".join(json.dumps(option) for option in get_args(kind))
    if origin is tuple:
        return "a list"
    named = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if kind is None or kind is type(None):
        return "null"
    return named.get(cast(type, kind), "an object")


def _shown(value: Json) -> str:
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:56]}…{text[-1]}"


@cache
def field_kinds(cls: type) -> dict[str, object]:
    """The annotations of a dataclass, resolved, in the order declared."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}
