"""The CPU with ONNX Runtime alone: no op of ours and no library, packed products as MatMulNBits."""

from edgewright.custom_ops.recorder import MICROSOFT
from edgewright.export.portable import make_portable
from edgewright.export.providers import Provider

PROVIDER = Provider(
    name="cpu-portable",
    opset=23,
    ir_version=10,
    onnxruntime_min="1.30",
    domains={"": None, MICROSOFT: frozenset({"MatMulNBits"})},
    native_ops=False,
    lower=make_portable,
)
