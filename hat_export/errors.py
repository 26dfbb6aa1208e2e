"""Errors that a user can act on.

Every error of this package carries one line that names the thing at fault, what was expected
and what to do. The command line prints that line and exits with :attr:`HatError.exit_code`.
"""

#: What reading a JSON file and taking values out of it raises where the file isn't as expected.
MALFORMED = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)


class HatError(Exception):
    """Base class: anything the user, rather than a bug, has to do something about."""

    exit_code = 1


class CheckpointError(HatError):
    """A checkpoint can't be read, or doesn't hold a HAT model of the expected shape."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint asks for code to be run; it was refused and nothing was run."""


class SpecError(HatError):
    """A model specification is missing, inconsistent or doesn't fit the checkpoint."""


class BundleError(HatError):
    """A bundle is missing, damaged, or of a format that this version can't read."""


class SignatureError(BundleError):
    """A bundle isn't signed by the key that was asked for, or was changed afterwards."""


class DatasetError(HatError):
    """A dataset can't be read or doesn't have the expected layout."""


class InputError(HatError):
    """An image, caption or array handed to a session has the wrong kind or shape."""


class BackendUnavailableError(HatError):
    """A backend was asked for whose library or device isn't there."""


class ToleranceError(HatError):
    """An export ran, but its results differ from PyTorch's by more than the tolerance."""


class FusionError(HatError):
    """Fused attention was required, and a layer of the exported graph isn't fused."""


class PassError(HatError):
    """A graph isn't what a rewrite of it takes, or the rewrite didn't do what it promises."""


class EngineError(HatError):
    """TensorRT can't build an engine from a graph, or can't load one here."""


class IndexFileError(HatError):
    """A feature index is missing, damaged, truncated, or was made for another model."""


class OutputError(HatError):
    """A result can't be written: the target exists, is read-only or the disk is full."""
