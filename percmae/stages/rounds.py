"""``<model>/rounds.json``: when the last round of retraining began and ended.

From it the next one tells that it is not alone, or that starts of its schedule were missed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal
from zoneinfo import ZoneInfo

from percmae.errors import ConfigError
from percmae.jobs.crontab import Cron, parse_cron
from percmae.progress import warn
from percmae.registry.model import now, who
from percmae.runs.files import Part, parse
from percmae.storage import StorePath

ROUNDS = "rounds.json"
ZONE = "CRON_TZ="
"""What a schedule begins with that is not of UTC, as in ``CRON_TZ=Europe/Berlin 0 3 * * *``."""
_MOST = 1000  # starts that are counted


class Round(Part):
    """One round: the pipeline's run it is of, when it began (ISO 8601) and where, and its end."""

    id: str
    began: str
    who: str
    ended: str | None = None


class Rounds(Part):
    """What the file holds."""

    format: Literal["percmae-rounds/1"] = "percmae-rounds/1"
    last: Round


def begin(model: StorePath, id: str, schedule: str) -> None:
    """Note that a round begins; warn of one that goes on, and of starts that were missed.

    id: of the pipeline's run, whose step may be started again; schedule: by which it is started,
    empty for none. Raises DataError for a damaged file.
    """
    before: list[Round] = []

    def begun(data: bytes | None) -> bytes:
        before[:] = [_read(data, model).last] if data is not None else []
        if before and before[0].id == id:
            return data or b""
        return _written(Round(id=id, began=now(), who=who()))

    (model / ROUNDS).update(begun)
    if before and before[0].id != id:
        _tell(model, before[0], schedule)


def end(model: StorePath, id: str) -> None:
    """Note that a round has ended, unless another has begun since."""

    def ended(data: bytes | None) -> bytes:
        if data is None:
            return _written(Round(id=id, began=now(), who=who(), ended=now()))
        last = _read(data, model).last
        return _written(last.model_copy(update={"ended": now()})) if last.id == id else data

    (model / ROUNDS).update(ended)


def check_schedule(schedule: str) -> None:
    """Raise ConfigError for what is no schedule; empty is none."""
    if schedule:
        _cron(schedule)


def missed(schedule: str, since: datetime, until: datetime) -> int:
    """How many starts of a schedule lie between two rounds, that of the second left out."""
    cron, zone = _cron(schedule)
    count, moment = 0, cron.after(since.astimezone(zone))
    while moment is not None and moment <= until and count < _MOST:
        count, moment = count + 1, cron.after(moment)
    return max(0, count - 1)


def _tell(model: StorePath, last: Round, schedule: str) -> None:
    if last.ended is None:
        warn(
            f"{model}: the round that began at {last.began} ({last.who}) has not ended: it failed, "
            "or goes on beside this one"
        )
    if schedule and (
        count := missed(schedule, datetime.fromisoformat(last.began), datetime.now(UTC))
    ):
        warn(
            f"{model}: {count:,} start(s) of schedule {schedule!r} since {last.began} did not take "
            "place: nothing was there to start them, or a round took longer than the time between"
        )


def _cron(schedule: str) -> tuple[Cron, ZoneInfo]:
    zone = "UTC"
    if schedule.startswith(ZONE):
        zone, _, schedule = schedule.removeprefix(ZONE).partition(" ")
    try:
        return parse_cron(schedule), ZoneInfo(zone)
    except (ValueError, OSError, KeyError):
        raise ConfigError(f"schedule: unknown time zone {zone!r}") from None


def _read(data: bytes, model: StorePath) -> Rounds:
    return parse(Rounds, data, (model / ROUNDS).uri, "delete it")


def _written(last: Round) -> bytes:
    return (Rounds(last=last).model_dump_json(indent=2) + "\n").encode()
