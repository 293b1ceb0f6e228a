"""draft"""

from edgewright.export.providers import Provider
from edgewright.export.static.device_forms import *
from edgewright.export.static import StaticShapes

PROVIDERS = tuple(
    Provider(
        name=name,
        opset=23,
        ir_version=10,
        onnxruntime_min="1.27",
        domains={"": None},
        native_ops=False,
        static=StaticShapes(dtype=dtype, update=update, chunk=16, capacity=64, rewrites=(choose_extremes, move_no_booleans, narrow_integers)),
    )
    for name, dtype, update in (("webgpu", "float16", "delta"), ("webgpu:f32", "float32", "delta"), ("webgpu:in", "float16", "in_graph"), ("webgpu:in32", "float32", "in_graph"))
)
