"""A package goes in; what a person, or a script, wants to know about it comes out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from edgewright.artifacts import strict_json
from edgewright.artifacts.json_text import Json
from edgewright.artifacts.manifest import GenerationDefaults, Manifest, Option, Tokenizer, Variant
from edgewright.artifacts.package import Package

_LABEL_WIDTH = 12
_EVIDENCE_LIMIT_BYTES = 16 << 20
_NODES_SHOWN = 5
_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")


@dataclass(frozen=True)
class Finding:
    """What one validation found; `max_error` is None where it was no number."""

    passed: bool
    max_error: float | None
    tolerance: float
    kernels: str
    reference: str

    def to_json(self) -> dict[str, Json]:
        return {
            "passed": self.passed,
            "max_error": self.max_error,
            "tolerance": self.tolerance,
            "kernels": self.kernels,
            "reference": self.reference,
        }


@dataclass(frozen=True)
class Summary:
    """Per-token and fixed bytes of state are one row's, in the first variant; each has its own."""

    name: str
    manifest: Manifest
    size_bytes: int
    file_count: int
    findings: Mapping[str, Finding] = field(default_factory=dict)

    @property
    def state_bytes_per_token(self) -> int:
        return self.manifest.variants[0].states.bytes_per_token

    @property
    def state_bytes_fixed(self) -> int:
        return self.manifest.variants[0].states.bytes_fixed

    def weight_bytes(self, variant: Variant) -> int:
        return sum(self.manifest.files[path].size for path in set(variant.weights))

    def to_json(self) -> dict[str, Json]:
        """What `inspect --json` prints. Keys are only ever added."""
        model, manifest = self.manifest.model, self.manifest
        return {
            "kind": "package",
            "name": self.name,
            "format_version": manifest.version,
            "architecture": model.architecture,
            "parameters": model.parameters,
            "bits_per_weight": model.bits_per_weight,
            "weight_dtypes": [*model.weight_dtypes],
            "layers": model.layers,
            "hidden_size": model.hidden_size,
            "vocab_size": model.vocab_size,
            "max_context": model.max_context,
            "size_bytes": self.size_bytes,
            "files": self.file_count,
            "state_bytes_per_token": self.state_bytes_per_token,
            "state_bytes_fixed": self.state_bytes_fixed,
            "variants": [self._variant_json(variant) for variant in manifest.variants],
            "tokenizer": strict_json.encode(manifest.tokenizer),
            "generation": strict_json.encode(manifest.generation),
            "provenance": strict_json.encode(manifest.provenance),
            "evidence": {name: self._evidence_json(name) for name in sorted(manifest.evidence)},
        }

    def _evidence_json(self, name: str) -> Json:
        entry, finding = self.manifest.evidence[name], self.findings.get(name)
        stored: dict[str, Json] = {"path": entry.path, "sha256": entry.sha256, "size": entry.size}
        return stored | (finding.to_json() if finding else {})

    def _variant_json(self, variant: Variant) -> Json:
        return {
            "name": variant.name,
            "provider": variant.provider,
            "bits_per_weight": variant.bits_per_weight,
            "weight_dtypes": [*variant.weight_dtypes],
            "weight_bytes": self.weight_bytes(variant),
            "compute_dtype": variant.compute_dtype,
            "state_bytes_per_token": variant.states.bytes_per_token,
            "state_bytes_fixed": variant.states.bytes_fixed,
            "opset": variant.opset,
            "ir_version": variant.ir_version,
            "onnxruntime_min": variant.onnxruntime_min,
            "libraries": [*sorted(variant.libraries)],
            "notes": [*variant.notes],
            "fallback": {role: [*nodes] for role, nodes in sorted(variant.fallback.items())},
        }


def summarise(package: Package) -> Summary:
    return Summary(
        name=package.root.name,
        manifest=package.manifest,
        size_bytes=package.size_bytes,
        file_count=len(package.entries) + 1,
        findings={
            name: finding
            for name, entry in package.manifest.evidence.items()
            if entry.size <= _EVIDENCE_LIMIT_BYTES
            and (finding := _finding(package.read_evidence(name), entry.path)) is not None
        },
    )


def _finding(data: bytes, source: str) -> Finding | None:
    """None where the evidence is of another kind than a validation's report."""
    report = strict_json.parse(data, source)
    if not isinstance(report, dict):
        return None
    passed, error, tolerance = (report.get(key) for key in ("passed", "max_error", "tolerance"))
    kernels, reference = report.get("kernels"), report.get("reference")
    if (
        isinstance(passed, bool)
        and (error is None or isinstance(error, float))
        and isinstance(tolerance, float)
        and isinstance(kernels, str)
        and isinstance(reference, str)
    ):
        return Finding(passed, error, tolerance, kernels, reference)
    return None


def render(summary: Summary) -> str:
    """The summary as a person would want to read it, ending in a newline."""
    manifest, model = summary.manifest, summary.manifest.model
    lines = [
        f"{summary.name}: {model.architecture}, {_count(model.parameters)} parameters, "
        f"{model.bits_per_weight:.4g} bits per weight",
        "",
        _row("Model", _model_line(manifest)),
        _row("Context", f"{model.max_context:,} tokens"),
        _row("State", _state_line(manifest.variants[0], model.max_context)),
        _row("Size", f"{size_text(summary.size_bytes)} in {summary.file_count:,} files"),
        _row("Tokenizer", _tokenizer_line(manifest.tokenizer)),
        _row("Generation", _generation_line(manifest.generation)),
        "",
    ]
    for variant in manifest.variants:
        lines += _variant_lines(variant, summary.weight_bytes(variant))
    lines += ["", *_provenance_lines(manifest), *_evidence_lines(summary)]
    return "\n".join(lines) + "\n"


def size_text(count: int) -> str:
    """Bytes in decimal units, as disks and file managers count them."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{count:,} bytes" if unit == 0 else f"{value:.3g} {_UNITS[unit]}"


def _count(count: int) -> str:
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:,}"


def _row(label: str, text: str) -> str:
    return f"{label:<{_LABEL_WIDTH}}{text}"


def _model_line(manifest: Manifest) -> str:
    model = manifest.model
    return (
        f"{model.parameters:,} parameters in {', '.join(model.weight_dtypes)}; "
        f"{_plural(model.layers, 'layer')}, hidden size {model.hidden_size:,}, "
        f"vocabulary {model.vocab_size:,}"
    )


def _state_line(variant: Variant, max_context: int) -> str:
    states = variant.states
    if not states.specs:
        return "none"
    dtypes = ", ".join(sorted({spec.dtype for spec in states}))
    parts = []
    if states.bytes_per_token:
        parts.append(f"{states.bytes_per_token:,} bytes per token")
    if states.bytes_fixed:
        parts.append(f"{states.bytes_fixed:,} bytes fixed")
    full = states.bytes_fixed + max_context * states.bytes_per_token
    return f"{' + '.join(parts)} ({dtypes}); {size_text(full)} at the full context"


def _tokenizer_line(tokenizer: Tokenizer | None) -> str:
    if tokenizer is None:
        return "none: prompts must be token ids"
    parts = [", ".join(path.rsplit("/", 1)[-1] for path in tokenizer.files)]
    templates = sorted(tokenizer.chat_templates)
    if templates:
        parts.append(f"chat template{'s' * (len(templates) > 1)} {', '.join(templates)}")
    shown = [f"{_key(k)} {_quoted(v)}" for k, v in sorted(tokenizer.special_tokens.items())]
    return "; ".join(parts + ([", ".join(shown)] if shown else []))


def _key(name: str) -> str:
    return name.removesuffix("_token")


def _quoted(text: str) -> str:
    return text if text.isprintable() and " " not in text else json.dumps(text)


def _generation_line(defaults: GenerationDefaults) -> str:
    asked = {
        "temperature": defaults.temperature,
        "top_k": defaults.top_k,
        "top_p": defaults.top_p,
        "min_p": defaults.min_p,
        "repetition_penalty": defaults.repetition_penalty,
    }
    settings = [f"{name} {value:g}" for name, value in asked.items() if value is not None]
    manner = "sampled" if defaults.do_sample else "greedy"
    ends = ", ".join(str(token) for token in defaults.eos_token_ids) or "nothing"
    return f"{', '.join([manner, *settings])}; stops at {ends}"


def _variant_lines(variant: Variant, weight_bytes: int) -> Iterator[str]:
    provider = "" if variant.provider == variant.name else f" for {variant.provider}"
    yield _row(
        "Variant",
        f"{variant.name}{provider}: weights {', '.join(variant.weight_dtypes)} "
        f"({size_text(weight_bytes)}, {variant.bits_per_weight:.4g} bits each), "
        f"arithmetic {variant.compute_dtype}",
    )
    libraries = ", ".join(sorted(variant.libraries)) or "none"
    yield _row("", f"libraries for {libraries}")
    yield _row(
        "",
        f"ONNX Runtime {variant.onnxruntime_min} or newer, opset {variant.opset}, "
        f"IR {variant.ir_version}",
    )
    for note in variant.notes:
        yield _row("", _line(note))
    for role, nodes in sorted(variant.fallback.items()):
        named = ", ".join(nodes[:_NODES_SHOWN]) + (", ..." if len(nodes) > _NODES_SHOWN else "")
        yield _row("", f"{role}: left to the processor, {_plural(len(nodes), 'node')}: {named}")


def _provenance_lines(manifest: Manifest) -> Iterator[str]:
    provenance = manifest.provenance
    made = (
        f"{provenance.checkpoint or 'a checkpoint'} (sha256 {provenance.checkpoint_sha256[:12]}…)"
    )
    yield _row("Made from", made)
    yield _row("Made with", ", ".join(f"{k} {v}" for k, v in sorted(provenance.versions.items())))
    options = [f"{name}={_option(value)}" for name, value in sorted(provenance.options.items())]
    yield _row("Options", " ".join(options) or "none")


def _option(value: Option) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _evidence_lines(summary: Summary) -> Iterator[str]:
    evidence = summary.manifest.evidence
    if not evidence:
        yield _row("Evidence", "none: run edgewright validate to measure it against its checkpoint")
    label = "Evidence"
    for name, entry in sorted(evidence.items()):
        finding = summary.findings.get(name)
        if finding is None:
            yield _row(label, f"{name} ({size_text(entry.size)})")
        else:
            verdict = "passed" if finding.passed else "FAILED"
            error = "not a number" if finding.max_error is None else f"{finding.max_error:.2g}"
            yield _row(
                label,
                f"{name}: {verdict}, largest error {error} where {finding.tolerance:g} is allowed,",
            )
            against = _line(finding.reference)
            yield _row("", f"{_line(finding.kernels)} kernels against {against}")
        label = ""


def _line(text: str, limit: int = 120) -> str:
    """The text of a package's file, fit for a terminal."""
    shown = text if text.isprintable() else json.dumps(text)
    return shown if len(shown) <= limit else f"{shown[:limit]}…"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
