"""The one exception family: every mistake a user can make ends as one of these, in one line."""


class EdgewrightError(Exception):
    """What was found, what was required and what to do, in one line."""


class CheckpointError(EdgewrightError):
    """The checkpoint directory cannot be read as one: a file, tensor or shape is wrong."""


class ConfigError(EdgewrightError):
    """The model's configuration asks for something that is not known to be right."""


class ExportError(EdgewrightError):
    """The graph or the package could not be made."""


class PackageError(EdgewrightError):
    """The package is not one, is incomplete, or is not what its manifest says."""


class SessionError(EdgewrightError):
    """The runtime cannot do what was asked of it."""


class ContextLengthError(SessionError):
    """More tokens than the context holds."""


class ToolchainError(EdgewrightError):
    """The op library could not be compiled."""


class TrainingError(EdgewrightError):
    """There is nothing to train on, or the run cannot start or go on."""


class ConversionError(EdgewrightError):
    """The checkpoint cannot be given the shape that was asked for."""
