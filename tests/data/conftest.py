"""Tasks built from small files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedistill.config.task import TaskConfig
from fedistill.data.build import build_task
from fedistill.data.task import Task
from fedistill.errors import ExperimentError
from helpers.files import Files


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def make() -> Callable[..., Task]:
    """Builds a task from the keys of its table; two clients and seed 0 if nothing else is said."""

    def build_it(seed: int = 0, **keys: Any) -> Task:
        return build_task(TaskConfig.model_validate({"clients": 2} | keys), seed)

    return build_it


@pytest.fixture
def refused(make: Callable[..., Task]) -> Callable[..., str]:
    """Returns the message with which a task is refused."""

    def refuse(**keys: Any) -> str:
        with pytest.raises(ExperimentError) as caught:
            make(**keys)
        return str(caught.value)

    return refuse
