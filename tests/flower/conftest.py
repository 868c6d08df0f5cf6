"""What tests of the Flower app have in common."""

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Flower uses what its libraries will drop
    from flwr.supercore.task_identity import TaskIdentity

    from fedistill.flower import executor


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are made within a run of an app, and replies are asked for often."""
    for name in ("task_id", "run_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)
    monkeypatch.setattr(executor, "_POLL_SECONDS", 0.02)
