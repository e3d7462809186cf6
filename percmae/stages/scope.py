"""Which stage a setting is for: ``key=value`` is for every stage that has it, or for one of them.

``optim.epochs=3`` is for each stage that trains, ``probe.optim.epochs=5`` for the probe alone, and
the stronger for it in whichever order they stand. The same holds for settings of a training
(``overrides``) and of a job (``job``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from percmae.config import TRAININGS
from percmae.config.load import override_leaves, stages_of
from percmae.errors import ConfigError
from percmae.jobs.schema import OF_TRAININGS

STAGES = (*TRAININGS, "evaluate")
"""Whose settings a pipeline's parameters may hold."""
_SCOPES = (*STAGES, "all")
"""What may stand in front of a setting. ``all.`` is an older spelling of nothing in front."""


def overrides_for(stage: str, overrides: Iterable[str]) -> list[str]:
    """The ``key=value`` settings of one stage's training, without a stage in front.

    One for every stage is left out where it is no setting of that stage (``model.mask_ratio`` of a
    probe). Raises ConfigError for a key that no stage has, for one that is given for a stage whose
    setting it is not, and for a parameter of the whole pipeline.
    """

    def stages(key: str) -> tuple[str, ...]:
        if key in _ADVICE:
            raise ConfigError(f"override {key}: {_ADVICE[key]}")
        return stages_of(key)

    return _for_stage(stage, "override", overrides, override_leaves, stages)


_AGREE = "so that all stages of a seed agree"
# What tells runs of one pipeline apart: parameters of the pipeline, not settings of a stage.
_ADVICE = {
    "seed": f"give the seeds as the pipeline's own parameter (--seeds 0,1,2), {_AGREE}",
    "tag": f"give the tag as the pipeline's own parameter (--tag), {_AGREE}",
    "name": f"runs are named <tag>_<variant> in a pipeline; give a tag (--tag), {_AGREE}",
    "data.label_fraction": "give shares of the labels as the pipeline's own parameter "
    "(--label-fractions 0.01,0.1,1); a probe of few labels is `percmae probe`'s",
}


def job_settings_for(stage: str, job: Iterable[str]) -> list[str]:
    """The ``key=value`` job settings of one stage, without a stage in front.

    Raises ConfigError for one that is given for a stage whose setting it is not.
    """

    def parts(setting: str) -> list[tuple[str, str]]:
        return [(setting.partition("=")[0].strip(), setting)]

    def stages(key: str) -> tuple[str, ...]:
        return TRAININGS if key in OF_TRAININGS else STAGES

    return _for_stage(stage, "job setting", job, parts, stages)


def job_namespaces(job: Iterable[str]) -> list[str]:
    """The namespaces that the jobs of any stage are put into by ``key=value`` job settings.

    Nothing else in them is looked at, so this holds for settings that no job could have.
    """
    found = []
    for setting in job:
        key, _, value = _scoped(setting)[1].partition("=")
        if key.strip() == "namespace" and value.strip():
            found.append(value.strip().strip("'\""))
    return list(dict.fromkeys(found))


def _scoped(setting: str) -> tuple[str, str]:
    """What stands in front of a setting, ``all`` for nothing, and the setting without it."""
    scope, dot, rest = setting.strip().partition(".")
    return (scope, rest) if dot and scope in _SCOPES else ("all", setting.strip())


def _for_stage(
    stage: str,
    what: str,
    given: Iterable[str],
    parts: Callable[[str], list[tuple[str, str]]],
    stages: Callable[[str], tuple[str, ...]],
) -> list[str]:
    """Settings of a stage, those for every stage first.

    parts: the key, and ``key=value``, of each setting in one without a stage; stages: whose setting
    a key is.
    """
    general, own = [], []
    for setting in given:
        scope, rest = _scoped(setting)
        for key, part in parts(rest):
            known = stages(key)
            if scope == "all" and stage in known:
                general.append(part)
            elif scope != "all" and scope not in known:
                raise ConfigError(
                    f"{what} {setting.strip()!r}: {key} is a setting of {', '.join(known)}, "
                    f"not of {scope}"
                )
            elif scope == stage:
                own.append(part)
    return general + own
