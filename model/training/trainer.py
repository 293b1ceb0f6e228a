"""A recipe and text go in; a checkpoint directory comes out, saved every few minutes on the way."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor

from edgewright.artifacts.errors import TrainingError
from edgewright.artifacts.json_text import Json
from edgewright.model.architectures import load_config
from edgewright.model.call import Call
from edgewright.model.decoder import Decoder, Layer
from edgewright.model.rope import Rope
from edgewright.model.training.batches import Batches
from edgewright.model.training.corpus import Corpus
from edgewright.model.training.head_loss import HeadLoss
from edgewright.model.training.mixers import initialise, trainable_mixer
from edgewright.model.training.optimiser import Optimiser
from edgewright.model.training.publish import (
    model_settings,
    replace_tensors,
    save_settings,
    save_weights,
)
from edgewright.model.training.recipe import Recipe
from edgewright.model.training.vocabulary import END_OF_TEXT_ID, save_tokenizer, train_tokenizer

STATE_FILE = "training_state.safetensors"
RECORD_FILE = "training.json"


@dataclass(frozen=True)
class Step:
    """How the run stands after a step."""

    step: int
    tokens: int
    share: float  # of the whole run, 0 to 1
    loss: float  # nats, a running mean
    tokens_per_second: float
    held_out: float | None = None  # nats, where a checkpoint was just saved


@dataclass
class History:
    """What a resumed run has to know besides the tensors."""

    step: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    held_out: list[tuple[int, float, float]] = field(default_factory=list)  # step, seconds, nats


class Trainer:
    def __init__(self, out: Path, recipe: Recipe, corpus: Corpus, tokenizer: Tokenizer) -> None:
        self.out, self.recipe, self.corpus = out, recipe, corpus
        self.history = History()
        train, held_out = (_encode(tokenizer, part) for part in (corpus.train, corpus.held_out))
        self.train_tokens = sum(len(document) for document in train)
        self._batches = Batches(train, recipe.batch_rows, recipe.context, recipe.seed)
        self._held_out = _rows(torch.cat(held_out), recipe.context)
        self._settings = model_settings(recipe, tokenizer.get_vocab_size())
        self.decoder = _decoder(self._settings, recipe)
        self._parameters = dict(self.decoder.named_parameters())
        self._optimiser = Optimiser(
            self._parameters,
            matrix_rate=recipe.matrix_rate,
            vector_rate=recipe.vector_rate,
            weight_decay=recipe.weight_decay,
            dtype=recipe.dtype,
        )

    @staticmethod
    def start(out: Path, recipe: Recipe, corpus: Corpus) -> Trainer:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise TrainingError(f"{out} exists already: choose another --out, or --resume it")
        tokenizer = train_tokenizer(corpus.train, recipe.vocabulary)
        trainer = Trainer(out, recipe, corpus, tokenizer)
        out.mkdir(parents=True, exist_ok=True)
        save_tokenizer(tokenizer, out, recipe.context)
        save_settings(out, trainer._settings)
        return trainer

    @staticmethod
    def resume(out: Path, corpus: Corpus) -> Trainer:
        path = out / STATE_FILE
        if not path.is_file():
            raise TrainingError(f"{out} holds no {STATE_FILE}: there is no run to resume")
        try:
            with safe_open(path, "pt") as file:
                saved = json.loads((file.metadata() or {})["training"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            recipe, history = Recipe(**saved["recipe"]), History(**saved["history"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"{path} is not a training state: {error}") from None
        if saved["text_sha256"] != corpus.sha256:
            raise TrainingError(f"the text is not what {out} was trained on: give the same --text")
        tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
        trainer = Trainer(out, recipe, corpus, tokenizer)
        trainer._restore(history, tensors)
        return trainer

    def run(self, report: Callable[[Step], None], save_seconds: float = 300.0) -> None:
        """Train to the end; the state to resume from is there until then, and gone after."""
        recipe, history = self.recipe, self.history
        before, began, first = history.seconds, time.monotonic(), history.step
        saved = began
        while (share := recipe.progress(history.step, history.seconds)) < 1:
            loss = self._train_step(recipe.rate(share, history.step))
            history.step += 1
            history.loss = loss if math.isnan(history.loss) else 0.95 * history.loss + 0.05 * loss
            now = time.monotonic()
            history.seconds = before + now - began
            done = recipe.progress(history.step, history.seconds) >= 1
            held_out = None
            if not done and now - saved >= save_seconds:
                held_out = self._save()
                saved = time.monotonic()
            report(self._stand((history.step - first) / (now - began), held_out))
        self._finish()
        report(self._stand(history.step / max(history.seconds, 1e-9), history.held_out[-1][2]))

    def _train_step(self, rate: float) -> float:
        inputs, targets = self._batches.batch(self.history.step)
        loss = self._loss(inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {self.history.step}: the training diverged,"
                " lower the rates"
            )
        self._optimiser.step(self.history.step + 1, rate)
        return value

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The decoder's own layers, with the head and the loss joined."""
        decoder, (batch, seq) = self.decoder, inputs.shape
        start = torch.zeros(batch, dtype=torch.int64)
        with torch.autocast("cpu", self.recipe.dtype, self.recipe.precision != "float32"):
            ropes = [cast(Rope, rope) for rope in decoder.ropes]
            call = Call.prepare(inputs, start, torch.full_like(start, seq), ropes)
            x = decoder.embedding(inputs)
            for layer in (cast(Layer, layer) for layer in decoder.layers):
                fresh = [torch.zeros(spec.resolve(batch, 0)) for spec in layer.states("")]
                x, _ = layer(x, call, fresh)
            x = decoder.norm(x).flatten(0, 1)
        target = targets.flatten()
        joined = (x, decoder.embedding.weight, target, self.recipe.dtype)
        loss: Tensor = HeadLoss.apply(*joined)  # type: ignore[no-untyped-call]
        return loss

    @property
    def tokens_seen(self) -> int:
        return self.history.step * self.recipe.batch_rows * self.recipe.context

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean nats a token over the held-out text, each row on its own."""
        total = 0.0
        for rows in torch.split(self._held_out, self.recipe.batch_rows):
            total += float(self._loss(rows[:, :-1], rows[:, 1:])) * len(rows)
        return total / len(self._held_out)

    def _save(self) -> float:
        loss = self.held_out_loss()
        history = self.history
        history.held_out.append((history.step, round(history.seconds, 1), round(loss, 4)))
        save_weights(self.out, self.decoder)
        kept = {
            "recipe": asdict(self.recipe),
            "history": asdict(history),
            "text_sha256": self.corpus.sha256,
        }
        tensors = {f"model.{name}": p.detach() for name, p in self._parameters.items()}
        tensors |= {f"optimiser.{name}": t for name, t in self._optimiser.state.items()}
        replace_tensors(self.out / STATE_FILE, tensors, {"training": json.dumps(kept)})
        return loss

    def _restore(self, history: History, tensors: dict[str, Tensor]) -> None:
        self.history = history
        wanted: dict[str, Tensor] = {f"model.{n}": p.data for n, p in self._parameters.items()}
        wanted |= {f"optimiser.{n}": t for n, t in self._optimiser.state.items()}
        for name, tensor in wanted.items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                raise TrainingError(f"{self.out / STATE_FILE}: {name} is missing or misshapen")
            tensor.copy_(tensors[name])

    @torch.no_grad()
    def _finish(self) -> None:
        """The held-out loss that is recorded is that of the weights as they are published."""
        save_weights(self.out, self.decoder)
        for parameter in self._parameters.values():
            parameter.copy_(parameter.half())
        history = self.history
        loss = self.held_out_loss()
        history.held_out.append((history.step, round(history.seconds, 1), round(loss, 4)))
        record = {
            "recipe": asdict(self.recipe),
            "text": {
                "documents": len(self.corpus.train),
                "tokens": self.train_tokens,
                "held_out_documents": len(self.corpus.held_out),
                "held_out_tokens": self._held_out[:, 1:].numel(),
                "sha256": self.corpus.sha256,
            },
            "parameters": sum(p.numel() for p in self._parameters.values()),
            "steps": history.step,
            "tokens_seen": self.tokens_seen,
            "seconds": round(history.seconds, 1),
            "train_loss": round(history.loss, 4),
            "held_out_loss": round(loss, 4),
            "held_out_by_step_and_second": history.held_out,
        }
        (self.out / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n")
        (self.out / STATE_FILE).unlink(missing_ok=True)

    def _stand(self, steps_per_second: float, held_out: float | None) -> Step:
        recipe, history = self.recipe, self.history
        size = recipe.batch_rows * recipe.context
        share = recipe.progress(history.step, history.seconds)
        rate = steps_per_second * size
        return Step(history.step, history.step * size, share, history.loss, rate, held_out)


def _encode(tokenizer: Tokenizer, documents: tuple[str, ...]) -> list[Tensor]:
    return [
        torch.tensor([*tokenizer.encode(text).ids, END_OF_TEXT_ID], dtype=torch.int32)
        for text in documents
    ]


def _rows(tokens: Tensor, context: int) -> Tensor:
    """[rows, context + 1] from the front, one row (shorter, if need be) at the least."""
    width = min(context, len(tokens) - 1)
    return tokens.unfold(0, width + 1, width).long()


def _decoder(settings: dict[str, Json], recipe: Recipe) -> Decoder:
    decoder = Decoder(load_config(settings))
    draw = torch.Generator().manual_seed(recipe.seed)
    for layer, spec in zip(decoder.layers, decoder.config.layers, strict=True):
        assert spec.mixer is not None
        layer.mixer = trainable_mixer(recipe.hidden, spec.mixer)
    for name, parameter in decoder.named_parameters():
        initialise(name, parameter, draw)
    return decoder
