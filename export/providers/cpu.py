"""The CPU: our own kernels where the op library is trusted, the function bodies everywhere else."""

from edgewright.custom_ops import DOMAIN, OPS
from edgewright.export.providers import Provider

PROVIDER = Provider(
    name="cpu",
    opset=23,
    ir_version=10,
    onnxruntime_min="1.30",
    domains={"": None, DOMAIN: frozenset(OPS)},
    native_ops=True,
)
