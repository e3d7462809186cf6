"""What every entry point does alike: read key=value settings, turn errors into exit codes."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable

from percmae.errors import Interrupted, PeerLost, PercmaeError
from percmae.progress import log_to_stderr


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


def exit_code(work: Callable[[], object]) -> int:
    """Do the work; 0, or after one line on stderr the code that percmae.errors documents.

    Notes and progress go to stderr meanwhile. Ends the process itself where it must not be taken
    apart (:class:`PeerLost`).
    """
    try:
        with log_to_stderr():
            work()
    except PercmaeError as error:
        kind = "stopped" if isinstance(error, Interrupted | PeerLost) else "error"
        print(f"percmae: {kind}: {error}", file=sys.stderr, flush=True)
        if isinstance(error, PeerLost) and error.in_midst:
            # Before the error goes, and with it what its traceback holds.
            sys.stdout.flush()
            os._exit(error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        print("percmae: stopped: nothing half-written is left", file=sys.stderr, flush=True)
        return 128 + signal.SIGINT
    return 0
