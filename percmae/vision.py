"""The one place that imports torchvision.

Some installs pair a CPU build of torch with a torchvision wheel built for CUDA (the plain PyPI
wheel on Linux). Its compiled operators then do not load, and ``import torchvision`` itself stops
with ``operator torchvision::nms does not exist``, because a Python decorator refers to two
operators that were never registered. Transforms, datasets and models are pure Python and need
neither operator, so declaring the two *schemas* first (no kernels) lets the import pass. Calling
them still fails, which is right: nothing here detects boxes. On a healthy install the schemas
already exist after the import and nothing below changes anything.

``from percmae.vision import torchvision`` everywhere, never ``import torchvision``; timm imports
torchvision itself, so it comes from here too.
"""

from __future__ import annotations

from types import ModuleType

import torch

_OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# Kept for the life of the process: a Library withdraws its definitions when it is collected.
_schemas: torch.library.Library | None = None

try:
    import torchvision
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    import sys

    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    _schemas = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _OPERATORS.values():
        _schemas.define(schema)
    import torchvision


def load_timm() -> ModuleType:
    """The timm package, imported on first use (it takes most of a second)."""
    import timm
    import timm.data
    import timm.optim

    return timm


__all__ = ["load_timm", "torchvision"]
