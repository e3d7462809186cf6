"""Times as cron gives them: five fields, checked, and turned into what KFP and Kubernetes take.

The two differ from each other and from the cron of Unix. KFP's schedules have six fields, seconds
first, and take five for another schedule than meant; neither knows day 7; they disagree about what
``*/2`` in one field of days means for the other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from percmae.errors import ConfigError

_EXAMPLE = 'five fields: minute hour day-of-month month day-of-week, such as "0 2 * * 0" (Sundays '
_EXAMPLE += "at 2:00)"
_MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
_DAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
_MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
# A date as rare as 29 February on a given weekday comes within 40 years.
_FAR = timedelta(days=366 * 40)


class _Unit(NamedTuple):
    """What may stand in a field."""

    name: str
    low: int
    high: int
    names: list[str]


_UNITS = (
    _Unit("minute", 0, 59, []),
    _Unit("hour", 0, 23, []),
    _Unit("day of month", 1, 31, []),
    _Unit("month", 1, 12, _MONTHS),
    _Unit("day of week", 0, 7, _DAYS),
)
_DAY, _MONTH, _WEEKDAY = 2, 3, 4


@dataclass(frozen=True)
class Field:
    """One field: in numbers that every cron reads alike, and the values it stands for."""

    text: str
    values: frozenset[int]

    @property
    def free(self) -> bool:
        """Whether it begins with ``*``: days are then decided by the other field of days."""
        return self.text.startswith("*")


@dataclass(frozen=True)
class Cron:
    """A schedule; equal to another when both mean the same times."""

    fields: tuple[Field, ...]

    @property
    def standard(self) -> str:
        """The five fields, as Kubernetes' CronJob and people take them."""
        return " ".join(field.text for field in self.fields)

    @property
    def kfp(self) -> str:
        """KFP's six fields: on second 0 of the same minutes."""
        return f"0 {self.standard}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cron) and self._meaning() == other._meaning()

    def __hash__(self) -> int:
        return hash(self._meaning())

    def _meaning(self) -> tuple[tuple[frozenset[int], bool], ...]:
        return tuple((field.values, field.free) for field in self.fields)

    def after(self, moment: datetime) -> datetime | None:
        """The first time after ``moment``, in its time zone; None when there never is one."""
        minutes, hours = self.fields[0].values, self.fields[1].values
        start = moment.replace(second=0, microsecond=0) + timedelta(minutes=1)
        day, last = start.replace(hour=0, minute=0), start + _FAR
        while day <= last:
            if self._on(day):
                for hour in sorted(hours):
                    for minute in sorted(minutes):
                        time = day.replace(hour=hour, minute=minute)
                        if time >= start:
                            return time
            day += timedelta(days=1)
        return None

    def _on(self, day: datetime) -> bool:
        """Whether the schedule has this day.

        As everywhere: when both fields of days are restricted, either is enough.
        """
        if day.month not in self.fields[_MONTH].values:
            return False
        date, weekday = self.fields[_DAY], self.fields[_WEEKDAY]
        fits = (day.day in date.values, day.isoweekday() % 7 in weekday.values)
        return all(fits) if date.free or weekday.free else any(fits)


def parse_cron(text: str) -> Cron:
    """A schedule of five fields (or ``@daily`` and its like).

    Names of months and days, lists, ranges, steps and day 7 are understood. Raises ConfigError
    that names the field for anything else, and for a date that never comes.
    """
    words = _MACROS.get(text.strip().lower(), text).split()
    if len(words) != len(_UNITS):
        raise ConfigError(f"cron {text!r}: {_wrong_count(text, words)}")
    try:
        fields = tuple(_field(word, unit) for word, unit in zip(words, _UNITS, strict=True))
        cron = Cron(_checked_days(fields))
    except ValueError as error:
        raise ConfigError(f"cron {text!r}: {error}") from None
    if cron.after(datetime(2024, 1, 1)) is None:
        raise ConfigError(f"cron {text!r}: no such date ever comes")
    return cron


def from_kfp(text: str) -> Cron | None:
    """A deployed schedule's six fields; None for one that five fields cannot say."""
    seconds, _, rest = text.strip().partition(" ")
    try:
        return parse_cron(rest) if seconds == "0" else None
    except ConfigError:
        return None


def _wrong_count(text: str, words: list[str]) -> str:
    if text.strip().startswith("@"):
        return f"of such words {', '.join(_MACROS)} are known; or give {_EXAMPLE}"
    if len(words) == 6:
        return (
            "has six fields; give five, the seconds are added where KFP wants them. Meant is "
            f'perhaps "{" ".join(words[1:])}"'
        )
    return f"has {len(words)} field{'' if len(words) == 1 else 's'}; give {_EXAMPLE}"


def _field(word: str, unit: _Unit) -> Field:
    items: list[str] = []
    values: set[int] = set()
    for part in word.split(","):
        text, stands_for = _part(part, unit)
        items.append(text)
        values |= stands_for
    if unit is _UNITS[_WEEKDAY] and 7 in values:
        # Sunday is 0 to those who will read it.
        values = {value % 7 for value in values}
        items = [str(value) for value in sorted(values)] if len(values) < 7 else ["*"]
    if "*" in items:
        return Field("*", frozenset(values))
    return Field(",".join(items), frozenset(values))


_PART = re.compile(r"(?P<range>[^/]+)(/(?P<step>\d+))?")


def _part(part: str, unit: _Unit) -> tuple[str, set[int]]:
    """One item of a list: its text in numbers, and its values."""
    match = _PART.fullmatch(part)
    if match is None:
        raise ValueError(f"{unit.name} {part!r} is not a number, a range 1-5 or a step */2")
    step = int(match["step"]) if match["step"] else 1
    if step < 1:
        raise ValueError(f"{unit.name} {part!r}: a step is at least 1")
    top = min(unit.high, 6) if unit.names is _DAYS else unit.high
    if match["range"] in ("*", "?"):
        if match["range"] == "?" and unit not in (_UNITS[_DAY], _UNITS[_WEEKDAY]):
            raise ValueError(f"{unit.name} {part!r}: '?' is for the fields of days; write '*'")
        return ("*" if step == 1 else f"*/{step}"), set(range(unit.low, top + 1, step))
    first, dash, last = match["range"].partition("-")
    low = _number(first, unit, part)
    if not dash:
        high = top if match["step"] else low  # 5/15: from 5 on
    else:
        high = _number(last, unit, part)
        if unit.names is _DAYS and high == 0 and low > 0:
            high = 7  # FRI-SUN
    if high < low:
        raise ValueError(
            f"{unit.name} {part!r}: the range runs backwards; write two, as in 22-23,0-4"
        )
    text = str(low) if low == high else f"{low}-{high}"
    return (text if step == 1 else f"{text}/{step}"), set(range(low, high + 1, step))


def _number(text: str, unit: _Unit, part: str) -> int:
    if text.upper() in unit.names:
        return unit.low + unit.names.index(text.upper())
    if not re.fullmatch(r"[0-9]{1,2}", text):
        hint = ""
        if re.search(r"[LW#]", part.upper()) and unit.name.startswith("day"):
            hint = "; L, W and # are not known here"
        names = f", or {unit.names[0]} to {unit.names[-1]}" if unit.names else ""
        raise ValueError(
            f"{unit.name} {part!r}: {text!r} is not {unit.low} to {unit.high}{names}{hint}"
        )
    value = int(text)
    if not unit.low <= value <= unit.high:
        raise ValueError(f"{unit.name} {part!r}: {value} is not {unit.low} to {unit.high}")
    return value


def _checked_days(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    for one, other in ((_DAY, _WEEKDAY), (_WEEKDAY, _DAY)):
        if fields[one].text.startswith("*/") and not fields[other].free:
            raise ValueError(
                f"{fields[one].text!r} beside {fields[other].text!r} as days: KFP reads it as "
                "both, Kubernetes as either; write the days out"
            )
    return fields
