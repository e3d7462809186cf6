"""Perceptual MAE (arXiv 2212.14504): self-supervised vision pretraining as a pipeline.

``load_config`` gives the configuration of a run, ``build_model`` its network. Both are imported on
first use, so that ``import percmae`` (and ``percmae --help``) stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from percmae.config import load_config as load_config
    from percmae.models import build_model as build_model

__version__ = "0.1.0"
__all__ = ["__version__", "build_model", "load_config"]


def __getattr__(name: str) -> Any:
    if name == "load_config":
        from percmae.config import load_config

        return load_config
    if name == "build_model":
        from percmae.models import build_model

        return build_model
    raise AttributeError(f"module 'percmae' has no attribute {name!r}")
