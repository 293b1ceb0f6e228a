"""Chat templates: what transformers renders, and templates that mean harm."""

from __future__ import annotations

import enum
import time
from pathlib import Path

import pytest
import tokenizers
from toy_packages import chain_graph, write_package

from edgewright.artifacts import StateLayout
from edgewright.artifacts.errors import SessionError
from edgewright.runtime import Session
from edgewright.runtime.chat import ChatTemplates


class Role(str, enum.Enum):  # noqa: UP042 (a StrEnum would print as its value)
    USER = "user"


SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the <weather> & more, naïvely",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
        },
    }
]
CONVERSATIONS = {
    "plain": [
        {"role": "system", "content": "Be brief. "},
        {"role": "user", "content": "Hi\n"},
        {"role": "assistant", "content": "Hello <b>"},
        {"role": "user", "content": "  Tools?"},
    ],
    "tools": [
        {"role": Role.USER, "content": "Weather in Köln?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "weather", "arguments": {"place": "Köln"}}}],
            "reasoning": "They ask for weather.",
        },
        {"role": "tool", "content": '{"sky": "grey"}', "extra": object(), "scores": (1, 2.5, True)},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}],
}
TEMPLATES = {
    "loop": """
{%- for message in messages %}
    {%- if loop.first and message.role == 'system' %}{% continue %}{% endif %}
    {{- '<|' ~ message['role'] ~ '|>\\n' ~ (message.content or '') | trim ~ eos_token }}
    {%- if loop.index > 3 %}{% break %}{% endif %}
{% endfor %}
{% if add_generation_prompt %}<|assistant|>
{% endif %}""",
    "tools": """{{ bos_token }}{% if tools %}[{% for tool in tools %}
  {{ tool | tojson }}{{ "," if not loop.last }}
{% endfor %}]
{{ tools | tojson(indent=2) }}
{% endif %}{% for m in messages %}
{% if m.tool_calls is defined %}
{% for call in m.tool_calls %}{{ call.function.name }}({{ call.function.arguments | items | list }})
{% endfor %}
{% else %}{{ m.role }}: {{ m.content if m.content is string
        else m.content | map(attribute='type') | join(', ') }}
{% endif %}{% endfor %}""",
    "macros": """{% macro head(role, depth=0) -%}
<{{ role | upper | indent(2) }}{{ '-' * (2 + depth) }}{{ caller() if caller else '' }}>
{%- endmacro %}
{% set ns = namespace(count=0, seen=[], self='x') %}
{% for m in messages %}{% set ns.count = ns.count + 1 %}{{ head(m.role, ns.count) }}{% endfor %}
{{ ns.count }}{{ ns.self }}{{ dict(a=1, b=2) | dictsort }}{{ dict.fromkeys(['k'], 3) }}
{% call head('x') %}inner{% endcall %}
{% filter upper %}quiet{% endfilter %}{% set block %}kept {{ ns.count }}{% endset %}{{ block }}
{{ range(3) | list }}{{ messages | length }}
{{ messages[0].nothing }}{{ messages[0].nothing is defined }}""",
    "reasoning": """{% for m in messages %}
{{ m.thinking }}|{{ m.reasoning_content }}|{{ m.extra }}|{{ m.scores }}
{% endfor %}{{ enable_thinking | default('unset') }}{{ documents }}""",
    "generation": """{% for m in messages %}{% if m.role == 'assistant' %}
{% generation %}{{ m.content }}{% endgeneration %}
{% endif %}{% endfor %}{{ '%s-%03d' % ('a', 7) }}{{ '{:>5}|{}'.format('x', 1) }}
{{ 'abc' | replace('b', 'xx') }}
{{ ['a', 'b'] | join('+') }}{{ 'a,b'.split(',') }}{{ [1, 2] + [3] }}{{ 2 ** 10 }}{{ 'x'.center(5) }}
{{ 7 % 4 }}
{{ 'a' ~ 1 ~ none }}{{ [3, 1] | sort }}{{ [1, 2] | sum }}{{ 'tEsT' | title }}{{ 1.5 * 2 }}
{{ 'x' | center(4) }}|""",
}


def reference(template: str, messages: list, **settings: object) -> str:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "</s>": 1})),
        chat_template=template,
        **SPECIAL,
    )
    return tokenizer.apply_chat_template(messages, tokenize=False, **settings)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["", "with tools"])
@pytest.mark.parametrize("prompt", [False, True])
def test_rendering_equals_transformers(
    template: str, conversation: str, tools: list | None, prompt: bool
) -> None:
    messages, source = CONVERSATIONS[conversation], TEMPLATES[template]
    settings = {"add_generation_prompt": prompt, "enable_thinking": False}
    expected = reference(source, messages, tools=tools, **settings)
    assert (
        ChatTemplates({"default": source}, SPECIAL).render(messages, tools, **settings) == expected
    )


def test_the_time_is_todays() -> None:
    templates = ChatTemplates({"default": "{{ strftime_now('%Y-%m-%d') }}"}, {})
    messages = CONVERSATIONS["plain"]
    assert templates.render(messages) in {
        reference("{{ strftime_now('%Y-%m-%d') }}", messages),
        time.strftime("%Y-%m-%d"),
    }


def test_the_tool_template_is_chosen_for_tools() -> None:
    templates = ChatTemplates({"default": "plain", "tool_use": "tools", "rag": "rag"}, {})
    messages = [{"role": "user", "content": ""}]
    assert templates.render(messages) == "plain"
    assert templates.render(messages, TOOLS) == "tools"
    assert templates.render(messages, TOOLS, template="rag") == "rag"
    with pytest.raises(SessionError, match="default, rag, tool_use"):
        templates.render(messages, template="none")


HOSTILE = {
    "raises": "{{ raise_exception('roles must alternate') }}",
    "endless loops": "{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% endfor %}{% endfor %}",
    "endless output": "{% for a in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "output in macros": "{% macro m(n) %}{% for a in range(999) %}"
    + "x" * 999
    + "{% if n %}{{ m(n - 1) }}{% endif %}{% endfor %}{% endmacro %}{% set y = m(9) %}",
    "doubling by ~": "{% set n = namespace(x='a') %}{% for i in range(60) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling by +": "{% set n = namespace(x='a') %}{% for i in range(60) %}"
    "{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling lists": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}"
    "{% set n.x = n.x + n.x %}{% endfor %}",
    "squaring": "{% set n = namespace(x=9) %}{% for i in range(60) %}"
    "{% set n.x = n.x * n.x %}{% endfor %}",
    "doubling by replace": "{% set n = namespace(x='a') %}{% for i in range(60) %}"
    "{% set n.x = n.x | replace('a', 'aa') %}{% endfor %}",
    "doubling by join": "{% set n = namespace(x='a') %}{% for i in range(60) %}"
    "{% set n.x = [n.x, n.x] | join %}{% endfor %}",
    "doubling by the method": "{% set n = namespace(x='a') %}{% for i in range(60) %}"
    "{% set n.x = n.x.replace('a', 'aa') %}{% endfor %}",
    "repeating": "{{ 'a' * 999999999999 }}",
    "power": "{{ 9 ** 999999999 }}",
    "padding": "{{ 'a'.ljust(999999999999) }}",
    "padding filter": "{{ 'a' | center(999999999999) }}",
    "indenting": "{{ 'a' | indent(999999999999, true) }}",
    "format": "{{ '%999999999999d' % 1 }}",
    "format by argument": "{{ '%*d' % (999999999, 1) }}",
    "format method": "{{ '{:>999999999}'.format(1) }}",
    "format field": "{{ '{:>{}}'.format(1, 999999999) }}",
    "format filter": "{{ '%999999999d' | format(1) }}",
    "range": "{{ range(999999999) | list }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "deep nesting": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "deep blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['json'] }}",
    "dict class": "{{ dict.__class__ }}{{ dict.__init__.__globals__ }}",
    "mutation": "{{ messages.append(1) }}",
    "underscores": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "include": "{% include 'etc/passwd' %}",
    "lorem": "{{ lipsum(n=999999) }}",
    "syntax": "{% for %}",
    "syntax over lines": "{{ 1\n\n+ }}",
    "division": "{{ 1 // 0 }}",
    "wrong types": "{{ 1 + 'a' }}",
    "too long": "x" * (2 << 20),
    "no function": "{{ nothing() }}",
    "json": "{{ messages[0].items | tojson }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_harmful_templates_end_in_one_line(name: str) -> None:
    templates = ChatTemplates({"default": HOSTILE[name]}, SPECIAL)
    begun = time.monotonic()
    with pytest.raises(SessionError, match="chat template 'default': ") as caught:
        templates.render([{"role": "user", "content": "x"}])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert time.monotonic() - begun < 60  # a bound on hanging, not a measurement


def test_messages_are_checked() -> None:
    templates = ChatTemplates({"default": "{{ messages }}"}, {})
    with pytest.raises(SessionError, match="no messages"):
        templates.render([])
    with pytest.raises(SessionError, match="must be a mapping; found str"):
        templates.render(["hello"])


def test_a_session_encodes_a_chat(byte_tokenizer: tokenizers.Tokenizer, tmp_path: Path) -> None:
    size = byte_tokenizer.get_vocab_size()
    graph, weights = chain_graph(list(range(size)))
    files = {
        "tokenizer.json": byte_tokenizer.to_str().encode(),
        "chat_template.jinja": b"{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
        b"{% if add_generation_prompt %}>{% endif %}",
    }
    write_package(
        tmp_path / "p",
        graph,
        weights,
        states=StateLayout(()),
        vocab=size,
        tokenizer=files,
        special_tokens=SPECIAL,
    )
    session = Session.open(tmp_path / "p")
    ids = session.encode_chat([{"role": "user", "content": "the"}])
    assert ids == byte_tokenizer.encode("<s>the>", add_special_tokens=False).ids
    assert session.chat.names == ["default"]


def test_a_package_without_template_says_so(toy: Path) -> None:
    with pytest.raises(SessionError, match="no tokenizer"):
        Session.open(toy).encode_chat([{"role": "user", "content": "x"}])
