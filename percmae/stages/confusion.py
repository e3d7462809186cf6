"""A confusion matrix for a UI, which cannot show one of many classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from percmae.runs.evaluation import ClassifierEvaluation

# More classes than this and a confusion matrix is no longer something to look at in a UI.
MOST_CLASSES_SHOWN = 100


def shown_confusion(evaluation: ClassifierEvaluation) -> tuple[list[str], list[list[int]]]:
    """Names and counts of a confusion matrix that a UI can show.

    Of many classes those with most mistakes, and all others as one.
    """
    names, counts = [item.name for item in evaluation.classes], evaluation.confusion
    if len(names) <= MOST_CLASSES_SHOWN:
        return names, counts
    matrix = np.asarray(counts)
    wrong = matrix.sum(axis=1) - matrix.diagonal()
    shown = np.sort(np.argsort(-wrong, kind="stable")[: MOST_CLASSES_SHOWN - 1])
    group = np.full(len(names), len(shown))
    group[shown] = np.arange(len(shown))
    together = np.zeros((len(shown) + 1,) * 2, dtype=matrix.dtype)
    np.add.at(together, (group[:, None], group[None, :]), matrix)
    return [*(names[i] for i in shown), "all other classes"], together.tolist()
