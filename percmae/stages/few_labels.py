"""How long a pipeline trains on a share of the labels (docs/method.md, "Few labels")."""

from __future__ import annotations

import json
import math

from percmae.config import Config
from percmae.config.load import leaves

_IN_EPOCHS = ("optim.epochs", "optim.warmup_epochs", "optim.step_epochs", "trainer.val_interval")


def settings_for(config: Config, fraction: float) -> list[str]:
    """The ``key=value`` settings that make a training on all labels one on a share of them.

    config: of the training on all labels; fraction: of each class's images, in (0, 1]. Passes over
    the images become 1/√fraction times as many, and so does all that is counted in them: a tenth of
    the labels is seen three times as often, in a third of the steps.
    """
    if fraction == 1:
        return []
    values, times = leaves(config), 1 / math.sqrt(fraction)
    scaled = {key: values[key] * times for key in _IN_EPOCHS}
    whole = {key: round(x) if isinstance(values[key], int) else x for key, x in scaled.items()}
    return [
        f"data.label_fraction={json.dumps(fraction)}",
        *(f"{key}={json.dumps(value)}" for key, value in whole.items()),
    ]
