"""Errors that gradood raises. Each message says what was wrong, what was expected, what to do."""


class GradoodError(Exception):
    """Base class of every error that gradood raises on purpose."""


class InputError(GradoodError, ValueError):
    """An argument has a wrong shape, type or value."""


class ModelError(GradoodError, ValueError):
    """The model cannot be scored as it is: its mode, its output or its operators are in the way."""


class BackendError(GradoodError, RuntimeError):
    """A backend was asked for that cannot serve the call."""


class NotFittedError(GradoodError, RuntimeError):
    """A detector was used before ``fit``, or a threshold before ``calibrate``."""


class CheckpointError(GradoodError, ValueError):
    """A saved detector does not belong to this model, or the file is not one of ours."""


def first_line(error: BaseException) -> str:
    """What an error says, without what some libraries append to it; empty if it says nothing."""
    return str(error).strip().partition("\n")[0]
