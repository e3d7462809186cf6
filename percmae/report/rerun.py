"""The commands that would make these runs again."""

from __future__ import annotations

import json
import shlex

from percmae.config import naming
from percmae.errors import ConfigError
from percmae.plain import read_yaml
from percmae.report.read import ReportedRun


def rerun_commands(runs: list[ReportedRun]) -> list[dict[str, str]]:
    """``{"what", "command", "note"}`` for each kind of run, after its first seed.

    The command sets every value that differs from the recipe's. A config that this percmae cannot
    read gives an empty command and the reason as the note.
    """
    steps = []
    for kind in dict.fromkeys(run.kind for run in runs):
        run = next(run for run in runs if run.kind == kind)
        seeds = [other.seed for other in runs if other.kind == kind and other is not run]
        others = f"Seeds {', '.join(map(str, seeds))}: change seed= and the addresses of the runs."
        note = others if seeds else ""
        try:
            command = _command(run)
        except ConfigError as error:
            command, note = "", f"{run.name}: {error}"
        steps.append({"what": kind, "command": command, "note": note})
    return steps


def _command(run: ReportedRun) -> str:
    from percmae.config.load import config_from_dict, leaves, load_config, stages_of

    if run.config is None:
        raise ConfigError("it has no config.yaml, so its command is not known")
    values = read_yaml(run.config, "its config.yaml")
    if not isinstance(values, dict):
        raise ConfigError("its config.yaml is not a mapping, so its command is not known")
    config = config_from_dict(values)
    preset = leaves(load_config(config.variant, config.recipe, config.stage, tag=config.tag))
    options = ["--data", run.record.data.uri, "--to", run.uri.rpartition("/")[0]]
    if run.stage == "pretrain":
        options += ["--variant", config.variant]
    elif run.record.parent is not None:
        options = ["--run", run.record.parent, *options]
    options += ["--recipe", config.recipe]
    if config.tag:
        options += ["--tag", config.tag]
    options += naming.options(run.stage, run.record.built_on)
    # What a file of weights does not tell, and the command may have.
    told = "model.encoder.heads" if run.record.parent_sha256 is not None else None
    # Where a control may differ from the preset without being told.
    own = "optim.layer_decay" if run.kind.startswith("finetune") and run.record.baseline else None
    given = [
        f"{key}={json.dumps(value)}"
        for key, value in leaves(config).items()
        if key == own or (value != preset[key] and (run.stage in stages_of(key) or key == told))
    ]
    if f"seed={config.seed}" not in given:
        given.append(f"seed={config.seed}")
    return " ".join(shlex.quote(word) for word in ["percmae", run.stage, *options, *given])
