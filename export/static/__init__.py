"""Static graphs: a stored graph and sizes in, a prefill and a decode graph in standard ops out."""

from edgewright.export.static.make import StaticGraphs
from edgewright.export.static.shapes import ComputeDtype, StaticShapes

__all__ = ["ComputeDtype", "StaticGraphs", "StaticShapes"]
