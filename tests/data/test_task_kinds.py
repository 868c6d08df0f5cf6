"""Tasks that are not classification with one label per sample are refused by name."""

from pathlib import Path

import datasets
import numpy as np
import pytest

from fedistill.config.task import TaskConfig
from fedistill.data.build import build_task
from fedistill.errors import ExperimentError

TEXTS = [f"text number {place}" for place in range(12)]
ONLY = "fedistill learns to classify, with one label for each sample"


def refusal(folder: Path, columns: dict[str, list[object]], features: datasets.Features | None = None) -> str:
    datasets.Dataset.from_dict(columns, features).save_to_disk(str(folder / "data"))
    config = TaskConfig.model_validate(
        {"format": "save_to_disk", "train": str(folder / "data"), "clients": 2}
    )
    with pytest.raises(ExperimentError) as caught:
        build_task(config, 0)
    return str(caught.value)


def test_several_labels_for_a_sample(tmp_path: Path) -> None:
    said = refusal(tmp_path, {"text": [*TEXTS], "label": [[0, 1], [1]] * 6})
    assert f"column 'label' holds lists, as for multi-label classification; {ONLY}" in said


def test_boxes(tmp_path: Path) -> None:
    boxes = [{"bbox": [[0.0, 0.0, 1.0, 1.0]], "category": [3]} for _ in TEXTS]
    said = refusal(tmp_path, {"text": [*TEXTS], "label": [*boxes]})
    assert f"column 'label' holds tables, as for object detection; {ONLY}" in said


def test_boxes_in_another_column(tmp_path: Path) -> None:
    boxes = [{"bbox": [[0.0, 0.0, 1.0, 1.0]], "id": [3]} for _ in TEXTS]
    said = refusal(tmp_path, {"text": [*TEXTS], "objects": [*boxes]})
    assert f"set task.label to one of text, objects (object detection is not supported: {ONLY})" in said


def test_masks(tmp_path: Path) -> None:
    picture = np.zeros((4, 4), np.uint8)
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.Image()})
    said = refusal(tmp_path, {"text": [*TEXTS], "label": [picture] * 12}, features)
    assert f"column 'label' holds images, as for segmentation; {ONLY}" in said


def test_numbers(tmp_path: Path) -> None:
    said = refusal(tmp_path, {"text": [*TEXTS], "label": [place / 7 for place in range(12)]})
    assert "column 'label' holds fractional numbers" in said
    assert "regression is not supported" in said


def test_no_labels(tmp_path: Path) -> None:
    said = refusal(tmp_path, {"text": [*TEXTS]})
    assert (
        "set task.label to one of text (private data without labels, as for self-supervised learning or"
        f" language modelling, are not supported: {ONLY})" in said
    )
