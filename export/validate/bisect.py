"""Every value of the graph beside PyTorch's: the first that differs names the layer and the op."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch.fx.interpreter import Interpreter
from torch.fx.node import Node, map_aggregate

from edgewright.artifacts import Package
from edgewright.artifacts.errors import PackageError
from edgewright.artifacts.manifest import Variant
from edgewright.artifacts.states import StateLayout
from edgewright.export.trace import capture_as_exported, first_names
from edgewright.export.validate.metrics import scaled_error
from edgewright.export.validate.report import Culprit, LayerCheck
from edgewright.model.loading import LazyModel, Readable
from edgewright.model.ops import block_gather
from edgewright.runtime.engine import open_graph
from edgewright.runtime.host import default_threads

Array = NDArray[Any]
_LAYER = re.compile(r"layers\.\d+")
# Where weights are packed; a step of int8 in one of a few dozen hidden values.
EXPERTS_TOLERANCE = 2e-2


@dataclass(frozen=True)
class _Compared:
    layer: str
    op: str
    node: str
    weights: tuple[str, ...]
    error: float


def compare_values(
    package: Package,
    variant: Variant,
    model: LazyModel,
    ids: Sequence[int],
    chunks: Sequence[int],
    schedule: str,
    tolerance: float,
    packed: Mapping[str, Readable],
) -> tuple[Culprit | None, tuple[LayerCheck, ...]]:
    """Feed both graphs in these chunks and compare after each; stop at the call that differs.
    `packed` are parameters in the package's own form rather than the checkpoint's. With them each
    op is compared by itself, given what the package gave it: one value that is rounded to the next
    of 255 would else hide everything after it."""
    graph = _Instrumented(package, variant)
    twin = _TorchTwin(model, packed)
    checks: tuple[LayerCheck, ...] = ()
    start = 0
    states = {spec.name: spec for spec in variant.states}
    packaged = {
        name: _empty(spec.resolve(1, len(ids)), spec.dtype) for name, spec in states.items()
    }
    expected = {name: value.copy() for name, value in packaged.items()}
    for width in chunks:
        tokens = np.array([ids[start : start + width]], dtype=np.int64)
        found = graph.run(tokens, start, packaged)
        wanted = twin.run(tokens, start, expected, found if packed else {})
        compared = [
            _compare(graph, twin.layers[name], wanted, name, found[name])
            for name in wanted
            # Bytes are no numbers: a row's scale is in them. What attention makes of them counts.
            if name in found and found[name].dtype != np.int8
        ]
        checks = _by_layer(compared)
        least = EXPERTS_TOLERANCE if packed else 0.0
        wrong = next((x for x in compared if x.error > _allowed(x, tolerance, least)), None)
        if wrong is not None:
            culprit = Culprit(
                wrong.layer,
                wrong.op,
                wrong.node,
                wrong.weights,
                schedule,
                wrong.error,
                graph.unseen_before(wrong.node, wanted),
            )
            return culprit, checks
        start += width
    return None, checks


def _allowed(compared: _Compared, tolerance: float, of_experts: float) -> float:
    """Experts round what lies between their products, where nobody sees it."""
    return max(tolerance, of_experts) if "RoutedExperts" in compared.op else tolerance


def _empty(shape: tuple[int, ...], dtype: str) -> Array:
    return np.zeros(shape, dtype=dtype)


def _compare(
    graph: _Instrumented, layer: str, expected: Mapping[str, Array], name: str, found: Array
) -> _Compared:
    node, wanted = graph.producers[name], expected[name]
    weights = tuple(
        value.name
        for value in node.inputs
        if value is not None and value.name is not None and _is_matrix(value)
    )
    same_shape = found.shape == wanted.shape
    error = scaled_error(found, wanted) if same_shape else float("inf")
    return _Compared(layer, _op_name(node), name, weights, error)


def _op_name(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _is_matrix(value: ir.Value) -> bool:
    if not value.is_initializer() or value.shape is None:
        return False
    return len(value.shape) > 1 or value.dtype == ir.DataType.UINT8


def _by_layer(compared: Sequence[_Compared]) -> tuple[LayerCheck, ...]:
    layers: dict[str, list[_Compared]] = {}
    for each in compared:
        layers.setdefault(each.layer, []).append(each)
    checks = []
    for layer, members in layers.items():
        worst = max(members, key=lambda each: each.error)
        checks.append(LayerCheck(layer, len(members), f"{worst.op} ({worst.node})", worst.error))
    return tuple(checks)


class _Instrumented:
    """The package's own graph and kernels, giving every number it computes."""

    def __init__(self, package: Package, variant: Variant) -> None:
        data = package.read_verified(variant.graphs["step"])
        model = ir.serde.deserialize_model(_parse(data))
        graph = model.graph
        self.layout = variant.states
        self.producers: dict[str, ir.Node] = {}
        given = {value.name for value in graph.outputs}
        for node in graph:
            for value in node.outputs:
                if value.name is None:
                    continue
                self.producers[value.name] = node
                # Equal scores may be ranked either way; what their experts give is compared.
                ranks = node.op_type == "TopK" and value is node.outputs[1]
                if value.dtype in _COMPARED and not ranks and value.name not in given:
                    graph.outputs.append(value)
        extended = ir.serde.serialize_model(model).SerializeToString()
        self.session, _ = open_graph(package, variant, extended, default_threads())
        self.names = [value.name for value in graph.outputs if value.name is not None]

    def run(self, tokens: Array, start: int, states: dict[str, Array]) -> dict[str, Array]:
        """All values of one call. The new states replace the old in `states`."""
        count = tokens.shape[1]
        feeds = {
            "input_ids": tokens,
            "start": np.array([start], dtype=np.int64),
            "length": np.array([count], dtype=np.int64),
            "logit_index": np.arange(count, dtype=np.int64)[None],
        }
        feeds |= {spec.input_name: states[spec.name] for spec in self.layout}
        values = dict(zip(self.names, self.session.run(self.names, feeds), strict=True))
        for spec in self.layout:
            states[spec.name] = values[spec.output_name]
        return values

    def unseen_before(self, name: str, seen: Mapping[str, Array]) -> tuple[str, ...]:
        """The nodes between this value and those compared before it: any of them may be wrong."""
        unseen: list[str] = []
        waiting = [name]
        while waiting:
            for value in self.producers[waiting.pop()].inputs:
                source = None if value is None or value.name is None else value.name
                if source in self.producers and source not in seen and source not in unseen:
                    unseen.append(source)
                    waiting.append(source)
        return tuple(f"{_op_name(self.producers[source])} (node {source})" for source in unseen)


_COMPARED = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT64)


def _parse(data: bytes) -> Any:
    import onnx

    try:
        return onnx.ModelProto.FromString(data)
    except Exception as error:  # protobuf's own decoding errors
        raise PackageError(f"the graph cannot be parsed: {error}") from error


def _layer(node: Node) -> str:
    """Where in the model the op stands, whatever the package's graph may have it read."""
    modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    match = _LAYER.search(modules[-1]) if modules else None
    return match.group() if match else ""


class _TorchTwin:
    """The decoder as torch captured it, run node by node with each weight read when it is used."""

    def __init__(self, model: LazyModel, packed: Mapping[str, Readable]) -> None:
        self.layout: StateLayout = model.decoder.layout
        self.program = capture_as_exported(model.decoder)
        signature = self.program.graph_signature
        named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        first = first_names(self.program)
        weights: Mapping[str, Readable] = {**model.weights, **packed}
        self.weights = {
            placeholder: _Weight(weights[first.get(name, name)])
            for placeholder, name in named.items()
        }
        outputs = list(signature.user_outputs)
        self.renamed = dict(
            zip(outputs, ["logits", *(spec.output_name for spec in self.layout)], strict=True)
        )
        self.layers = {
            self.renamed.get(node.name, node.name): _layer(node)
            for node in self.program.graph.nodes
        }

    def run(
        self, tokens: Array, start: int, states: dict[str, Array], forced: Mapping[str, Array]
    ) -> dict[str, Array]:
        """What each node makes of its inputs; `forced` are taken in the place of what was made."""
        count = tokens.shape[1]
        given = iter(
            [
                torch.from_numpy(tokens),
                torch.tensor([start]),
                torch.tensor([count]),
                torch.arange(count)[None],
                *(torch.from_numpy(states[spec.name]) for spec in self.layout),
            ]
        )
        inputs = [
            self.weights[node.name] if node.name in self.weights else next(given)
            for node in self.program.graph.nodes
            if node.op == "placeholder"
        ]
        recorder = _Recorder(self.program.graph_module, self.renamed, forced)
        with torch.no_grad():
            recorder.run(*inputs)
        values = {self.renamed.get(name, name): value for name, value in recorder.values.items()}
        for spec in self.layout:
            states[spec.name] = {**values, **forced}[spec.output_name]
        return values


@dataclass(frozen=True)
class _Weight:
    """Read when an op takes it, and not kept."""

    source: Readable


class _Recorder(Interpreter):
    """Keeps every number, under the name that the ONNX graph has for it too."""

    def __init__(
        self,
        module: torch.fx.GraphModule,
        renamed: Mapping[str, str],
        forced: Mapping[str, Array],
    ) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.values: dict[str, Array] = {}
        self._renamed, self._forced = renamed, forced

    def run_node(self, node: Node) -> Any:
        result = super().run_node(node)
        compared = (torch.float32, torch.float16, torch.int64, torch.int8)
        if (
            node.op == "call_function"
            and isinstance(result, torch.Tensor)
            and result.dtype in compared
        ):
            self.values[node.name] = result.numpy()
            other = self._forced.get(self._renamed.get(node.name, node.name))
            if other is not None and other.shape == tuple(result.shape):
                return torch.from_numpy(np.ascontiguousarray(other)).to(result.dtype)
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = map_aggregate(args, _read), dict(map_aggregate(kwargs, _read))
        if target is torch.ops.aten.embedding.default and args[0].dtype == torch.uint8:
            return block_gather(args[1], args[0])
        if "device" in kwargs:  # traced on the meta device
            kwargs["device"] = torch.device("cpu")
        return super().call_function(target, args, kwargs)


def _read(value: Any) -> Any:
    return value.source.read() if isinstance(value, _Weight) else value
