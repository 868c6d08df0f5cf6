"""The examples in docstrings are run."""

import doctest
import importlib

import pytest

MODULES = [
    "fedistill.aggregation.functional",
    "fedistill.communication.varint",
    "fedistill.config.hf",
    "fedistill.config.units",
    "fedistill.data.several_files",
    "fedistill.deployment.model_card",
    "fedistill.rng",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
