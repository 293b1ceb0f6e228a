"""A template nobody vouches for goes in; it renders within bounds of time and size, or fails.

jinja's sandbox keeps a template away from Python; it does not keep it from looping for ever or
from doubling a string thirty times. Here loops, macros and calls tick, output is counted, and what
makes a long string out of short ones is measured before it is made.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

SECONDS_LIMIT = 10.0
TICKS_LIMIT = 1_000_000
SIZE_LIMIT = 16 << 20
_WRITTEN_LIMIT = 8 * SIZE_LIMIT  # text may pass through a few macros on its way out
_NUMBER_BITS_LIMIT = 1 << 14
_ITEMS_LIMIT = 1 << 20
_WIDTH_LIMIT = 1 << 16

# A width of six digits or more, one taken from an argument, or a field inside a field.
_WIDE_FORMAT = re.compile(r"[0-9]{6}|%[^a-zA-Z%]*\*|\{[^{}]*\{")


class TemplateLimit(jinja2.TemplateError):
    """The template asked for more than it may have."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with a clock and a measure; it renders one template at a time."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **settings: Any) -> None:
        super().__init__(finalize=self._written_text, **settings)
        del self.globals["lipsum"]  # a text generator without a bound
        for name, measure in _FILTER_MEASURES.items():
            self.filters[name] = _measured(self.filters[name], measure)
        self.start()

    def start(self) -> None:
        """Before each rendering: the bounds are for one."""
        self._ticks = 0
        self._written = 0
        self._deadline = time.monotonic() + SECONDS_LIMIT

    def tick(self, text: int = 0) -> None:
        """One round of a loop or one call, which writes so much of the template's own text."""
        self._ticks += 1
        if self._ticks > TICKS_LIMIT or time.monotonic() > self._deadline:
            raise TemplateLimit(f"it runs for more than {SECONDS_LIMIT:g} s or {TICKS_LIMIT} steps")
        self._count(text)

    def joined(self, *parts: object) -> str:
        """What `~` does."""
        texts = [str(part) for part in parts]
        _check_size(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _measure_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, target: Any, /, *args: Any, **kwargs: Any) -> Any:
        if target not in (self.tick, self.joined):
            self.tick()
            owner = getattr(target, "__self__", None)
            measure = _METHOD_MEASURES.get(getattr(target, "__name__", ""))
            if measure is not None and isinstance(owner, str):
                args = measure(owner, *args)
        return super().call(context, target, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        owner = getattr(value, "__self__", None)
        if isinstance(owner, str) and getattr(value, "__name__", "") in ("format", "format_map"):
            _check_format(owner)
        return super().wrap_str_format(value)

    def _generate(self, source: nodes.Template, *rest: Any, **named: Any) -> str:
        # jinja's own hook between the parsed template and its code.
        instrumented = _Instrument().visit(source)
        return super()._generate(instrumented, *rest, **named)

    def _written_text(self, value: object) -> str:
        text = value if isinstance(value, str) else str(value)
        self._count(len(text))
        return text

    def _count(self, text: int) -> None:
        self._written += text
        if self._written > _WRITTEN_LIMIT:
            raise TemplateLimit(f"it writes more than {_WRITTEN_LIMIT} characters")


class _Instrument(NodeTransformer):
    """Puts a tick at the head of whatever runs more than once, and a measure on `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._ticking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._ticking(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._ticking(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._call("joined", node.nodes, node.lineno)

    def _ticking(self, node: Any) -> nodes.Node:
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        tick = self._call("tick", [nodes.Const(text)], node.lineno)
        node.body.insert(0, nodes.ExprStmt(tick).set_lineno(node.lineno))
        return node  # type: ignore[no-any-return]

    def _call(self, name: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
        call = nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)
        call.set_lineno(line)
        return call


def _check_size(size: int) -> None:
    if size > SIZE_LIMIT:
        raise TemplateLimit(f"it makes a text of more than {SIZE_LIMIT} characters")


def _check_width(*values: object) -> None:
    if any(isinstance(value, int) and abs(value) > _WIDTH_LIMIT for value in values):
        raise TemplateLimit(f"it asks for a width or count above {_WIDTH_LIMIT}")


def _check_format(layout: str) -> None:
    if _WIDE_FORMAT.search(layout):
        raise TemplateLimit("it formats with a width of its own choice")


def _measure_operator(operator: str, left: object, right: object) -> None:
    if operator == "%" and isinstance(left, str):
        _check_format(left)
    elif operator == "+" and isinstance(left, str) and isinstance(right, str):
        _check_size(len(left) + len(right))
    elif operator == "+" and isinstance(left, list | tuple) and isinstance(right, list | tuple):
        _check_items(len(left) + len(right))
    elif operator == "*" and isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    elif operator == "*":
        for sequence, count in ((left, right), (right, left)):
            if isinstance(sequence, str) and isinstance(count, int):
                _check_size(len(sequence) * count)
            elif isinstance(sequence, list | tuple) and isinstance(count, int):
                _check_items(len(sequence) * count)
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * abs(right))


def _check_items(count: int) -> None:
    if count > _ITEMS_LIMIT:
        raise TemplateLimit(f"it makes a list of more than {_ITEMS_LIMIT} items")


def _check_bits(bits: int) -> None:
    if bits > _NUMBER_BITS_LIMIT:
        raise TemplateLimit(f"it makes a number of more than {_NUMBER_BITS_LIMIT} bits")


# A measure takes what the method or filter would take, refuses or returns it; an iterator that it
# had to read comes back as a list.
Measure = Callable[..., tuple[Any, ...]]


def _padded(text: str, *args: Any) -> tuple[Any, ...]:
    _check_width(*args)
    return args


def _untabbed(text: str, *args: Any) -> tuple[Any, ...]:
    widths = [value for value in args if isinstance(value, int)]
    _check_size(len(text) + text.count("\t") * max([8, *widths]))
    return args


def _replaced(text: str, *args: Any) -> tuple[Any, ...]:
    if len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        _check_size(len(text) + str(text).count(args[0]) * len(args[1]))
    return args


def _joined(separator: str, *args: Any) -> tuple[Any, ...]:
    if not args:
        return args
    items = list(args[0])
    size = sum(len(item) for item in items if isinstance(item, str))
    _check_size(size + len(separator) * len(items))
    return (items, *args[1:])


def _translated(text: str, *args: Any) -> tuple[Any, ...]:
    table = args[0] if args else None
    if isinstance(table, Mapping):
        longest = max((len(v) for v in table.values() if isinstance(v, str)), default=1)
        _check_size(len(text) * longest)
    return args


_METHOD_MEASURES: dict[str, Measure] = {
    "center": _padded,
    "ljust": _padded,
    "rjust": _padded,
    "zfill": _padded,
    "expandtabs": _untabbed,
    "replace": _replaced,
    "join": _joined,
    "translate": _translated,
}


def _filter_padded(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    _check_width(*args, *kwargs.values())
    return (value, *args)


def _filter_indented(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    text = str(value)
    widths = [v if isinstance(v, int) else len(str(v)) for v in (*args, *kwargs.values())]
    _check_size(len(text) + (text.count("\n") + 1) * max([4, *widths]))
    return (value, *args)


def _filter_replaced(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    old, new = [*map(str, args[:2]), "", ""][:2]
    old, new = str(kwargs.get("old", old)), str(kwargs.get("new", new))
    _check_size(len(str(value)) + str(value).count(old) * len(new))
    return (value, *args)


def _filter_joined(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    items: Sequence[Any] = list(value)
    separator = str(args[0] if args else kwargs.get("d", ""))
    size = sum(len(item) for item in items if isinstance(item, str))
    _check_size(size + len(separator) * len(items))
    return (items, *args)


def _filter_formatted(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    _check_format(str(value))
    return (value, *args)


def _filter_wrapped(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    breaks = [a for a in (*args, *kwargs.values()) if isinstance(a, str)]
    _check_size(len(str(value)) * (1 + max(map(len, breaks), default=1)))
    return (value, *args)


def _filter_summed(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    start = args[1] if len(args) > 1 else kwargs.get("start", 0)
    if not isinstance(start, int | float):
        raise TemplateLimit("sum adds numbers only")
    return (value, *args)


_FILTER_MEASURES: dict[str, Measure] = {
    "batch": _filter_padded,
    "center": _filter_padded,
    "format": _filter_formatted,
    "indent": _filter_indented,
    "join": _filter_joined,
    "replace": _filter_replaced,
    "slice": _filter_padded,
    "sum": _filter_summed,
    "truncate": _filter_padded,
    "wordwrap": _filter_wrapped,
}


def _measured(apply: Callable[..., Any], measure: Measure) -> Callable[..., Any]:
    """The filter, measured first; jinja's marks on it (what it wants passed) are kept."""
    first = 1 if hasattr(apply, "jinja_pass_arg") else 0

    @functools.wraps(apply)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        return apply(*args[:first], *measure(*args[first:], **kwargs), **kwargs)

    return bounded
