"""Every method on a device: a pretended one (`helpers.pretend_device`), which finds tensors left behind."""

from typing import Any

import pytest

from fedistill.models import image
from fedistill.testing.methods import MethodCase
from fedistill.testing.runs import bits, require_same
from helpers.method_rows import FAMILIES, Row, each
from helpers.pretend_device import pretended_device

SMALL: dict[str, Any] = {
    "rounds": 3,
    "task": {"clients": 2, "limit": 60, "public": 24},
    "train": {"batch_size": 16, "optimizer": {"lr": 0.05, "momentum": 0.9}, "not_true": {"beta": 1.0}},
    "evaluate": {"every": 3},
}


@each(everyday=FAMILIES)
def test_a_method_on_a_device_ends_in_the_bits_of_the_processor(
    row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = MethodCase(row.method, row.models, row.settings, SMALL)
    # For the processor alone, large batches would be in oneDNN's layout, which rounds otherwise.
    monkeypatch.setattr(image, "_onednn_computes", lambda inputs: False)
    _, here = case.run()
    with pretended_device(monkeypatch) as operations:
        _, there = case.run(runtime={"device": "cuda"})
    require_same(there, bits(here), "a device must compute what the processor does")
    assert operations() > 100 or row.method == "naive-bayes"  # it counts words, and trains nothing
