"""torchrun with exit codes that say what happened.

``python -m percmae.engine.torchrun [torchrun's options] -- pretrain …`` starts ``percmae pretrain
…`` as torchrun does, with options from the command line or PET_* variables. torchrun itself ends
with 1 for everything; in a cluster the exit code decides whether a pod is replaced. Here it is:

- the exit code of the process that failed first (128 + N when signal N killed it);
- 128 + N when torchrun itself was told to stop by signal N (after its processes have saved);
- PeerLost's when the other pods could not be found or were lost;
- StoreAway's when the store, in which this pod counts its starts, is away for too long;
- 2 when its own options or the PET_* variables make no sense;
- 1 when this pod has started too often (percmae.runs.restarts; options ``--run-folder`` and
  ``--backoff-limit``).

RANK and WORLD_SIZE, which a training operator sets in the pod, count pods there: torchrun does not
read them and gives its processes their own.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from percmae.command import exit_code
from percmae.errors import PeerLost, PercmaeError, UserError, one_line
from percmae.jobs.names import SHUTDOWN_TIMEOUT, shutdown_timeout
from percmae.progress import note
from percmae.runs.restarts import BACKOFF_LIMIT, RUN_FOLDER, STARTS_VARIABLE, Restarts
from percmae.signals import Terminated
from percmae.storage.outage import outage

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

_LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"
_USAGE = "python -m percmae.engine.torchrun [torchrun's options] -- VERB [options of percmae]"


def torchrun(arguments: list[str]) -> int:
    """Run torchrun with its options, ``--`` and the arguments of ``percmae``; the exit code."""
    code = 0

    def work() -> None:
        nonlocal code
        code = _counted(arguments)

    return exit_code(work) or code


def _parse(arguments: list[str]) -> argparse.Namespace:
    """torchrun's options. Raises UserError where it would print two pages of usage."""
    if "--" not in arguments or arguments[-1] == "--":
        raise UserError(f"no verb behind --; usage: {_USAGE}")
    _import_quietly()
    from torch.distributed.run import get_args_parser, parse_min_max_nnodes

    split = arguments.index("--")
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    # Behind another --, so that no option of percmae is taken for one of torchrun's (--run).
    given = [*arguments[:split], "--module", "--", "percmae", *arguments[split + 1 :]]
    options = parser.parse_args(given)
    try:
        parse_min_max_nnodes(options.nnodes)
    except (ValueError, RuntimeError):
        _refuse(f"nnodes={options.nnodes}: expected a number, or MIN:MAX")
    return options


def _import_quietly() -> None:
    """Import torch so that this process prints none of its pages about sockets and processes.

    Those that it starts still do.
    """
    before = os.environ.get(_LOG_LEVEL)
    os.environ[_LOG_LEVEL] = "FATAL"
    # Read with its options: torch's own 30 seconds are less than saving may take.
    os.environ.setdefault(SHUTDOWN_TIMEOUT, shutdown_timeout())
    import torch.distributed.run  # noqa: F401

    if before is None:
        del os.environ[_LOG_LEVEL]
    else:
        os.environ[_LOG_LEVEL] = before
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)


def _refuse(message: str) -> NoReturn:
    raise UserError(f"torchrun's options (or PET_* variables): {message}")


def _counted(arguments: list[str]) -> int:
    """As :func:`_run`; a start too many of this pod ends at once, where the pod was told a limit.

    Counted before torch is there, whose import alone may take more memory than the pod has. Raises
    also TooManyRestarts, StoreError.
    """
    own, others = _own(arguments)
    if own.run_folder is None:
        return _run(_parse(others))
    restarts = Restarts(own.run_folder, own.backoff_limit)
    with outage():
        os.environ[STARTS_VARIABLE] = str(restarts.begin())
    try:
        code = _run(_parse(others))
    except PercmaeError as error:
        restarts.end(error.exit_code)
        raise
    except Terminated:
        restarts.end(128 + signal.SIGTERM)
        raise
    restarts.end(code)
    return code


def _own(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options that are ours, and the arguments without them."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = _refuse  # type: ignore[method-assign]
    parser.add_argument(RUN_FOLDER)
    parser.add_argument(BACKOFF_LIMIT, type=int)
    own, others = parser.parse_known_args(arguments[:end])
    return own, [*others, *arguments[end:]]


def _run(options: argparse.Namespace) -> int:
    """The code to end with. Raises PeerLost and UserError."""
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import run

    try:
        run(options)
    except ChildFailedError as error:
        return _cause(error)
    except SignalException as error:
        return 128 + int(error.sigval)
    except (DistError, RendezvousError) as error:
        reason = one_line(error.__cause__ or error)
        if "EADDRINUSE" in reason:
            raise UserError(
                "another program has the port at which the processes were to meet: choose a free "
                f"one (--master-port, or the port of --rdzv-endpoint): {reason}"
            ) from None
        raise PeerLost(f"the other pods were not found, or left: {reason}") from None
    except (ValueError, AssertionError) as error:  # torchrun's way to refuse what it was given
        _refuse(one_line(error))
    return 0


def _cause(error: ChildFailedError) -> int:
    """The exit code of the process that failed first.

    Those that only missed another one, or that torchrun told to stop because of it, are asked last:
    two failures are seen as one where they lie less than a second apart.
    """
    of_others = (PeerLost.exit_code, 128 + signal.SIGTERM, -signal.SIGTERM)

    def order(rank: int) -> tuple[bool, int, int]:
        failure = error.failures[rank]
        return failure.exitcode in of_others, failure.timestamp, rank

    first = min(error.failures, key=order)
    code = error.failures[first].exitcode
    if code < 0:  # it could say nothing itself
        note(f"process {first} was ended by {signal.Signals(-code).name}")
    return code if code >= 0 else 128 - code


def main() -> NoReturn:
    """The command."""
    raise SystemExit(torchrun(sys.argv[1:]))


if __name__ == "__main__":
    main()
