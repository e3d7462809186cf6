"""What ``percmae run``, ``compare`` and ``retrain`` can be told, and what holds without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from percmae.errors import UserError
from percmae.stages.placement import Placement


@dataclass(frozen=True)
class RunOptions:
    """The same for one variant and for several.

    tag, recipe, size: of the runs, as for a pretraining; seeds: the whole DAG is repeated for each.
    overrides: ``key=value`` as :mod:`percmae.stages.scope` reads them. fine_tune: as well as
    probing; label_fractions: on these shares of the labels. to: folder of the reports.

    source: images as for :func:`percmae.data.sample.make_sample_archives`; None takes fashion-mnist
    and, where that cannot be had, says so and takes mnist. Instead of it, images: whatever
    ``percmae ingest --images`` takes, with labels as it has them; or archives: folder or ``s3://``
    prefix with the ILSVRC archives. dataset: name they are kept under. store:
    where datasets and runs are kept; None is an embedded S3 server below ``.percmae`` (or
    ``PERCMAE_HOME``) that runs as long as the pipeline does.

    placement: where the training is done; a cluster needs a ``store`` that its pods reach too.
    """

    tag: str = ""
    recipe: str = "demo"
    size: str = ""
    source: str | None = None
    images: str | None = None
    labels: str = "auto"
    archives: str | None = None
    dataset: str | None = None
    seeds: Sequence[int] = (0, 1, 2)
    overrides: Sequence[str] = ()
    fine_tune: bool = True
    label_fractions: Sequence[float] = (0.01, 0.1, 1.0)
    to: str | Path = "runs"
    store: str | None = None
    placement: Placement = field(default_factory=Placement)

    def check(self, variant: str) -> str:
        """The name of a variant's runs; raises UserError for what could not work."""
        # Here, so that --help, which shows the defaults above, does without.
        from percmae.stages.check import check_placement, check_training
        from percmae.storage import local_path

        local_path(self.to, "--to")
        given = [name for name in ("source", "images", "archives") if getattr(self, name)]
        if len(given) > 1:
            raise UserError(
                f"--{' and --'.join(given)}: the images come from one place; choose one"
            )
        if self.labels != "auto" and not self.images:
            raise UserError("--labels goes with --images; leave it out")
        check_placement(self.placement, self.store)
        what = (self.recipe, self.size, self.seeds, self.overrides, self.label_fractions)
        return check_training(variant, self.tag, *what)


@dataclass(frozen=True)
class RetrainOptions:
    """Of ``percmae retrain``.

    images, labels, dataset, store, to, recipe, size, tag, overrides, placement: as in RunOptions;
    to is for log and decision. model: name of what is promoted; start: ``champion`` or ``afresh``;
    rule: ``key=value`` of :class:`percmae.registry.rule.Rule`; seed: of the runs; schedule: by
    which it is started (percmae.stages.rounds).
    """

    images: str
    model: str
    labels: str = "auto"
    dataset: str | None = None
    start: str = "champion"
    rule: Sequence[str] = ()
    variant: str = "mae"
    recipe: str = "demo"
    size: str = ""
    tag: str = "retrain"
    seed: int = 0
    schedule: str = ""
    overrides: Sequence[str] = ()
    to: str | Path = "runs"
    store: str | None = None
    placement: Placement = field(default_factory=Placement)

    def check(self) -> None:
        """Raises UserError for what could not work."""
        # As above.
        from percmae.stages.check import check_placement
        from percmae.stages.retrain import check_retrain
        from percmae.storage import local_path

        local_path(self.to, "--to")
        check_placement(self.placement, self.store)
        names = ("model", "start", "rule", "variant", "tag", "recipe", "size", "seed")
        given = {name: getattr(self, name) for name in (*names, "overrides", "schedule")}
        check_retrain(**given)
