"""A package's tokens and logits beside PyTorch's, and where they part, the op that did it."""

from edgewright.export.validate.report import Report
from edgewright.export.validate.validation import TOLERANCE, validate

__all__ = ["TOLERANCE", "Report", "validate"]
