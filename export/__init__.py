"""Export: checkpoints become packages, and packages are proved against PyTorch."""

from edgewright.export.exporter import export_checkpoint

__all__ = ["export_checkpoint"]
