"""Kinds of tasks that are not classification with one label per sample: recognised, and refused by name."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets

from fedistill.data.records import number

_BOXES = ("bbox", "bboxes", "boxes", "objects", "annotations", "segmentation")
"""What the columns of detection data are called."""
_MOST_NUMBERS = 20
_ONLY = "fedistill learns to classify, with one label for each sample"


def of_label(feature: Any, column: str) -> str:
    """Return why a column of this type cannot be the label, as the end of a sentence.

    Args:
        feature: what `datasets` declares of the column.
    """
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else None)
    if isinstance(feature, datasets.Image):
        return f"holds images, as for segmentation; {_ONLY}"
    if isinstance(feature, Mapping) or isinstance(inner, Mapping) or column.lower() in _BOXES:
        return f"holds tables, as for object detection; {_ONLY}"
    if inner is not None:
        return (
            f"holds lists, as for multi-label classification; {_ONLY}: keep the samples with one label, or"
            " make a column with one"
        )
    return f"holds values of type {getattr(feature, 'dtype', type(feature).__name__)}; {_ONLY}"


def is_quantity(labels: Sequence[Any], samples: int) -> bool:
    """Whether the different labels of this many samples are measured numbers, as for regression, not classes.

    They are if there are more than `_MOST_NUMBERS` of them, all numbers, and one has a fraction or half of
    the samples have a number of their own.
    """
    values = [number(label) for label in labels]
    if len(values) <= _MOST_NUMBERS or any(value is None for value in values):
        return False
    fractions = any(value is not None and not value.is_integer() for value in values)
    return fractions or 2 * len(values) > samples


def without_label(columns: Iterable[str]) -> str:
    """Return what data without a label column may be meant for, as the end of a sentence; or nothing."""
    names = {name.lower() for name in columns}
    if names & set(_BOXES):
        return f" (object detection is not supported: {_ONLY})"
    if len(names) == 1:
        return (
            " (private data without labels, as for self-supervised learning or language modelling, are not"
            f" supported: {_ONLY})"
        )
    return ""
