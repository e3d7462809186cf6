"""Perceptual MAE (arXiv 2212.14504): self-supervised vision pretraining as a pipeline.

``pretrain``, ``probe``, ``finetune`` and ``evaluate`` are the verbs of the command line as
functions; ``embed`` gives features of any images, ``encoder`` the pretrained network
(docs/python.md). ``load_config`` gives the configuration of a run, ``build_model`` its network. All
are imported on first use, so that ``import percmae`` (and ``percmae --help``) stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from percmae.api import EmbedResult as EmbedResult
    from percmae.api import embed as embed
    from percmae.api import encoder as encoder
    from percmae.api import evaluate as evaluate
    from percmae.api import finetune as finetune
    from percmae.api import pretrain as pretrain
    from percmae.api import probe as probe
    from percmae.config import load_config as load_config
    from percmae.models import build_model as build_model

__version__ = "0.1.0"
__all__ = [
    "EmbedResult",
    "__version__",
    "build_model",
    "embed",
    "encoder",
    "evaluate",
    "finetune",
    "load_config",
    "pretrain",
    "probe",
]

_WHERE = {name: "percmae.api" for name in __all__ if name != "__version__"} | {
    "load_config": "percmae.config",
    "build_model": "percmae.models",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'percmae' has no attribute {name!r}")
