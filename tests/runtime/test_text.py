"""Text: encoding as transformers encodes, and streams whose pieces join to the whole decode."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from edgewright.artifacts.errors import PackageError, SessionError
from edgewright.runtime.text import StopScanner, TextCodec

TEXTS = [
    "the end",
    "naïve café",
    "日本語テキスト",
    "🙂🙃 👩\u200d👩\u200d👧",
    "a\n\tb  c",
    "\U0001d518\U0001d52b",
    "\ufffd!",
]


@pytest.fixture(scope="module")
def byte_level(byte_tokenizer: tokenizers.Tokenizer) -> TextCodec:
    return TextCodec(byte_tokenizer.to_str().encode())


@pytest.fixture(scope="module")
def byte_fallback() -> TextCodec:
    """As sentencepiece models are converted: ▁ for a space, bytes for what is unknown."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "t", "h", "e", "▁the", "é"]
    tokenizer = tokenizers.Tokenizer(
        models.Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], 0, True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return TextCodec(tokenizer.to_str().encode())


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_pieces_join_to_the_whole(kind: str, text: str, request: pytest.FixtureRequest) -> None:
    codec: TextCodec = request.getfixturevalue(kind)
    ids = codec.encode(text, special=False)
    stream = codec.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == codec.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_random_bytes_join_to_the_whole(byte_level: TextCodec) -> None:
    random = np.random.default_rng(0)
    for length in range(1, 60):
        ids = random.integers(0, 260, length).tolist()
        stream = byte_level.stream()
        pieces = [stream.push(token) for token in ids]
        assert "".join(pieces) + stream.finish() == byte_level.decode(ids)


def test_a_character_comes_when_its_last_byte_does(byte_level: TextCodec) -> None:
    ids = byte_level.encode("é€🙂", special=False)
    stream = byte_level.stream()
    assert [stream.push(token) for token in ids] == ["", "é", "", "", "€", "", "", "", "🙂"]


def test_an_unfinished_character_ends_as_a_replacement(byte_level: TextCodec) -> None:
    stream = byte_level.stream()
    assert [stream.push(token) for token in byte_level.encode("a🙂", special=False)[:-1]] == [
        "a",
        "",
        "",
        "",
    ]
    assert stream.finish() == "\ufffd"


def test_the_prompt_gives_the_first_token_its_space(byte_fallback: TextCodec) -> None:
    word = byte_fallback.encode("the", special=False)
    assert byte_fallback.decode(word) == "the"
    assert byte_fallback.stream().push(word[-1]) == "the"
    assert byte_fallback.stream(prompt=word).push(word[-1]) == " the"


def test_special_tokens_have_no_text(byte_level: TextCodec) -> None:
    ids = byte_level.encode("the")
    assert byte_level.decode(ids) == "the" and byte_level.decode(ids, False) == "<s>the"
    stream = byte_level.stream()
    assert "".join(stream.push(token) for token in [ids[0]] * 300 + ids) == "the"
    assert len(stream._window) < 100


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"bos_token": "<s>", "eos_token": "</s>"},
        {"bos_token": "<s>", "add_bos_token": False, "add_eos_token": True},
        {"eos_token": "the"},
        {"pad_token": "<new>"},
    ],
    ids=str,
)
def test_encoding_equals_transformers(
    byte_tokenizer: tokenizers.Tokenizer, config: dict[str, str | bool], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "tokenizer.json").write_text(byte_tokenizer.to_str())
    written = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(written))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    special = theirs.special_tokens_map
    ours = TextCodec(byte_tokenizer.to_str().encode(), special.values())
    for text in [*TEXTS, "", "<s>the</s>", "a <new> b"]:
        assert ours.encode(text) == theirs(text)["input_ids"]
        plain = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, special=False) == plain
        assert ours.decode(plain) == theirs.decode(plain, skip_special_tokens=True)


def test_padding_and_truncation_of_the_file_are_not_used(
    byte_tokenizer: tokenizers.Tokenizer,
) -> None:
    copy = tokenizers.Tokenizer.from_str(byte_tokenizer.to_str())
    copy.enable_truncation(4)
    copy.enable_padding(length=100)
    assert len(TextCodec(copy.to_str().encode()).encode("a" * 50, special=False)) == 50


@pytest.mark.parametrize(
    "definition",
    [
        b"{}",
        b"not json",
        b"\xff\xfe",
        b'{"version": "1.0", "model": {"type": "None"}}',
        b"[" * 10**5,
    ],
)
def test_a_bad_file_is_one_line(definition: bytes) -> None:
    with pytest.raises(PackageError, match="tokenizer") as caught:
        TextCodec(definition)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stops", "pieces", "told", "stopped"),
    [
        (["END"], ["abc", "def"], ["abc", "def"], False),
        (["END"], ["ab E", "N", "Dxyz"], ["ab ", "", ""], True),
        (["END"], ["ab E", "N", "X"], ["ab ", "", "ENX"], False),
        (["aab"], ["a", "a", "a", "b"], ["", "", "a", ""], True),
        (["xy", "y"], ["x", "y"], ["", ""], True),
        (["long stop", "st"], ["a long ", "st"], ["a ", "long "], True),
        (["b"], ["abc"], ["a"], True),
    ],
)
def test_stop_strings_straddle_pieces(
    stops: list[str], pieces: list[str], told: list[str], stopped: bool
) -> None:
    scanner = StopScanner(stops)
    assert [scanner.push(piece) for piece in pieces] == told
    assert scanner.stopped is stopped
    whole = "".join(pieces)
    if not stopped:
        assert "".join(told) + scanner.finish() == whole


def test_bytes_that_were_no_text_are_refused(byte_level: TextCodec) -> None:
    """As they come from a pipe or a command line that held no UTF-8."""
    with pytest.raises(SessionError, match="not Unicode at character 1"):
        byte_level.encode(b"a\xff".decode(errors="surrogateescape"))
