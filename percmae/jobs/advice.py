"""What of the settings of a job would be taken, and may not be what was meant: warnings."""

from __future__ import annotations

from percmae.jobs.check import warn_unpinned
from percmae.jobs.parts import has_login
from percmae.jobs.schema import LEAST_PER_GPU, JobSettings
from percmae.jobs.syntax import cores, memory
from percmae.progress import warn


def advise(settings: JobSettings) -> None:
    """Warn of an image that may change, of too little for each GPU, of a password to be read.

    settings: of a stage (:meth:`JobSettings.for_stage`).
    """
    warn_unpinned(settings.image)
    _small(settings)
    for entry in settings.env:
        if has_login(entry.get("value") or ""):
            warn(
                f"job setting env, {entry['name']}: whoever may read the job reads the proxy's "
                "password; put it into a Secret and give valueFrom: {secretKeyRef: {name: …, "
                "key: …}}"
            )


def _small(settings: JobSettings) -> None:
    """Say what keeps a training's GPUs waiting, or has its pods killed."""
    given = {
        "cpu": (cores(settings.cpu or "", "cpu"), LEAST_PER_GPU.cpu, ""),
        "memory": (memory(settings.memory or "", "memory") / 2**30, LEAST_PER_GPU.memory, "Gi"),
        "shm": (memory(settings.shm or "", "shm") / 2**30, LEAST_PER_GPU.shm, "Gi"),
    }
    for name, (amount, least, unit) in given.items():
        if amount < least * settings.gpus:
            warn(
                f"job setting {name}={getattr(settings, name)} is little for {settings.gpus} "
                f"GPU(s): at least {least}{unit} for each, or leave it out"
            )
