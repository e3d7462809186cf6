"""What a machine may run out of while data is read: open files, processes, memory."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from percmae.errors import UserError


def shortage(error: BaseException) -> str | None:
    """What ran out, and what to do, in one line; None for an error of another kind."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EMFILE, errno.ENFILE):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"too many open files (ulimit -n is {limit:,}); raise the limit"
    if number == errno.EAGAIN or "can't start new thread" in str(error):
        return "too many processes or threads; raise ulimit -u, or the container's limit of them"
    if number in (errno.ENOMEM, errno.ENOSPC) or isinstance(error, MemoryError):
        return "not enough memory; lower data.workers or data.batch_size, or give it more"
    return None


@contextmanager
def told(doing: str) -> Iterator[None]:
    """Raise UserError with one line for a shortage that is met in the body."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as error:
        reason = shortage(error)
        if reason is None:
            raise
        raise UserError(f"{doing}: {reason}") from None
