"""RoutedExperts of packed weights in standard ops: each product is BlockMatMul's."""

# The names are ONNX's, and onnxscript's values have no type that mypy could check.
# mypy: ignore-errors

from edgewright.custom_ops.routed_experts.body import over
from edgewright.custom_ops.shared_bodies import PackedCount, PackedMatMul

RoutedExperts = over(PackedCount, PackedMatMul)
