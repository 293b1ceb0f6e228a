"""Five tiny models of random weights go in; packages of them for every provider come out, and what
transformers, and the processor, make of the same tokens."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np

from edgewright.artifacts.manifest import MANIFEST_NAME
from edgewright.artifacts.package import Package
from lab.case import Array

ROOT = Path(__file__).parents[1]
MODELS = {
    "llama": "Llama-like",
    "minicpm3": "latent attention (MLA)",
    "mamba": "Mamba",
    "bamba": "Mamba-2 hybrid",
    "qwen3.5-text": "gated-delta hybrid",
}
# What a package's weights are, and how many bits each may take, overhead of small matrices and all.
WEIGHTS: Mapping[str, float | None] = {"float16": None, "4 bits": 5.5}
TOKENS, PROMPT = 20, 13
QUANTISED_WITHIN = 1e-2
_TARGETS = ("linux-x86_64", "linux-aarch64", "windows-x86_64")


@dataclass(frozen=True)
class Reference:
    """Logits [TOKENS - PROMPT + 1, vocabulary] after the prompt and after each other token, what is
    chosen one after the other from there, and how far away from these logits others may be."""

    logits: Array
    tokens: tuple[int, ...]
    allowed: float


@dataclass(frozen=True)
class Made:
    """`wanted` by weights and provider."""

    name: str
    ids: tuple[int, ...]
    packages: Mapping[str, Path]
    wanted: Mapping[tuple[str, str], Reference]


def make(name: str, providers: Mapping[str, Sequence[str]], folder: Path) -> Made:
    """`providers` of each of WEIGHTS; each package has one variant for each of them."""
    sys.path.insert(0, str(ROOT))
    from edgewright.export import export_checkpoint
    from tests import model_zoo as zoo

    checkpoint = zoo.write_checkpoint(name, folder, "float16")
    ids = zoo.prompt(name, TOKENS)
    packages, wanted = {}, {}
    exact, half_error = _by_transformers(checkpoint, ids)
    for weights, asked in providers.items():
        chosen = sorted({"cpu-portable", *asked})
        packages[weights] = root = folder / f"{name} of {weights}"
        bits = WEIGHTS[weights]
        how = Rounding(method="rtn", outliers=0.0) if bits else Rounding()
        package = export_checkpoint(checkpoint, root, chosen, bits, targets=_TARGETS, **how)
        known: dict[str, Reference] = {}
        for variant in package.manifest.variants:
            # Our own op rounds what it multiplies, in its function body as in its kernel.
            alike = "cpu" if variant.provider == "cpu" else "cpu-portable"
            if alike not in known:
                known[alike] = exact if bits is None else _on_processor(root, alike, ids, folder)
            right = known[alike]
            within = right.allowed
            if variant.compute_dtype == "float16":
                within = max(within, 2 * half_error)
            wanted[weights, variant.provider] = replace(right, allowed=within)
    return Made(name, tuple(ids), packages, wanted)


class Rounding(TypedDict, total=False):
    method: str
    outliers: float


def _by_transformers(checkpoint: Path, ids: list[int]) -> tuple[Reference, float]:
    """In float32, and how far away torch is in float16."""
    import torch

    from tests import model_zoo as zoo

    exact = zoo.reference_logits(checkpoint, ids)[PROMPT - 1 :]
    chain = ids[:PROMPT]
    for _ in range(len(exact)):
        chain.append(int(zoo.reference_logits(checkpoint, chain)[-1].argmax()))
    with torch.no_grad():
        half = zoo.reference_model(checkpoint).half()
        rounded = half(torch.tensor([ids]), use_cache=False).logits[0].float()[PROMPT - 1 :]
    zoo.reference_model.cache_clear()
    return (
        Reference(exact.numpy(), tuple(chain[PROMPT:]), zoo.TOLERANCE),
        zoo.error(rounded, exact),
    )


def _on_processor(package: Path, variant: str, ids: list[int], folder: Path) -> Reference:
    """What the package's own bits give on the processor of this machine in float32, without kernels
    of ours."""
    from edgewright.runtime import Session

    session = Session.open(_without_kernels(package, variant, folder), threads=1)
    rows = [session.prefill(ids[:PROMPT])[0]]
    rows += [session.decode(token)[0] for token in ids[PROMPT:]]
    tokens = session.generate(ids[:PROMPT], max_new_tokens=len(rows), stop_ids=())
    return Reference(np.stack(rows), tuple(tokens), QUANTISED_WITHIN)


def _without_kernels(package: Path, variant: str, folder: Path) -> Path:
    """The package with that variant alone, and no library."""
    manifest = Package.open(package).manifest
    plain = replace(manifest.variant(variant), libraries={})
    target = folder / f"{package.name} as {variant}"
    for path in manifest.files:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        os.link(package / path, target / path)
    bare = replace(manifest, variants=(plain,), evidence={})
    (target / MANIFEST_NAME).write_bytes(bare.to_bytes())
    return target
