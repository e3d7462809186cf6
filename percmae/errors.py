"""Errors a person is meant to read: one line that says what was wrong, where, and what to do.

Each class carries the exit code that ``percmae`` ends with:

====  ======================================================
code  meaning
====  ======================================================
0     done
1     failure (a server down, a disk full, a loss not finite)
2     bad usage or bad input: nothing was started
138   another process of the job was lost, resumable
≥128  interrupted by a signal, resumable (128 + signal number)
====  ======================================================
"""

from __future__ import annotations


class PercmaeError(Exception):
    """A failure with a message for the person at the keyboard."""

    exit_code = 1


class UserError(PercmaeError):
    """Bad usage or bad input; the message names the argument, key or file."""

    exit_code = 2


class ConfigError(UserError):
    """An unknown key, a wrong type or an impossible combination in the configuration."""


class DataError(UserError):
    """An archive, dataset or image that is not what it should be."""


class CheckpointError(UserError):
    """Weights that are damaged, unsafe to open, or do not fit the network they were meant for."""


class UnsafeFileError(CheckpointError):
    """A file of weights that could only be opened by running code it contains."""


class StoreError(PercmaeError):
    """The object store could not be reached or did not do what was asked."""


class StoreAccessError(StoreError, UserError):
    """Wrong credentials, an absent bucket or an absent object: retrying will not help."""

    exit_code = 2


class Interrupted(PercmaeError):
    """Ended by a signal after saving what was needed to go on later."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class PeerLost(PercmaeError):
    """Another process of the same job ended or cannot be reached: begin again together.

    128 + SIGUSR1, which the training operator sets aside for a program's own "try again".
    """

    exit_code = 138
