"""Errors a person is meant to read: one line that says what was wrong, where, and what to do.

Each class carries the exit code that ``percmae`` ends with. In a cluster the code alone decides
whether a pod is replaced; training goes on from the last checkpoint then. Below 128 is final:

=====  ============================================================  =========
code   meaning                                                       pod
=====  ============================================================  =========
0      done                                                          done
1      failure (a disk full, a loss not finite)                      final
2      bad usage, input or surroundings: nothing was started         final
126-7  the container's command is not there or cannot be run         final
130    interrupted (SIGINT), after saving                            restarted
134    aborted, as NCCL's watchdog does when a peer does not answer  restarted
137    killed: out of memory, or not ended within the grace period   restarted
138    another process of the job, or one that loads its data, was   restarted
       lost, told to stop, or gives no answer
139    crashed in native code                                        restarted
140    the store gave no usable answer for too long                  restarted
143    told to stop (SIGTERM: eviction, preemption), after saving    restarted
=====  ============================================================  =========

A full disk is final: a restart would only fill it again. Whoever makes room gives the same command
again. What no part of percmae foresaw is 1 as well, in one line (``percmae.unforeseen``).

(128 + N means ended by signal N.) ``percmae.engine.torchrun`` hands on the code of the process that
failed first, so the same holds for a pod with several. How often a pod is restarted is limited by
job setting backoff_limit and by its deadline; where the kind of job counts no restarts, the pods do
(percmae.runs.restarts).
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
    """The object store did not do what was asked."""


class StoreAway(StoreError):
    """The store gave no usable answer for too long: begin again.

    128 + SIGUSR2. What was there stays, and what was to be done is done by the same command.
    """

    exit_code = 140


class StoreAccessError(StoreError, UserError):
    """Wrong credentials, an absent bucket or an absent object: retrying will not help."""

    exit_code = 2


class Interrupted(PercmaeError):
    """Ended by a signal after saving what was needed to go on later.

    in_midst: threads may still be at work on what was broken off, and would be waited for in the
    end: the process has to end as it is.
    """

    def __init__(self, signal_number: int, message: str, in_midst: bool = False) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
        self.in_midst = in_midst


class WorkerLost(PercmaeError):
    """A process that loads data ended, or gives nothing any more: begin again."""

    exit_code = 138


class PeerLost(PercmaeError):
    """Another process of the same job ended, was told to stop or cannot be reached: begin again
    together.

    128 + SIGUSR1, which the training operator sets aside for a program's own "try again".

    in_midst: what this process shared with the lost one may still be under way. PyTorch then cannot
    take the process group apart: its destructor waits, with Python's lock, for a thread of gloo's
    that may be waiting for that lock. The process has to end as it is.
    told: the signal by which this process was told to stop before; then it ends as told.
    """

    exit_code = 138

    def __init__(self, message: str, in_midst: bool = False, told: int | None = None) -> None:
        super().__init__(message)
        self.in_midst = in_midst
        if told is not None:
            self.exit_code = 128 + told


def one_line(said: object) -> str:
    """The text of an error, or whatever was said, without its line breaks."""
    return " ".join(str(said).split())
