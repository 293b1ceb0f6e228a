"""Manifest: everything a package says about itself, to and from the bytes of manifest.json.

A field is added, or its meaning changed, only together with FORMAT_VERSION.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from edgewright.artifacts import strict_json
from edgewright.artifacts.errors import PackageError
from edgewright.artifacts.json_text import Json
from edgewright.artifacts.package_paths import PackagePath, check_together
from edgewright.artifacts.states import StateLayout
from edgewright.artifacts.strict_json import WHOLE_LIMIT, Items, Range, Text

FORMAT: Final = "edgewright-package"
FORMAT_VERSION: Final = 4
MANIFEST_NAME = "manifest.json"
BLOB_PREFIX = "shared_assets/sha256-"
EVIDENCE_PREFIX = "evidence/"

Count = Annotated[int, Range(0, WHOLE_LIMIT)]
Positive = Annotated[int, Range(1, WHOLE_LIMIT)]
TokenId = Annotated[int, Range(0, (1 << 31) - 1)]
Name = Annotated[str, Text(128, r"[A-Za-z0-9][A-Za-z0-9._+-]*", "a plain name")]
Line = Annotated[str, Text(1024, r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]*", "one line of text")]
Token = Annotated[str, Text(1024)]
Sha256 = Annotated[str, Text(64, r"[0-9a-f]{64}", "a lower-case sha256")]
ProviderName = Annotated[
    str, Text(128, r"[a-z0-9][a-z0-9-]*(:[a-z0-9][a-z0-9._-]*)?", "a provider's name")
]
Release = Annotated[str, Text(32, r"[0-9]+(\.[0-9]+){1,3}", "a release such as 1.31")]
GraphRole = Literal["step", "prefill", "decode"]
NodeNames = Annotated[tuple[Line, ...], Items(0, 65536)]
Option = (
    None | bool | Annotated[int, Range(-WHOLE_LIMIT, WHOLE_LIMIT)] | float | Line | tuple[Line, ...]
)


@dataclass(frozen=True)
class FileEntry:
    """What a file must be."""

    sha256: Sha256
    size: Count


@dataclass(frozen=True)
class ModelInfo:
    """`architecture` is the checkpoint's model_type; bits and dtypes are the first variant's."""

    architecture: Name
    parameters: Positive
    bits_per_weight: Annotated[float, Range(0, 64)]
    weight_dtypes: Annotated[tuple[Name, ...], Items(1, 64)]
    vocab_size: Positive
    layers: Positive
    hidden_size: Positive
    max_context: Positive


@dataclass(frozen=True)
class GenerationDefaults:
    """What the checkpoint asks for when the caller says nothing; None: it says nothing either."""

    eos_token_ids: Annotated[tuple[TokenId, ...], Items(0, 1024)] = ()
    bos_token_id: TokenId | None = None
    pad_token_id: TokenId | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, Range(0, 1e6)] | None = None
    top_k: Count | None = None
    top_p: Annotated[float, Range(0, 1)] | None = None
    min_p: Annotated[float, Range(0, 1)] | None = None
    repetition_penalty: Annotated[float, Range(0, 1e6)] | None = None


@dataclass(frozen=True)
class Tokenizer:
    """`definition` is tokenizer.json; the special tokens are those that chat templates name."""

    definition: PackagePath
    files: Annotated[tuple[PackagePath, ...], Items(1, 256)]
    chat_templates: Annotated[Mapping[Name, PackagePath], Items(0, 64)]
    special_tokens: Annotated[Mapping[Name, Token], Items(0, 64)]

    def paths(self) -> Iterator[str]:
        yield self.definition
        yield from self.files
        yield from self.chat_templates.values()

    @property
    def chat_template(self) -> str | None:
        return self.chat_templates.get("default")


@dataclass(frozen=True)
class StaticSizes:
    """What graphs of fixed shapes take of a row: the tokens of a prefill, and those of a state."""

    chunk: Positive
    capacity: Positive


@dataclass(frozen=True)
class CompiledGraph:
    """One graph compiled ahead: an ONNX file that names the binary beside it."""

    graph: PackagePath
    binary: PackagePath
    seconds: Annotated[float, Range(0, 1e9)]


@dataclass(frozen=True)
class Compiled:
    """What a variant's graphs became for one system on a chip, whose number and architecture are
    Qualcomm's. `compatibility` is what the execution provider says of it in its own words;
    `versions` are those of what compiled."""

    soc_model: Positive
    htp_arch: Positive
    graphs: Annotated[Mapping[GraphRole, CompiledGraph], Items(1, 2)]
    compatibility: Line
    versions: Annotated[Mapping[Name, Line], Items(1, 16)]

    def paths(self) -> Iterator[str]:
        for compiled in self.graphs.values():
            yield compiled.graph
            yield compiled.binary


@dataclass(frozen=True)
class Variant:
    """One way to run the model. Graphs: `step` does both, or `prefill` and `decode` share it, then
    with the sizes that both are fixed to.

    `bits_per_weight` is the mean over all parameters as this variant has them, scales and all.
    `fallback` names the nodes of each graph that the provider does not take: the processor does.
    `notes` are what whoever runs it has to know, each a line.
    """

    name: Name
    provider: ProviderName
    graphs: Annotated[Mapping[GraphRole, PackagePath], Items(1, 2)]
    opset: Annotated[int, Range(1, 1000)]
    ir_version: Annotated[int, Range(1, 1000)]
    onnxruntime_min: Release
    libraries: Annotated[Mapping[Name, PackagePath], Items(0, 64)]
    weights: tuple[PackagePath, ...]
    states: StateLayout
    bits_per_weight: Annotated[float, Range(0, 64)]
    weight_dtypes: Annotated[tuple[Name, ...], Items(1, 64)]
    compute_dtype: Name
    static: StaticSizes | None = None
    fallback: Annotated[Mapping[GraphRole, NodeNames], Items(0, 2)] = field(default_factory=dict)
    notes: Annotated[tuple[Line, ...], Items(0, 16)] = ()
    compiled: Compiled | None = None

    def paths(self) -> Iterator[str]:
        """Every file this variant needs, each once it is named."""
        yield from self.graphs.values()
        yield from self.libraries.values()
        yield from self.weights
        if self.compiled is not None:
            yield from self.compiled.paths()


@dataclass(frozen=True)
class Evidence:
    """A measurement that validation stored; the file's name holds its hash."""

    path: PackagePath
    sha256: Sha256
    size: Count


@dataclass(frozen=True)
class Provenance:
    """Where the package came from: the checkpoint, what made it, and how it was asked for."""

    checkpoint: Line
    checkpoint_sha256: Sha256
    versions: Annotated[Mapping[Name, Line], Items(1, 64)]
    options: Annotated[Mapping[Name, Option], Items(0, 256)]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a package says about itself; `files` and `evidence` are filled in by the writer."""

    format: Literal["edgewright-package"] = FORMAT
    version: Literal[4] = FORMAT_VERSION
    model: ModelInfo
    generation: GenerationDefaults
    tokenizer: Tokenizer | None
    variants: Annotated[tuple[Variant, ...], Items(1, 256)]
    provenance: Provenance
    files: Mapping[PackagePath, FileEntry] = field(default_factory=dict)
    evidence: Annotated[Mapping[Name, Evidence], Items(0, 1024)] = field(default_factory=dict)

    def variant(self, name: str) -> Variant:
        for variant in self.variants:
            if variant.name == name:
                return variant
        known = ", ".join(variant.name for variant in self.variants)
        raise PackageError(f"the package has no variant {name!r}; it has {known}")

    def to_bytes(self) -> bytes:
        return strict_json.dump(self)

    @classmethod
    def from_bytes(cls, data: bytes, source: str = MANIFEST_NAME) -> Manifest:
        parsed = strict_json.parse(data, source)
        _check_version(parsed, source)
        manifest = strict_json.decode(cls, _upgraded(parsed), source)
        try:
            _check_references(manifest)
        except PackageError as error:
            raise PackageError(f"{source}: {error}") from None
        return manifest


def _check_version(parsed: Json, source: str) -> None:
    if not isinstance(parsed, dict) or parsed.get("format") != FORMAT:
        raise PackageError(f'{source}: not an Edgewright manifest ("format" is not "{FORMAT}")')
    version = parsed.get("version")
    if type(version) is int and version > FORMAT_VERSION:
        raise PackageError(
            f"{source}: format version {version}; this Edgewright reads up to {FORMAT_VERSION}: "
            "install a newer one"
        )


def _upgraded(parsed: Json) -> Json:
    """Version 1 had the bits of the model alone: every variant kept the checkpoint's values. Up to
    version 2 no graph was static, up to version 3 none was compiled, no node fell back and there
    were no notes."""
    if not isinstance(parsed, dict) or type(parsed.get("version")) is not int:
        return parsed
    model, variants = parsed.get("model"), parsed.get("variants")
    if parsed["version"] not in (1, 2, 3) or not isinstance(variants, list):
        return parsed
    missing: dict[str, Json] = {"static": None, "fallback": {}, "notes": [], "compiled": None}
    if parsed["version"] == 1 and isinstance(model, dict) and "bits_per_weight" in model:
        missing["bits_per_weight"] = model["bits_per_weight"]
    added = [missing | variant if isinstance(variant, dict) else variant for variant in variants]
    return parsed | {"version": FORMAT_VERSION, "variants": added}


def _check_references(manifest: Manifest) -> None:
    evidence = [entry.path for entry in manifest.evidence.values()]
    check_together([MANIFEST_NAME, *manifest.files, *evidence])
    _check_distinct("variants", [variant.name for variant in manifest.variants])
    _check_distinct("evidence paths", evidence)
    for path in evidence:
        if not path.startswith(EVIDENCE_PREFIX) or path in manifest.files:
            raise PackageError(f"evidence at {path}; it must lie below {EVIDENCE_PREFIX}, once")
    needed = [(f"variant {v.name}", path) for v in manifest.variants for path in v.paths()]
    if manifest.tokenizer is not None:
        needed += [("the tokenizer", path) for path in manifest.tokenizer.paths()]
    for who, path in needed:
        if path not in manifest.files:
            raise PackageError(f"{who} needs {path}, which files does not list")
    for path, entry in manifest.files.items():
        if path.startswith(BLOB_PREFIX) and path != BLOB_PREFIX + entry.sha256:
            raise PackageError(f"{path} is listed with the sha256 {entry.sha256}")
    for variant in manifest.variants:
        _check_variant(variant)


def _check_variant(variant: Variant) -> None:
    if set(variant.graphs) not in ({"step"}, {"prefill", "decode"}):
        raise PackageError(f"variant {variant.name}: step, or prefill and decode, are required")
    if (variant.static is None) != (set(variant.graphs) == {"step"}):
        raise PackageError(
            f"variant {variant.name}: static sizes are required with prefill and decode, and with"
            " them alone"
        )
    if variant.static is not None and variant.static.chunk > variant.static.capacity:
        raise PackageError(
            f"variant {variant.name}: a chunk of {variant.static.chunk} tokens does not fit a"
            f" capacity of {variant.static.capacity}"
        )
    if variant.compiled is not None and set(variant.compiled.graphs) != set(variant.graphs):
        raise PackageError(f"variant {variant.name}: all of its graphs are compiled, or none")
    _check_distinct(f"variant {variant.name}: states", [spec.name for spec in variant.states])
    for spec in variant.states:
        rest = spec.shape[1:]
        if spec.shape[0] != "batch" or "batch" in rest or rest.count("capacity") > 1:
            raise PackageError(
                f"variant {variant.name}: state {spec.name} has the shape {list(spec.shape)}; "
                "batch first, and at most one capacity, are required"
            )


def _check_distinct(what: str, names: list[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise PackageError(f"{what}: {name} appears {count} times")
