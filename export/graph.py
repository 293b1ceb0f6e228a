"""Graph: one ONNX model and the layout of its states, under the names of the graph contract."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgewright.artifacts.states import StateLayout

TOKEN_INPUTS = ("input_ids", "start", "length", "logit_index")
LOGITS = "logits"


@dataclass
class Graph:
    model: ir.Model
    layout: StateLayout

    @property
    def input_names(self) -> list[str]:
        return [*TOKEN_INPUTS, *(spec.input_name for spec in self.layout)]

    @property
    def output_names(self) -> list[str]:
        return [LOGITS, *(spec.output_name for spec in self.layout)]
