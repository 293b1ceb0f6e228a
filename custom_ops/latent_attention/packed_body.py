"""LatentAttention with a packed up projection in standard ops: it is unpacked as the graph runs."""

from __future__ import annotations

import onnx_ir as ir

from edgewright.custom_ops.latent_attention import body
from edgewright.custom_ops.latent_attention.spec import SPEC
from edgewright.custom_ops.recorder import RecordedFunction, Recorder


def _record(op: Recorder, *inputs: ir.Value) -> tuple[ir.Value, ...]:
    query, latent, key_rope, up, *rest = inputs
    return body.record(op, query, latent, key_rope, op.ours("PackedMatrix", up), *rest)


LatentAttention = RecordedFunction(SPEC, _record)
