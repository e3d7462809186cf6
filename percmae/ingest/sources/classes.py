"""Labels as sources have them, in numbers or words, and the classes that they are of."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from percmae.data.shards import ClassInfo
from percmae.errors import DataError
from percmae.ingest.catalogue import BY_HASH, TEST, TRAIN, UNLABELLED, VAL

SPLIT_NAMES = {"train": TRAIN, "val": VAL, "validation": VAL, "valid": VAL, "test": TEST}
"""What folders, archives and tables call a split; capitals count as small letters."""

# ImageNet-21k has 21,841. What has more are no classes, but numbers of images or measurements.
_DIGITS = 5
MOST_CLASSES = 10**_DIGITS


class Labels:
    """Numbers labels in the order of their coming; in the end they get those of their classes."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The label's number; UNLABELLED for an empty one."""
        text = text.strip()
        if not text:
            return UNLABELLED
        if not text.isascii():
            text = unicodedata.normalize("NFC", text)
        return self._numbers.setdefault(text, len(self._numbers))

    def __iter__(self) -> Iterator[str]:
        """The labels, by number."""
        return iter(self._numbers)

    def classes(
        self, source: str, *, dense: bool = False, names: Sequence[str] = ()
    ) -> tuple[list[ClassInfo], np.ndarray]:
        """The classes, and the class of each number that was given, int32 (numbers,).

        Words are sorted. Where all labels are whole numbers (of up to five digits) they are sorted
        as such, and have leading zeros in their wnid, which sorts them as text as well. dense:
        numbers are places in a list of classes, so those that do not occur are classes too; names:
        of the classes then. Raises DataError for too many classes, and for a number without a name
        where there are any.
        """
        numbered = all(_is_number(text) for text in self._numbers)
        highest = max(map(int, self._numbers), default=-1) if numbered else -1
        if not numbered or (highest >= MOST_CLASSES and not dense):
            words = sorted(self._numbers)
            _check_number(len(words), source)
            place = {text: k for k, text in enumerate(words)}
            return [ClassInfo(w, w) for w in words], self._places(place)
        _check_number(highest + 1, source)
        if names and highest >= len(names):
            raise DataError(
                f"{source}: there is a label {highest}, and its list of classes has {len(names):,} "
                f"lines, for 0 to {len(names) - 1}; complete it, or take it away"
            )
        numbers = sorted(map(int, self._numbers))
        if dense and numbers:
            numbers = list(range(max(highest + 1, len(names))))
        place = {str(n): k for k, n in enumerate(numbers)}
        classes = [ClassInfo(f"{n:0{_DIGITS}d}", names[n] if names else str(n)) for n in numbers]
        return classes, self._places(place)

    def _places(self, place: dict[str, int]) -> np.ndarray:
        return np.array([place[text] for text in self._numbers], dtype=np.int32)


def renumbered(labels: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Labels by :class:`Labels`' numbers as classes; UNLABELLED stays; int32 (n,)."""
    return np.append(places, np.int32(UNLABELLED))[labels].astype(np.int32)


def settled(splits: np.ndarray) -> np.ndarray:
    """Declared splits as a catalogue has them, int8 (n,).

    Where the source has no validation or no test images, they are drawn out of its training images,
    so that only with both are those meant for training alone.
    """
    if np.any(splits == VAL) and np.any(splits == TEST):
        return splits
    return np.where(splits == TRAIN, BY_HASH, splits).astype(np.int8)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and (text == "0" or not text.startswith("0"))


def _check_number(classes: int, source: str) -> None:
    if classes > MOST_CLASSES:
        raise DataError(
            f"{source} would have {classes:,} classes, and {MOST_CLASSES:,} are the most: if its "
            "labels are no classes, --labels none takes the images without"
        )
