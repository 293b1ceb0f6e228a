"""lm-evaluation-harness itself drives a package, on tasks made here, beside transformers."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("lm_eval", reason="the extra `harness` is not installed")

CONTEXT = 96  # of the package
# Sentences of the standard library; the first words are asked to be completed by the rest.
SENTENCES = [
    line.strip()
    for line in (inspect.getdoc(textwrap) or "").splitlines()
    + (inspect.getdoc(shlex.split) or "").splitlines()
    + (inspect.getdoc(textwrap.TextWrapper) or "").splitlines()
    if 30 < len(line.strip()) < 75
][:6]
DOCUMENT = inspect.getsource(shlex.join) * 2  # longer than the context

TASKS = {
    "choose": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "roll": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{document}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "go_on": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["e"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def write_tasks(folder: Path) -> None:
    rows = []
    for sentence in SENTENCES:
        cut = sentence.index(" ", len(sentence) // 2)
        rows.append(
            {
                "question": sentence[:cut],
                "choices": [sentence[cut:], " nothing of it", " x"],
                "document": DOCUMENT,
            }
        )
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in TASKS.items():
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
        settings = {"task": name, "test_split": "test", **source, **task}
        (folder / f"{name}.yaml").write_text(json.dumps(settings))  # JSON is YAML


@pytest.fixture(scope="module")
def samples(
    package: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    """What the harness's own command logs of each task."""
    folder = tmp_path_factory.mktemp("harness")
    write_tasks(folder)
    command = [sys.executable, "-m", "edgewright.runtime.harness", "run", "--model", "edgewright"]
    command += ["--model_args", f"package={package},threads=1", "--tasks", *TASKS]
    command += ["--include_path", str(folder), "--output_path", str(folder / "out")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    ended = subprocess.run(
        [*command, "--log_samples"],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | offline,
    )
    assert ended.returncode == 0, ended.stderr
    assert "|choose" in ended.stdout
    found: dict[str, list[dict[str, Any]]] = {}
    for name in TASKS:
        (log,) = (folder / "out").rglob(f"samples_{name}_*.jsonl")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        found[name] = sorted(lines, key=lambda line: line["doc_id"])
        assert len(lines) == len(SENTENCES) > 3
    return found


class Peer:
    """transformers, one token after another's whole context."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint).double()
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return found

    def log_softmax(self, ids: Sequence[int]) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = self.model(torch.tensor([list(ids)])).logits[0]
        return logits.log_softmax(-1)

    def score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        rows = self.log_softmax([*context, *continuation][:-1])[-len(continuation) :]
        wanted = torch.tensor(list(continuation))
        return float(rows.gather(1, wanted[:, None]).sum()), bool((rows.argmax(-1) == wanted).all())


@pytest.fixture(scope="module")
def peer(checkpoint: Path) -> Peer:
    return Peer(checkpoint)


def test_choices_are_scored_as_transformers_scores_them(
    samples: dict[str, list[dict[str, Any]]], peer: Peer
) -> None:
    for sample in samples["choose"]:
        doc, scored = sample["doc"], sample["filtered_resps"]
        expected = [peer.score(peer.ids(doc["question"]), peer.ids(c)) for c in doc["choices"]]
        assert [float(score) for score, _ in scored] == pytest.approx(
            [score for score, _ in expected], rel=1e-5
        )
        assert [str(greedy) for _, greedy in scored] == [str(greedy) for _, greedy in expected]


def test_long_texts_are_scored_in_windows(
    samples: dict[str, list[dict[str, Any]]], peer: Peer
) -> None:
    """After the end of another text, in whole contexts, the last of which reaches back."""
    ids = [299, *peer.ids(DOCUMENT)]
    assert len(ids) > 2 * CONTEXT
    total = 0.0
    for first in range(1, len(ids), CONTEXT):
        end = min(first + CONTEXT, len(ids))
        total += peer.score(ids[end - 1 - CONTEXT if first > 1 else 0 : first], ids[first:end])[0]
    for sample in samples["roll"]:
        assert float(sample["resps"][0][0]) == pytest.approx(total, rel=1e-5)


def test_greedy_text_ends_where_the_task_says(
    samples: dict[str, list[dict[str, Any]]], peer: Peer
) -> None:
    for sample in samples["go_on"]:
        ids = peer.ids(sample["doc"]["question"])
        made: list[int] = []
        while len(made) < 12 and (not made or made[-1] != 299):
            made.append(int(peer.log_softmax([*ids, *made])[-1].argmax()))
        text = peer.tokenizer.decode(made, skip_special_tokens=True).partition("e")[0]
        assert sample["resps"][0][0] == text


def test_it_runs_without_torch(package: Path) -> None:
    script = textwrap.dedent(f"""
        import sys
        for name in ("torch", "transformers", "onnx"): sys.modules[name] = None
        from lm_eval.api.instance import Instance
        from edgewright.runtime.harness import PackageLM
        model = PackageLM({str(package)!r})
        asked = [Instance("loglikelihood", {{}}, pair, 0) for pair in (("ab", "cd"), ("", "x"))]
        print(model.loglikelihood(asked, disable_tqdm=True))
    """)
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("[(-")
