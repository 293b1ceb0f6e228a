"""Rewrites of the canonical graph: what can be computed now is; what the tracer needed goes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes import common as standard

# Folding reads its operands: above this size they are weights and stay where they are.
_FOLD_LIMIT_BYTES = 4096


def simplify(model: ir.Model, limit_bytes: int = _FOLD_LIMIT_BYTES) -> None:
    """Ensures: no constant node, no duplicate or unused value, and no path of this machine."""
    _compare_texts(model)
    onnxscript.optimizer.fold_constants(
        model,
        onnx_shape_inference=False,
        should_fold=_may_fold,
        input_size_limit=limit_bytes,
        output_size_limit=limit_bytes,
    )
    passes: tuple[ir.passes.InPlacePass, ...] = (
        standard.IdentityEliminationPass(),
        standard.CommonSubexpressionEliminationPass(),
        standard.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        standard.RemoveUnusedNodesPass(),
        standard.TopologicalSortPass(),
        standard.ClearMetadataAndDocStringPass(),
    )
    for rewrite in passes:
        rewrite(model)
    _share_small_initializers(model, limit_bytes)
    model.producer_name, model.producer_version = "edgewright", None
    model.metadata_props.clear()


def _compare_texts(model: ir.Model) -> None:
    """What a function body decides by an attribute: not every build of ONNX Runtime compares texts,
    and the folding below takes none of unequal lengths."""
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.op_type != "Equal":
            continue
        texts = [_text(value) for value in node.inputs]
        if None in texts:
            continue
        assert node.graph is not None
        constant = ir.node("Constant", [], {"value": ir.tensor(np.array(texts[0] == texts[1]))})
        constant.outputs[0].type, constant.outputs[0].shape = node.outputs[0].type, ir.Shape(())
        ir.convenience.replace_nodes_and_values(
            node.graph, node, [node], [constant], node.outputs, constant.outputs
        )


def _text(value: ir.Value | None) -> bytes | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return tensor.numpy().item() if isinstance(tensor, ir.StringTensor) else None


def _may_fold(node: ir.Node) -> bool | None:
    """Never what is read later, or lies in a blob; of the rest the pass itself decides."""
    held = (value.const_value for value in node.inputs if value is not None)
    return False if any(isinstance(t, (ir.ExternalTensor, ir.LazyTensor)) for t in held) else None


def _share_small_initializers(model: ir.Model, limit_bytes: int) -> None:
    """Equal small constants become one, so that each is fed to its readers from one place."""
    first: dict[tuple[ir.DataType, tuple[int, ...], bytes], ir.Value] = {}
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or isinstance(tensor, (ir.ExternalTensor, ir.StringTensor)):
            continue
        if tensor.nbytes > limit_bytes:
            continue
        key = (tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes())
        kept = first.setdefault(key, value)
        if kept is not value:
            ir.convenience.replace_all_uses_with(value, kept)
            assert value.name is not None
            del model.graph.initializers[value.name]
