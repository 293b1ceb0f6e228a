"""RoutedExperts of packed weights in standard ops: each product is BlockMatMul's."""

from edgewright.custom_ops.routed_experts.body import over
from edgewright.custom_ops.shared_bodies import PackedCount, PackedMatMul

RoutedExperts = over(PackedCount, PackedMatMul)
