"""A package's tokenizer files go in, hashed; its codec and chat templates come out."""

from __future__ import annotations

from edgewright.artifacts import Package, Tokenizer
from edgewright.artifacts.errors import PackageError, SessionError
from edgewright.runtime.chat import TEMPLATE_LIMIT_BYTES, ChatTemplates
from edgewright.runtime.text import TextCodec

_DEFINITION_LIMIT_BYTES = 256 << 20


def open_codec(package: Package) -> TextCodec:
    tokenizer = _require_tokenizer(package)
    definition = package.read_verified(tokenizer.definition, _DEFINITION_LIMIT_BYTES)
    return TextCodec(definition, tokenizer.special_tokens.values())


def open_chat(package: Package) -> ChatTemplates:
    tokenizer = _require_tokenizer(package)
    if not tokenizer.chat_templates:
        raise SessionError("the package has no chat template; pass a plain prompt")
    sources = {}
    for name, path in tokenizer.chat_templates.items():
        data = package.read_verified(path, TEMPLATE_LIMIT_BYTES)
        try:
            sources[name] = data.decode()
        except UnicodeDecodeError as error:
            raise PackageError(f"{path} is not UTF-8: {error}") from None
    return ChatTemplates(sources, tokenizer.special_tokens)


def _require_tokenizer(package: Package) -> Tokenizer:
    tokenizer = package.manifest.tokenizer
    if tokenizer is None:
        raise SessionError("the package has no tokenizer; pass token ids instead of text")
    return tokenizer
