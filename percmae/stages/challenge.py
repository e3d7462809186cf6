"""A challenge, from a model's name to its page: decided, written down, carried out if asked."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from percmae.data.shards import Dataset
from percmae.registry.judging import Decision, Evaluate, decide
from percmae.registry.model import CHAMPION, Reference
from percmae.registry.moves import promote
from percmae.registry.rule import rule_of
from percmae.runs.files import parse
from percmae.storage import StorePath
from percmae.storage.outage import outage

DECISIONS = "decisions"
_SIDE = 96  # pixels of the longer side of an image on the page


class Judged(NamedTuple):
    """A decision, and where it stands as a page and as JSON."""

    decision: Decision
    html: StorePath
    json: StorePath


@outage()
def challenge(
    challenger: Reference,
    rule: Iterable[str],
    evaluate: Evaluate,
    against: str = CHAMPION,
    carry_out: bool = False,
) -> Judged:
    """Hold a version against the one that the alias ``against`` names, and write down why.

    rule: ``key=value`` of :class:`percmae.registry.rule.Rule`. carry_out: the alias moves if so
    decided; where it has moved since, that is refused with UserError. Raises what
    :func:`percmae.registry.judging.decide` raises.
    """
    decision, dataset = decide(challenger, rule_of(rule), evaluate, against)
    content, page = decision.model_dump(mode="json"), _page(decision, dataset)
    # A decision that is written has been carried out.
    if carry_out and decision.outcome == "promote":
        chosen = challenger._replace(which=str(decision.challenger.version))
        before = decision.champion.version if decision.champion else None
        promote(chosen, against, decision.why, instead_of=before)
    folder = challenger.path / DECISIONS
    html, data = folder / f"{decision.name}.html", folder / f"{decision.name}.json"
    html.write_text(page)
    data.write_json(content)
    return Judged(decision, html, data)


def decided(model: StorePath, version: int) -> Judged | None:
    """The last decision about this challenger, if any. Raises DataError for a damaged one."""
    files = (entry.path for entry in (model / DECISIONS).iter())
    found = [
        Judged(parse(Decision, file.read_bytes(), file.uri, "judge again"), _beside(file), file)
        for file in files
        if file.name.startswith(f"{version}-against-") and file.name.endswith(".json")
    ]
    return max(found, key=lambda judged: judged.decision.when, default=None)


def _beside(file: StorePath) -> StorePath:
    return file.parent / file.name.replace(".json", ".html")


def _page(decision: Decision, dataset: Dataset) -> str:
    from percmae.report.decision import render_decision

    content = decision.model_dump(mode="json")
    return render_decision(content, list(_pictures(decision, dataset)))


def _pictures(decision: Decision, dataset: Dataset) -> Iterator[bytes]:
    """A small PNG of each image that is shown."""
    from percmae.data.decode import decode

    if not decision.shown:
        return
    split = dataset.split("test")
    keys = [key.decode(errors="backslashreplace") for key in split.keys.tolist()]
    place = {key: number for number, key in enumerate(keys)}
    for image in decision.shown:
        shard, offset, size = (int(v) for v in split.locate(place[image.key]))
        data = split.shards[shard].read_bytes(offset, size)
        picture = decode(data, name=image.key, formats=dataset.formats)
        picture.thumbnail((_SIDE, _SIDE))
        made = io.BytesIO()
        picture.save(made, "PNG")
        yield made.getvalue()
