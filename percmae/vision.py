"""The one place that imports torchvision.

Some installs pair a CPU build of torch with a torchvision wheel built for CUDA (the plain PyPI
wheel on Linux). Its compiled operators then do not load, and ``import torchvision`` itself stops
with ``operator torchvision::nms does not exist``, because a Python decorator refers to two
operators that were never registered. Transforms, datasets and models are pure Python and need
neither operator, so declaring the two *schemas* first (no kernels) lets the import pass. Calling
them still fails, which is right: nothing here detects boxes. On a healthy install the schemas
already exist after the import and nothing below changes anything.

``vision.torchvision`` everywhere, never ``import torchvision``; timm imports torchvision itself, so
it comes from here too. Both on first use: torchvision brings torch's compiler along, which takes as
long to import as torch itself, and a pretraining needs neither.
"""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType

import torch

_OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# Kept for the life of the process: a Library withdraws its definitions when it is collected.
_schemas: list[torch.library.Library] = []


@cache
def load_torchvision() -> ModuleType:
    """The torchvision package, as ``vision.torchvision`` is."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _schemas.append(torch.library.Library("torchvision", "FRAGMENT"))
        for schema in _OPERATORS.values():
            _schemas[0].define(schema)
        import torchvision
    return torchvision


def load_timm() -> ModuleType:
    """The timm package."""
    load_torchvision()
    import timm
    import timm.data
    import timm.optim

    return timm


def __getattr__(name: str) -> ModuleType:
    if name == "torchvision":
        return load_torchvision()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
