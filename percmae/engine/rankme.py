"""Effective rank of a representation: a figure of merit that needs no labels.

RankMe (Garrido, Balestriero, Najman, LeCun, ICML 2023, arXiv 2210.02885): the exponential of the
entropy of the singular values of a matrix of features, which is between 1, where all features lie
on one line, and their number of dimensions, where they spread evenly over all of them. A
representation that has collapsed is found so; among those of one network trained in different
ways, the one of higher rank tends to serve classifiers better. It says nothing of what the
dimensions hold.

Features are the mean of the patch tokens behind the encoder's final norm, on whole images, as they
are: neither centred nor scaled.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPSILON = 1e-7
"""Added to each normalised singular value, as in the paper."""


def rankme(features: Tensor) -> float:
    """Effective rank of features (N, D), in 1..min(N, D); not a number where one of them is not.

    Without a single image or with zeros alone it is 0.
    """
    rows = features.detach().double().cpu()
    if not bool(rows.isfinite().all()):
        return math.nan
    values = torch.linalg.svdvals(rows)
    total = float(values.sum())
    if total == 0:
        return 0.0
    shares = values / total + EPSILON
    return float((-(shares * shares.log()).sum()).exp())
