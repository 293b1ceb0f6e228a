"""Packages go in, tokens come out; neither torch nor onnx is needed."""

from edgewright.runtime.budget import Budget
from edgewright.runtime.session import Session
from edgewright.runtime.state import State

__all__ = ["Budget", "Session", "State"]
