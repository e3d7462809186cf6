"""``percmae config show --docs``: every setting there is, by what it is of."""

from __future__ import annotations

from collections.abc import Iterator

from percmae.config import flat, load
from percmae.jobs.schema import JobSettings
from percmae.registry.rule import Rule


def settings_docs() -> str:
    """Name, type and meaning of the settings of a run, of a job and of the rule."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    for key, kind, text in load.docs():
        stages = load.stages_of(key)
        whose = "" if stages == load.TRAININGS else f"; {', '.join(stages)}"
        yield _told(key, kind + whose, text)
    for title, cls in (
        ("a job in a cluster (--job key=value)", JobSettings),
        ("the rule between champion and challenger (--rule key=value)", Rule),
    ):
        yield f"\nSettings of {title}:\n"
        yield from (_told(*each) for each in flat.docs(cls))


def _told(key: str, kind: str, text: str) -> str:
    return f"{key}  ({kind})\n    {' '.join(text.split())}"
