"""What every entry point does alike: read key=value settings, turn errors into exit codes."""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from percmae import unforeseen
from percmae.errors import Interrupted, PeerLost, PercmaeError, UserError
from percmae.progress import log_to_stderr
from percmae.signals import INTERRUPTED, TERMINATED, Terminated, at_once, terminating
from percmae.streams import ReaderGone, prepare

_FILES = 65_536  # at once; enough for any number of data workers


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parse options that may stand before, between and behind ``key=value`` settings.

    The settings go to ``overrides``, which only commands that take some set by default; anything
    else left over is a usage error, told by the command's own ``parser`` where it has set one.
    """
    args, rest = parser.parse_known_args(arguments)
    foreign = [text for text in rest if text.startswith("-") or not hasattr(args, "overrides")]
    if foreign:
        # Through argparse, so that it reads and exits like any other usage error.
        getattr(args, "parser", parser).error(f"unrecognized arguments: {' '.join(foreign)}")
    if rest:
        args.overrides = rest
    return args


def exit_code(work: Callable[[], object], logged: bool = False) -> int:
    """Do the work; 0, or after one line on stderr the code that percmae.errors documents.

    The one line is for whatever is raised, SystemExit with a code apart (``percmae.unforeseen``).
    logged: stderr is kept, and a file might not be: the traceback of a fault goes there.
    Notes and progress go to stderr meanwhile, and SIGTERM ends the work at once where nothing in it
    has other plans (``percmae.signals``). Ends the process itself where it must not be taken apart
    (``in_midst`` of an error).
    """
    prepare()
    try:
        with at_once():
            return _guarded(work, logged)
    except Terminated:  # as the handler came, or went
        return _terminated()


def _guarded(work: Callable[[], object], logged: bool) -> int:
    # A test may have put others in their place.
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _thread_ended
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _not_raised
    code = _code(_look_around) or _code(work, logged)
    # What was printed may be written only now.
    return _code(sys.stdout.flush) or code


def _code(work: Callable[[], object], logged: bool = False) -> int:
    try:
        with log_to_stderr():
            work()
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        return _told("error", str(ended.code), 1)
    except (Interrupted, PeerLost) as error:
        code = _told("stopped", str(error), error.exit_code)
        if error.in_midst:
            # Before the error goes, and with it what its traceback holds.
            with suppress(OSError, PercmaeError):
                sys.stdout.flush()
            os._exit(code)
        return code
    except PercmaeError as error:
        return _told("error", str(error), error.exit_code)
    except KeyboardInterrupt:
        return _told("stopped", INTERRUPTED, 128 + signal.SIGINT)
    except Terminated:
        return _terminated()
    except ReaderGone:
        return 128 + signal.SIGPIPE
    except Exception as error:
        if terminating():
            return _terminated()
        known = unforeseen.in_words(error, logged)
        return _told("error", str(known), known.exit_code)
    return 0


def _terminated() -> int:
    return _told("stopped", TERMINATED, 128 + signal.SIGTERM)


def _told(kind: str, message: str, code: int) -> int:
    print(f"percmae: {kind}: {message}", file=sys.stderr, flush=True)
    return code


def _thread_ended(args: threading.ExceptHookArgs) -> None:
    """The one line for what ends a thread; not where the thread keeps it for who has started it."""
    error = args.exc_value
    if isinstance(error, Exception) and getattr(args.thread, "exception", None) is not error:
        _told("error", str(unforeseen.in_words(error)), 0)


def _not_raised(args: sys.UnraisableHookArgs) -> None:
    """What goes wrong while things are taken apart is for those who look for faults alone."""
    if unforeseen.debugging():
        sys.__unraisablehook__(args)


def _look_around() -> None:
    """Take the open files that the system allows, more than it gives unasked.

    Raises UserError for surroundings that libraries end the process in, or fail in obscurely.
    """
    few, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if few < _FILES and (most == resource.RLIM_INFINITY or few < most):
        wanted = _FILES if most == resource.RLIM_INFINITY else min(_FILES, most)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(
            f"the current folder cannot be used ({error.strerror}); change to one that is there"
        ) from None
