"""Messages go in; the prompt that the checkpoint's own chat template makes of them comes out.

Settings, globals and filters are those with which transformers renders the same templates.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.utils import Namespace

from edgewright.artifacts.errors import SessionError
from edgewright.runtime.template_sandbox import SIZE_LIMIT, BoundedEnvironment, TemplateLimit

TEMPLATE_LIMIT_BYTES = 1 << 20

ChatMessage = Mapping[str, object]
_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")


class ChatTemplates:
    """The templates of one package by name, compiled when first used."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._sources = dict(sources)
        self._special_tokens = dict(special_tokens)
        self._compiled: dict[str, jinja2.Template] = {}
        self._lock = threading.Lock()  # an environment's bounds are for one rendering

    @property
    def names(self) -> list[str]:
        return list(self._sources)

    def render(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        documents: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = False,
        template: str | None = None,
        **variables: object,
    ) -> str:
        """`variables` reach the template as they are, and win over the special tokens."""
        if not messages:
            raise SessionError("the conversation has no messages; at least one is required")
        name = self._choose(template, tools)
        values = self._special_tokens | {key: plain(value) for key, value in variables.items()}
        values |= {
            "messages": [_prepared(message) for message in messages],
            "tools": plain(tools),
            "documents": plain(documents),
            "add_generation_prompt": add_generation_prompt,
        }
        return self._guard(name, lambda: self._render(name, values))

    def _choose(self, template: str | None, tools: object) -> str:
        if template is None:
            with_tools = tools is not None and "tool_use" in self._sources
            template = "tool_use" if with_tools else "default"
        if template not in self._sources:
            known = ", ".join(sorted(self._sources))
            raise SessionError(f"no chat template {template!r}; the package has {known}")
        return template

    def _render(self, name: str, values: Mapping[str, object]) -> str:
        with self._lock:
            template = self._compile(name)
            environment = template.environment
            assert isinstance(environment, BoundedEnvironment)
            environment.start()
            text = template.render(values)
        if len(text) > SIZE_LIMIT:
            raise TemplateLimit(f"it writes more than {SIZE_LIMIT} characters")
        return text

    def _compile(self, name: str) -> jinja2.Template:
        if name not in self._compiled:
            source = self._sources[name]
            if len(source) > TEMPLATE_LIMIT_BYTES:
                raise TemplateLimit(f"it has more than {TEMPLATE_LIMIT_BYTES} characters")
            self._compiled[name] = _environment().from_string(source)
        return self._compiled[name]

    def _guard(self, name: str, render: Callable[[], str]) -> str:
        """Whatever a template does, the caller sees one line."""
        try:
            return render()
        except jinja2.TemplateSyntaxError as error:
            reason = f"line {error.lineno}: {error.message}"
        except RecursionError:
            reason = "it calls itself too deeply"
        except (ArithmeticError, jinja2.TemplateError, LookupError, TypeError, ValueError) as error:
            reason = str(error) or type(error).__name__
        except (
            AssertionError,
            AttributeError,
            MemoryError,
            NotImplementedError,
            SyntaxError,  # Python's own, for what jinja made of it
        ) as error:
            reason = f"{type(error).__name__}: {error}"
        raise SessionError(f"chat template {name!r}: {' '.join(reason.split())[:400]}")


def plain(value: object) -> object:
    """A copy made of JSON's own types, so that a template meets no method of the caller's."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # an enum's own str() would give its name
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    return f"<{type(value).__name__}>"


def _prepared(message: ChatMessage) -> dict[object, object]:
    """Without keys set to None, and with reasoning under both names that templates read."""
    if not isinstance(message, Mapping):
        raise SessionError(f"a chat message must be a mapping; found {type(message).__name__}")
    kept = plain({key: value for key, value in message.items() if value is not None})
    assert isinstance(kept, dict)
    given = [kept[name] for name in _REASONING_NAMES if kept.get(name) is not None]
    return {"thinking": given[0], **kept, "reasoning_content": given[0]} if given else kept


def _environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja's own, without escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


class _Dict:
    """dict() without the class, whose attributes lead to Python's own."""

    def __call__(self, *pairs: Any, **items: Any) -> dict[Any, Any]:
        return dict(*pairs, **items)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        return dict.fromkeys(*arguments)


class _Namespace(Namespace):
    """A namespace that takes no underscored attribute."""

    def __init__(*arguments: Any, **attributes: Any) -> None:
        # Namespace itself takes self from the tuple, so that an attribute may be called self.
        own, *rest = arguments
        values = dict(*rest, **attributes)
        for name in values:
            _check_attribute(name)
        Namespace.__init__(own, values)

    def __setitem__(self, name: str, value: object) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.TemplateError(f"a namespace takes no attribute that starts with _: {name!r}")


class _GenerationBlock(Extension):
    """{% generation %} … {% endgeneration %} marks the assistant's own text; it renders as is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_as_is"), [], [], body).set_lineno(line)

    def _as_is(self, caller: Callable[[], str]) -> str:
        return caller()
