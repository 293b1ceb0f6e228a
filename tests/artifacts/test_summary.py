"""Summaries: the page a person reads and the keys a script reads."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from edgewright.artifacts import GenerationDefaults, Manifest, Package, StateLayout
from edgewright.artifacts.summary import render, size_text, summarise

PAGE = """\
package: llama, 3,048 parameters, 16 bits per weight

Model       3,048 parameters in bfloat16; 3 layers, hidden size 16, vocabulary 1,003
Context     4,096 tokens
State       256 bytes per token + 96 bytes fixed (float16, float32); 1.05 MB at the full context
Size        6.14 kB in 8 files
Tokenizer   tokenizer.json; chat template default; bos <s>, eos </s>, pad ▁é
Generation  sampled, temperature 0.6, top_p 0.9; stops at 2, 7

Variant     cpu: weights bfloat16 (6.1 kB, 16 bits each), arithmetic float32
            libraries for linux-x86_64
            ONNX Runtime 1.31 or newer, opset 23, IR 11

Made from   tiny-llama (sha256 abababababab…)
Made with   edgewright 0.1.0, torch 2.13.0
Options     bits=none providers=cpu seed=3 strict=true
Evidence    cpu (2 bytes)
"""


def test_the_page(package: Package) -> None:
    assert render(summarise(package.add_evidence("cpu", b"{}"))) == PAGE


@pytest.mark.parametrize(
    ("passed", "error", "reference", "told"),
    [
        (
            True,
            3.21e-7,
            "transformers 5.23.0 LlamaForCausalLM",
            "Evidence    cpu: passed, largest error 3.2e-07 where 0.0001 is allowed,\n"
            "            native kernels against transformers 5.23.0 LlamaForCausalLM\n",
        ),
        (
            False,
            None,
            "a\x1b[2Jb",
            "Evidence    cpu: FAILED, largest error not a number where 0.0001 is allowed,\n"
            '            native kernels against "a\\u001b[2Jb"\n',
        ),
    ],
)
def test_what_validation_found(
    package: Package, passed: bool, error: float | None, reference: str, told: str
) -> None:
    report = {
        "passed": passed,
        "max_error": error,
        "tolerance": 1e-4,
        "kernels": "native",
        "reference": reference,
        "logits": [],
    }
    summary = summarise(package.add_evidence("cpu", json.dumps(report).encode()))
    assert render(summary).endswith(told)
    evidence = summary.to_json()["evidence"]
    assert isinstance(evidence, dict)
    shown = evidence["cpu"]
    assert isinstance(shown, dict)
    assert (shown["passed"], shown["max_error"]) == (passed, error)


def test_the_keys(package: Package) -> None:
    document = summarise(package).to_json()
    assert document["parameters"] == 3048
    assert document["bits_per_weight"] == 16.0
    assert document["state_bytes_per_token"] == 256
    assert document["state_bytes_fixed"] == 96
    assert document["size_bytes"] == package.size_bytes
    variants = document["variants"]
    assert isinstance(variants, list)
    (variant,) = variants
    assert isinstance(variant, dict)
    assert variant["weight_bytes"] == 6096
    assert variant["libraries"] == ["linux-x86_64"]


def test_the_least_a_package_can_say(package: Package) -> None:
    bare = replace(
        package.manifest.variants[0], name="portable", libraries={}, states=StateLayout(())
    )
    manifest: Manifest = replace(
        package.manifest, tokenizer=None, generation=GenerationDefaults(), variants=(bare,)
    )
    page = render(summarise(Package(package.root, manifest)))
    assert "State       none\n" in page
    assert "Tokenizer   none: prompts must be token ids\n" in page
    assert "Generation  greedy; stops at nothing\n" in page
    assert "Variant     portable for cpu: " in page
    assert "libraries for none\n" in page
    assert "Evidence    none: run edgewright validate" in page


def test_tokens_that_would_disturb_a_terminal_are_quoted(package: Package) -> None:
    assert package.manifest.tokenizer is not None
    tokenizer = replace(package.manifest.tokenizer, special_tokens={"eos_token": "\x1b[2J"})
    page = render(summarise(Package(package.root, replace(package.manifest, tokenizer=tokenizer))))
    assert 'eos "\\u001b[2J"' in page


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (1_234_567, "1.23 MB"),
        (4_000_000_000, "4 GB"),
        (10**19, "10 EB"),
    ],
)
def test_sizes_read_as_on_a_disk(count: int, text: str) -> None:
    assert size_text(count) == text
