"""A package's tokens and logits beside PyTorch's, and where they part, the op that did it."""

from edgewright.export.validate.report import Report
from edgewright.export.validate.validation import TOLERANCE, store_report, validate

__all__ = ["TOLERANCE", "Report", "store_report", "validate"]
