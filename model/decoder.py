"""The decoder, whatever the architecture: token ids and states in, logits and new states out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright.artifacts.states import StateLayout, StateSpec
from edgewright.model.call import Call
from edgewright.model.config import LayerSpec, ModelConfig
from edgewright.model.feed_forward import build_feed_forward
from edgewright.model.linear import Linear, scaled
from edgewright.model.normalisation import Norm
from edgewright.model.ops import block_gather, block_matmul
from edgewright.model.rope import Rope


class Layer(nn.Module):
    """A mixer and a feed-forward half, or one of the two, joined as the wiring says."""

    def __init__(self, config: ModelConfig, spec: LayerSpec) -> None:
        super().__init__()
        self.wiring = spec.wiring
        self.residual_scale = spec.residual_scale
        before, after = spec.wiring not in ("post", "bare"), spec.wiring in ("post", "sandwich")
        self.mixer = None if spec.mixer is None else spec.mixer.build(config.hidden_size)
        self.feed_forward: nn.Module | None = None
        if spec.feed_forward is not None:
            self.feed_forward = build_feed_forward(config.hidden_size, spec.feed_forward)
        if self.mixer is not None:
            self.mixer_norm = Norm(config.hidden_size, config.norm) if before else None
            self.mixer_post_norm = Norm(config.hidden_size, config.norm) if after else None
        if self.feed_forward is not None:
            own = before and spec.wiring != "parallel"
            self.feed_forward_norm = Norm(config.hidden_size, config.norm) if own else None
            self.feed_forward_post_norm = Norm(config.hidden_size, config.norm) if after else None

    def states(self, prefix: str) -> tuple[StateSpec, ...]:
        return () if self.mixer is None else self.mixer.states(prefix)

    def forward(self, x: Tensor, call: Call, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        scale = self.residual_scale
        if self.mixer is not None:
            h = _normed(self.mixer_norm, x)
            mixed, states = self.mixer(h, call, states)
            if self.wiring == "parallel" and self.feed_forward is not None:
                return x + scaled(mixed + self.feed_forward(h), scale), states
            x = x + scaled(_normed(self.mixer_post_norm, mixed), scale)
        if self.feed_forward is not None:
            h = self.feed_forward(_normed(self.feed_forward_norm, x))
            x = x + scaled(_normed(self.feed_forward_post_norm, h), scale)
        return x, states


def _normed(norm: Norm | None, x: Tensor) -> Tensor:
    y: Tensor = x if norm is None else norm(x)
    return y


class Embedding(nn.Module):
    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(self, input_ids: Tensor) -> Tensor:
        if self.weight.dtype == torch.uint8:
            return block_gather(input_ids, self.weight)
        return functional.embedding(input_ids, self.weight).float()


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.hidden_size)
        self.ropes = nn.ModuleList(Rope(spec) for spec in config.ropes)
        self.layers = nn.ModuleList(Layer(config, spec) for spec in config.layers)
        mixers = [layer.mixer for layer in self._each_layer() if layer.mixer is not None]
        for index, mixer in enumerate(mixers):
            mixer.share(mixers[:index])
        self.norm = Norm(config.hidden_size, config.norm)
        if not config.tied_head:
            self.head = Linear(config.hidden_size, config.vocab_size)

    @property
    def layout(self) -> StateLayout:
        return StateLayout(
            tuple(
                state
                for index, layer in enumerate(self._each_layer())
                for state in layer.states(f"layers.{index}")
            )
        )

    def _each_layer(self) -> Iterator[Layer]:
        return (cast(Layer, layer) for layer in self.layers)

    def forward(
        self,
        input_ids: Tensor,  # [batch, seq]
        start: Tensor,  # [batch]
        length: Tensor,  # [batch]
        logit_index: Tensor,  # [batch, wanted]
        states: list[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        ropes = [cast(Rope, rope) for rope in self.ropes]
        x = scaled(self.embedding(input_ids), self.config.embedding_scale)
        call = Call.prepare(x, start, length, ropes)
        after: list[Tensor] = []
        for layer in self._each_layer():
            taken = states[len(after) : len(after) + len(layer.states(""))]
            x, new = layer(x, call, taken)
            after += new
        rows = logit_index.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        return self._logits(self.norm(x.gather(1, rows))), after

    def _logits(self, x: Tensor) -> Tensor:
        config = self.config
        logits = block_matmul(x, self.embedding.weight) if config.tied_head else self.head(x)
        logits = scaled(logits, config.logit_scale)
        if config.logit_softcap:
            logits = torch.tanh(logits / config.logit_softcap) * config.logit_softcap
        return logits
