"""Toy packages, written once for all the runtime's tests, and a small byte-level tokenizer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

# So that the tests can import toy_packages: under importlib mode no test directory is on the path.
sys.path.insert(0, str(Path(__file__).parent))

import toy_packages


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with an append state and a replace state."""
    out = tmp_path_factory.mktemp("toy") / "package"
    toy_packages.write_toy(out)
    return out


@pytest.fixture(scope="session", params=[(), ("append",), ("replace",), ("append", "replace")])
def any_toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One package for every mix of states."""
    out = tmp_path_factory.mktemp("any") / "package"
    toy_packages.write_toy(out, request.param)
    return out


@pytest.fixture(scope="session")
def byte_tokenizer() -> tokenizers.Tokenizer:
    """Ids 0-255 are the bytes in GPT-2's order, then two merges and two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: index for index, letter in enumerate(alphabet)}
    merges = [("t", "h"), ("th", "e")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer
