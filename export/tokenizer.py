"""A checkpoint's tokenizer and chat templates go into the package, as transformers reads them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import tokenizers

from edgewright.artifacts import PackageWriter, Tokenizer
from edgewright.artifacts.errors import ExportError
from edgewright.model.checkpoint import Checkpoint

_DEFINITION = "tokenizer/tokenizer.json"
_TEMPLATE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TEMPLATE_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True)
class _Found:
    definition: str  # the text of tokenizer.json
    templates: Mapping[str, str] = field(default_factory=dict)
    special_tokens: Mapping[str, str] = field(default_factory=dict)


def write_tokenizer(
    checkpoint: Checkpoint, writer: PackageWriter, warn: Callable[[str], None]
) -> Tokenizer | None:
    """None where the checkpoint has none, or none that the runtime can read: only text is lost."""
    if not checkpoint.tokenizer_files:
        warn("the checkpoint has no tokenizer: the package will take token ids, not text")
        return None
    found = _read(checkpoint.path, warn)
    if found is None:
        return None
    writer.add_bytes(_DEFINITION, found.definition.encode())
    paths: dict[str, str] = {}
    for name, template in found.templates.items():
        if not _TEMPLATE_NAME.fullmatch(name) or len(template) > _TEMPLATE_LIMIT_BYTES:
            raise ExportError(f"chat template {name[:60]!r} has an unusable name or is over 1 MiB")
        paths[name] = f"tokenizer/chat_template.{name}.jinja"
        writer.add_bytes(paths[name], template.encode())
    return Tokenizer(
        definition=_DEFINITION,
        files=(_DEFINITION,),
        chat_templates=paths,
        special_tokens=found.special_tokens,
    )


def _read(path: Path, warn: Callable[[str], None]) -> _Found | None:
    """transformers knows what a tokenizer class adds to its file; without it the file must do."""
    try:
        return _through_transformers(path)
    except ImportError:
        reason = "transformers is not installed"
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # any tokenizer class; tokenizers panics over some broken files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
    definition = _as_it_stands(path / "tokenizer.json")
    if definition is not None:
        warn(f"tokenizer.json is taken as it stands, without its chat template ({reason})")
        return _Found(definition)
    warn(f"the tokenizer cannot be read, the package will take token ids, not text ({reason})")
    return None


def _as_it_stands(path: Path) -> str | None:
    """The file's text if the runtime's own library makes a tokenizer of it."""
    try:
        text = path.read_text(encoding="utf-8")
        tokenizers.Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException:
        return None
    return text


def _through_transformers(path: Path) -> _Found:
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError(f"{type(tokenizer).__name__} has no form that runs without Python")
    templates = tokenizer.chat_template or {}
    if isinstance(templates, str):
        templates = {"default": templates}
    special = {
        name: str(token)
        for name, token in tokenizer.special_tokens_map.items()
        if isinstance(token, str)
    }
    # Parsed and written again, so that what is stored is what was understood.
    definition = json.dumps(json.loads(backend.to_str()), ensure_ascii=False)
    return _Found(definition, templates, special)
