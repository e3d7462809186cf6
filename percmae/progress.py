"""Progress on stderr: a bar on a terminal, plain lines at a steady pace anywhere else.

Both show how much is done, how fast, and how long the rest will take. tqdm draws the bar and is
loaded only when there is one.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")

_open_bars = 0


class Progress:
    """How far one piece of work is. Use as a context manager, and ``update`` as it goes on."""

    def __init__(
        self,
        desc: str,
        total: int | None,
        unit: str = "it",
        interval: float = 10.0,
        *,
        initial: int = 0,
        show: bool = True,
    ) -> None:
        """``desc`` names the work and ``unit`` what is counted ("B" for bytes).

        ``total`` may be unknown. ``interval``: seconds between two lines where there is no
        terminal. ``initial``: done before, in a run that is resumed; it counts for the position
        but not for the rate. ``show=False`` says nothing at all (every rank but the first).
        """
        self.desc = desc
        self.total = total
        self.unit = unit
        self.done = initial
        self._initial = initial
        self._interval = interval
        self._show = show
        self._postfix: dict[str, Any] = {}
        self._began = self._last_line = time.monotonic()
        self._closed = False
        self._bar = self._open_bar() if show and _is_terminal() else None

    def update(self, n: int = 1, **postfix: Any) -> None:
        """``n`` more are done; ``postfix`` (``loss=0.41``) is shown beside it until replaced."""
        self.done += n
        self._postfix.update(postfix)
        if self._bar is not None:
            if postfix:
                self._bar.set_postfix(self._postfix, refresh=False)
            self._bar.update(n)
        elif self._show and self.done != self.total:  # the last line is for close()
            now = time.monotonic()
            if now - self._last_line >= self._interval:
                self._last_line = now
                _print(self._line(final=False))

    def close(self) -> None:
        """End the bar, or print the last line. Closing twice is fine."""
        global _open_bars
        if self._closed:
            return
        self._closed = True
        if self._bar is not None:
            self._bar.close()
            _open_bars -= 1
        elif self._show:
            _print(self._line(final=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open_bar(self) -> tqdm[Any]:
        global _open_bars
        from tqdm import tqdm

        _open_bars += 1
        in_bytes = self.unit == "B"
        return tqdm(
            desc=self.desc,
            total=self.total,
            unit="B" if in_bytes else f" {self.unit}",
            unit_scale=in_bytes,
            unit_divisor=1024,
            initial=self.done,
            file=sys.stderr,
            dynamic_ncols=True,
        )

    def _line(self, final: bool) -> str:
        seconds = time.monotonic() - self._began
        rate = (self.done - self._initial) / seconds if seconds > 0 else 0.0
        parts = [f"{self.desc}: {_amount(self.done, self.total, self.unit)}"]
        if rate > 0:
            parts.append(_rate(rate, self.unit))
        if final:
            parts.append(f"took {_clock(seconds)}")
        elif rate > 0 and self.total is not None:
            parts.append(f"eta {_clock(max(0, self.total - self.done) / rate)}")
        parts += [f"{key}={_value(value)}" for key, value in self._postfix.items()]
        return ", ".join(parts)


@overload
def progress(
    iterable: None, total: int | None = None, desc: str = "", unit: str = "it", **options: Any
) -> Progress: ...
@overload
def progress(
    iterable: Iterable[T],
    total: int | None = None,
    desc: str = "",
    unit: str = "it",
    **options: Any,
) -> Iterator[T]: ...
def progress(
    iterable: Iterable[T] | None,
    total: int | None = None,
    desc: str = "",
    unit: str = "it",
    **options: Any,
) -> Progress | Iterator[T]:
    """Show progress through ``iterable``, one step an item; with None, a ``Progress`` to update.

    ``total`` defaults to the iterable's length where it has one; ``options`` go to ``Progress``.
    """
    if iterable is None:
        return Progress(desc, total, unit, **options)
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    return _each(iterable, Progress(desc, total, unit, **options))


def note(message: str) -> None:
    """One line to stderr, above the bar if there is one."""
    if _open_bars:
        from tqdm import tqdm

        tqdm.write(message, file=sys.stderr)
    else:
        _print(message)


def _each(iterable: Iterable[T], shown: Progress) -> Iterator[T]:
    with shown:
        for item in iterable:
            yield item
            shown.update()


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _amount(done: int, total: int | None, unit: str) -> str:
    if unit == "B":
        return _bytes(done) if total is None else f"{_bytes(done)}/{_bytes(total)}"
    return f"{done} {unit}" if total is None else f"{done}/{total} {unit}"


def _rate(rate: float, unit: str) -> str:
    if unit == "B":
        return f"{_bytes(rate)}/s"
    return f"{_number(rate)} {unit}/s" if rate >= 1 else f"{_number(1 / rate)} s/{unit}"


def _bytes(amount: float) -> str:
    for prefix in ("", "Ki", "Mi", "Gi"):
        if amount < 1024:
            return f"{_number(amount)} {prefix}B"
        amount /= 1024
    return f"{_number(amount)} TiB"


def _number(value: float) -> str:
    """Three digits: 1234, 350, 35.2, 3.52."""
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    """m:ss, with hours h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
