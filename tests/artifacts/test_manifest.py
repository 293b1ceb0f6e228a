"""Manifests: the same bytes every time, the published schema, and every way to be wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgewright import artifacts
from edgewright.artifacts import Evidence, FileEntry, Manifest, Package, StateSpec
from edgewright.artifacts.errors import PackageError
from edgewright.artifacts.json_schema import manifest_schema, schema_bytes
from edgewright.artifacts.manifest import GraphRole, StaticSizes

GOLDEN = Path(__file__).with_name("golden_manifest.json")
SCHEMA = Path(next(iter(artifacts.__path__))) / "manifest.schema.json"
GRAPH = "variants/cpu/model.onnx"
MANY = 100_001
WORDS = (b"null", b"-1", b"1e400", b"[]", b"{}", b'"\\ud800"', b"true", b"9" * 50)

# Each edit gets the parsed golden manifest, and the error must say what the pattern says.
Edit = Callable[[Any], object]


def _set(*path: str | int, to: object) -> Edit:
    def edit(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = to

    return edit


def _drop(*path: str | int) -> Edit:
    def edit(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        del document[path[-1]]

    return edit


def _rename_graph(to: str) -> Edit:
    def edit(document: Any) -> None:
        document["files"][to] = document["files"].pop(GRAPH)
        document["variants"][0]["graphs"]["step"] = to

    return edit


def _add_file(path: str) -> Edit:
    return _set("files", path, to={"sha256": "0" * 64, "size": 0})


def _static(**sizes: int) -> Edit:
    def edit(document: Any) -> None:
        graphs = {"prefill": GRAPH, "decode": GRAPH}
        document["variants"][0] |= {"graphs": graphs, "static": sizes}

    return edit


STATE = ("variants", 0, "states", "specs", 0)
WRONG_FIELDS: list[tuple[Edit, str]] = [
    (_set("format", to="something"), '"format" is not "edgewright-package"'),
    (_drop("format"), '"format" is not "edgewright-package"'),
    (_set("version", to=5), "format version 5; this Edgewright reads up to 4"),
    (_set("version", to=0), "version is 0; 4 is required"),
    (_set("version", to=True), "version is true; 4 is required"),
    (_set("version", to="1"), 'version is "1"; 4 is required'),
    (_drop("version"), "version is missing"),
    (_drop("model"), "model is missing"),
    (_drop("model", "layers"), "model.layers is missing"),
    (_set("surprise", to=1), "surprise is not a field of this format version"),
    (_set("model", "colour", to=1), "model.colour is not a field"),
    (_set("model", to=[]), "model is a list; an object is required"),
    (_set("model", to=None), "model is null; an object is required"),
    (_set("model", "layers", to="12"), 'model.layers is "12"; a whole number is required'),
    (_set("model", "layers", to=True), "model.layers is true; a whole number is required"),
    (_set("model", "layers", to=0), "model.layers is 0; 1 to 9007199254740991 is required"),
    (_set("model", "layers", to=1 << 60), f"model.layers is {1 << 60}"),
    (_set("model", "bits_per_weight", to=-1), "model.bits_per_weight is -1; 0 to 64 is required"),
    (_set("model", "bits_per_weight", to="4"), "model.bits_per_weight .* a number is required"),
    (_set("model", "weight_dtypes", to=[]), "model.weight_dtypes has 0 entries; 1 to 64"),
    (_set("model", "weight_dtypes", to={}), "model.weight_dtypes is an object; a list is required"),
    (_set("model", "architecture", to="a/b"), 'model.architecture is "a/b", .* not a plain name'),
    (_set("model", "architecture", to="a" * 129), "model.architecture has 129 characters"),
    (_set("model", "architecture", to="a\n"), "model.architecture is .* not a plain name"),
    (_set("generation", "eos_token_ids", to=[2, -1]), r"generation.eos_token_ids\[1\] is -1"),
    (_set("generation", "eos_token_ids", to=2), "generation.eos_token_ids is 2; a list"),
    (_set("generation", "bos_token_id", to="1"), "generation.bos_token_id .* a whole number"),
    (_set("generation", "top_p", to=1.5), "generation.top_p is 1.5; 0 to 1 is required"),
    (_set("tokenizer", to=1), "tokenizer is 1; an object is required"),
    (_set("variants", to=[]), "variants has 0 entries; 1 to 256 are required"),
    (_set("variants", to={}), "variants is an object; a list is required"),
    (_set("variants", 0, to=None), r"variants\[0\] is null; an object is required"),
    (_set("variants", 0, "graphs", to={}), r"variants\[0\].graphs has 0 entries"),
    (_set("variants", 0, "graphs", "other", to=GRAPH), r"graphs.* the key \"other\" is \"other\""),
    (_static(chunk=0, capacity=8), r"static.chunk is 0; 1 to"),
    (_set("variants", 0, "static", to=8), r"variants\[0\].static is 8; an object"),
    (_drop("variants", 0, "static"), r"variants\[0\].static is missing"),
    (_set("variants", 0, "bits_per_weight", to=65), r"bits_per_weight is 65; 0 to 64 is required"),
    (_drop("variants", 0, "bits_per_weight"), r"variants\[0\].bits_per_weight is missing"),
    (_set("variants", 0, "provider", to="CPU"), "not a provider's name"),
    (_set("variants", 0, "onnxruntime_min", to="new"), "not a release such as 1.31"),
    (_set("variants", 0, "weights", to=[GRAPH] * MANY), f"weights has {MANY} entries"),
    (_set(*STATE, "dtype", to="float64"), '"float32" or "float16" or "int8" is required'),
    (_set(*STATE, "growth", to=None), r"specs\[0\].growth is null"),
    (_set(*STATE, "shape", to=[]), r"specs\[0\].shape has 0 entries; 1 to 8"),
    (_set(*STATE, "shape", to=["batch", 0]), r"specs\[0\].shape\[1\] is 0"),
    (_set(*STATE, "shape", to=["batch", "depth"]), r'specs\[0\].shape\[1\] is "depth"'),
    (_set(*STATE, "name", to="../key"), "not a dotted name"),
    (_set("files", to=[]), "files is a list; an object is required"),
    (_set("files", GRAPH, "size", to=-1), f'files\\["{GRAPH}"\\].size is -1'),
    (_set("files", GRAPH, "sha256", to="A" * 64), "not a lower-case sha256"),
    (_set("files", GRAPH, "sha256", to="0" * 63), "not a lower-case sha256"),
    (_set("provenance", "versions", to={}), "provenance.versions has 0 entries"),
    (_set("provenance", "checkpoint", to="a\nb"), "not one line of text"),
    (_set("provenance", "checkpoint", to="a\x9b2Jb"), "not one line of text"),
    (_set("provenance", "options", "deep", to={}), r"provenance.options\[\"deep\"\] is an object"),
    (_set("provenance", "options", "deep", to=[[]]), r"provenance.options\[\"deep\"\] is a list"),
    (_set("evidence", "a/b", to={}), 'evidence: the key "a/b"'),
]
# What a schema cannot say: references between fields, half surrogates, and that 12.0 is no 12.
WRONG_REFERENCES: list[tuple[Edit, str]] = [
    (_set("model", "layers", to=12.0), "model.layers is 12.0; a whole number is required"),
    (_set("tokenizer", "definition", to="gone.json"), "the tokenizer needs gone.json"),
    (_set("tokenizer", "special_tokens", "bos_token", to="\ud800"), "half a surrogate pair"),
    (_set("variants", 0, "graphs", to={"decode": GRAPH}), "step, or prefill and decode"),
    (_set("variants", 0, "static", to={"chunk": 4, "capacity": 8}), "static sizes are required"),
    (_set("variants", 0, "graphs", to={"prefill": GRAPH, "decode": GRAPH}), "static sizes are"),
    (_static(chunk=9, capacity=8), "a chunk of 9 tokens does not fit a capacity of 8"),
    (_set("variants", 0, "weights", to=["shared_assets/gone"]), "needs shared_assets/gone, which"),
    (_set("variants", 0, "libraries", "wasm", to="lib/x"), "needs lib/x, which files does not"),
    (lambda d: d["variants"].append(d["variants"][0]), "variants: cpu appears 2 times"),
    (_set(*STATE, "shape", to=["capacity", 2]), "batch first, and at most one capacity"),
    (_set(*STATE, "shape", to=["batch", "capacity", "capacity"]), "at most one capacity"),
    (_set(*STATE, "name", to="layers.0.value"), "states: layers.0.value appears 2 times"),
    (_drop("files", GRAPH), f"variant cpu needs {GRAPH}, which files does not list"),
    (_add_file("shared_assets/sha256-" + "1" * 64), "is listed with the sha256 0000"),
    (_add_file("Variants/CPU/model.onnx"), "differ only in case"),
    (_add_file("MANIFEST.json"), "differ only in case"),
    (_add_file("variants/cpu"), "variants/cpu is both a file and a folder"),
    (_set("evidence", "cpu", "path", to=GRAPH), "it must lie below evidence/"),
]
PATHS = [
    "",
    ".",
    "..",
    "../up",
    "a/../../up",
    "a/./b",
    "a//b",
    "a/",
    "/etc/passwd",
    "//server/share",
    "C:/x",
    "C:x",
    "a\\b",
    "..\\up",
    "\\\\server\\share",
    "a/.hidden",
    "a/trailing.",
    "a/trailing ",
    " a",
    "a:stream",
    "nul",
    "a/CON",
    "a/com1.txt",
    "Aux.json/b",
    "~/x",
    "a\0b",
    "a\nb",
    "a%2fb*",
    "é",
    "a" * 241,
    "a/b/c/d/e/f/g/h/i",
]


@pytest.fixture
def golden() -> Any:
    return json.loads(GOLDEN.read_bytes())


def _bytes(document: object) -> bytes:
    return json.dumps(document).encode()


def test_golden_bytes(package: Package) -> None:
    evidence = Evidence("evidence/cpu-44136fa355b3.json", "44" * 32, 2)
    manifest = replace(package.manifest, evidence={"cpu": evidence})
    assert manifest.to_bytes() == GOLDEN.read_bytes()
    assert Manifest.from_bytes(GOLDEN.read_bytes()) == manifest


_SINCE_VERSION_3 = ("fallback", "notes", "compiled")


def _drop_since(golden: Any, *fields: str) -> None:
    for name in fields:
        del golden["variants"][0][name]


def test_a_manifest_of_version_1_is_read(golden: Any) -> None:
    """It had the model's bits alone, and they were every variant's."""
    wanted = Manifest.from_bytes(_bytes(golden))
    golden["version"] = 1
    del golden["variants"][0]["bits_per_weight"]
    _drop_since(golden, "static", *_SINCE_VERSION_3)
    assert Manifest.from_bytes(_bytes(golden)) == wanted


def test_a_manifest_of_version_2_is_read(golden: Any) -> None:
    """Its graphs were made for any size."""
    wanted = Manifest.from_bytes(_bytes(golden))
    golden["version"] = 2
    _drop_since(golden, "static", *_SINCE_VERSION_3)
    assert Manifest.from_bytes(_bytes(golden)) == wanted


def test_a_manifest_of_version_3_is_read(golden: Any) -> None:
    """No node fell back, and nothing was compiled or noted."""
    wanted = Manifest.from_bytes(_bytes(golden))
    golden["version"] = 3
    _drop_since(golden, *_SINCE_VERSION_3)
    assert Manifest.from_bytes(_bytes(golden)) == wanted


def test_what_is_absent_is_written_as_null_and_read_again(package: Package) -> None:
    manifest = replace(package.manifest, tokenizer=None)
    again = Manifest.from_bytes(manifest.to_bytes())
    assert again == manifest
    assert again.tokenizer is None


def test_two_variants_share_blobs_and_split_their_graphs(package: Package) -> None:
    first = package.manifest.variants[0]
    graphs: dict[GraphRole, str] = {"prefill": GRAPH, "decode": GRAPH}
    sizes = StaticSizes(chunk=64, capacity=2048)
    second = replace(first, name="qnn-sm8650", provider="qnn:sm8650", graphs=graphs, static=sizes)
    manifest = replace(package.manifest, variants=(first, second))
    assert Manifest.from_bytes(manifest.to_bytes()).variant("qnn-sm8650") == second
    with pytest.raises(PackageError, match="no variant 'gpu'; it has cpu, qnn-sm8650"):
        manifest.variant("gpu")


def test_published_schema_is_that_of_the_dataclasses() -> None:
    assert SCHEMA.read_bytes() == schema_bytes(), (
        "run: python -m edgewright.artifacts.json_schema > artifacts/manifest.schema.json"
    )


def test_published_schema_takes_the_golden_manifest(golden: Any) -> None:
    schema = json.loads(SCHEMA.read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(golden, schema, jsonschema.Draft202012Validator)


def test_schema_refuses_what_the_reader_refuses(golden: Any) -> None:
    validator = jsonschema.Draft202012Validator(manifest_schema())
    edits = [edit for edit, _ in WRONG_FIELDS] + [_rename_graph(path) for path in PATHS]
    for number, edit in enumerate(edits):
        document = json.loads(json.dumps(golden))
        edit(document)
        assert not validator.is_valid(document), number
    for number, (edit, _) in enumerate(WRONG_REFERENCES):
        document = json.loads(json.dumps(golden))
        edit(document)
        assert validator.is_valid(document), number


@pytest.mark.parametrize(("edit", "message"), WRONG_FIELDS + WRONG_REFERENCES)
def test_wrong_field_is_named_in_one_line(golden: Any, edit: Edit, message: str) -> None:
    edit(golden)
    with pytest.raises(PackageError, match=message) as caught:
        Manifest.from_bytes(_bytes(golden), "p/manifest.json")
    assert str(caught.value).startswith("p/manifest.json: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("path", PATHS)
def test_path_that_is_not_plain_is_refused(golden: Any, path: str) -> None:
    _rename_graph(path)(golden)
    with pytest.raises(PackageError, match=r"plain path inside the package|characters; at most"):
        Manifest.from_bytes(_bytes(golden))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b"null", '"format" is not'),
        (b"[]", '"format" is not'),
        (b"{} {}", "not valid JSON"),
        (b'{"format": "edgewright-package", "version": 1', "not valid JSON .* line 1 column"),
        (b'\xff{"format": 1}', "not UTF-8 text at byte 0"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b'{"version": NaN}', "NaN is not JSON"),
        (b'{"version": -Infinity}', "-Infinity is not JSON"),
        (b'{"version": 1, "format": 2, "version": 3}', "the key version appears twice"),
        (b'{"a": {"b": 1, "b": 1}}', "the key b appears twice"),
        (b'{"version": ' + b"9" * 100_000 + b"}", "a number of 100000 digits"),
        (b"[" * 200_000, "nested too deeply|not valid JSON"),
        (b'{"a":' * 200_000, "nested too deeply|not valid JSON"),
        (GOLDEN.read_bytes().replace(b"16.0", b"1e999"), "is too large"),
    ],
)
def test_wrong_bytes_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(PackageError, match=message) as caught:
        Manifest.from_bytes(data)
    assert "\n" not in str(caught.value)


def test_every_truncation_is_refused() -> None:
    data = GOLDEN.read_bytes().rstrip()
    for length in range(0, len(data), 7):
        with pytest.raises(PackageError):
            Manifest.from_bytes(data[:length])


def test_mutated_manifests_never_crash() -> None:
    """Whatever the bytes: a manifest that can be written and read again, or a PackageError."""
    chance = random.Random(20)
    golden = GOLDEN.read_bytes()
    read = 0
    for _ in range(3000):
        data = bytearray(golden)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            match chance.randrange(5):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randint(1, 40)]
                case 2:
                    data[at:at] = data[at : at + chance.randint(1, 40)]
                case 3:
                    words = (
                        b"null",
                        b"-1",
                        b"1e400",
                        b"[]",
                        b"{}",
                        b'"\\ud800"',
                        b"true",
                        b"9" * 50,
                    )
                    data[at : at + chance.randint(0, 4)] = chance.choice(words)
                case _:
                    data[at] = chance.choice(b'{}[]",:0123456789.e-\\/')
        try:
            manifest = Manifest.from_bytes(bytes(data))
        except PackageError as error:
            assert "\n" not in str(error)
            continue
        read += 1
        assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert read > 20  # the mutations are not all so coarse that nothing gets through


def test_mutated_fields_never_crash(golden: Any) -> None:
    chance = random.Random(21)
    values: list[object] = [None, True, -1, 0, 1 << 70, 1.5, "", "x", "\ud800", "a/b", [], [[]], {}]
    for _ in range(3000):
        document = json.loads(json.dumps(golden))
        node = document
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = chance.choice(keys)
            below = node[key]
            if not isinstance(below, dict | list) or not below or chance.random() < 0.1:
                break
            node = below
        node[key] = chance.choice(values)
        try:
            Manifest.from_bytes(_bytes(document))
        except PackageError as error:
            assert "\n" not in str(error)


def test_bytes_of_state_follow_from_the_layout(package: Package) -> None:
    states = Manifest.from_bytes(package.manifest.to_bytes()).variants[0].states
    assert states.bytes_per_token == 4 * 2 * 8 * 4
    assert states.bytes_fixed == 16 * 3 * 2
    assert states.specs[0] == StateSpec(
        "layers.0.key", ("batch", 2, "capacity", 8), "float32", "append"
    )
    assert package.manifest.files[GRAPH] == FileEntry(
        "26d0900dac51fc6d16dfda2b932b2eeb10c2b3c1517d6e6365e224d05c23fcc3", 11
    )
