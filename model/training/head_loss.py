"""Head and cross-entropy in one: hidden rows, the tied embedding and targets go in, the mean loss
comes out. Rows are taken a few at a time, so that the logits never lie whole in memory."""

from __future__ import annotations

import torch
from torch import Tensor, autograd
from torch.autograd.function import FunctionCtx

_ROWS = 512


class HeadLoss(autograd.Function):
    """x [n, hidden], weight [vocab, hidden], targets [n] → mean loss in nats.

    The gradients are worked out along with the loss, while a block's logits are in the cache.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype
    ) -> Tensor:
        narrow = weight.to(dtype)
        d_x, d_weight = torch.empty_like(x), torch.zeros_like(weight)
        total = x.new_zeros(())
        for begin in range(0, x.shape[0], _ROWS):
            rows = x[begin : begin + _ROWS].to(dtype)
            target = targets[begin : begin + _ROWS, None]
            scores = (rows @ narrow.T).float()
            scores -= scores.amax(-1, keepdim=True)
            wanted = scores.gather(-1, target)
            mass = scores.exp_().sum(-1, keepdim=True)
            total += (mass.log() - wanted).sum()
            # d loss / d scores = softmax - one-hot
            scores.div_(mass).scatter_add_(-1, target, torch.full_like(wanted, -1.0))
            d_scores = scores.to(dtype)
            d_x[begin : begin + _ROWS] = d_scores @ narrow
            d_weight += d_scores.T @ rows
        ctx.save_for_backward(d_x.div_(x.shape[0]), d_weight.div_(x.shape[0]))
        return total / x.shape[0]

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_x, d_weight = ctx.saved_tensors  # type: ignore[attr-defined]
        return d_x * grad, d_weight * grad, None, None
