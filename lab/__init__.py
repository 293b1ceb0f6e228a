"""Machines that this one is not: each command here makes one, and runs our tests in it."""

from edgewright.artifacts.errors import EdgewrightError


class LabError(EdgewrightError):
    """The machine to test on could not be made, or it gave no answer that can be read."""
