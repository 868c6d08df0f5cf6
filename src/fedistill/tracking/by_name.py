"""The trackers by the names that the command line has for them."""

from collections.abc import Sequence

from fedistill.errors import ExperimentError, nearest
from fedistill.tracking.mlflow import MLflow
from fedistill.tracking.tensorboard import TensorBoard
from fedistill.tracking.tracker import Tracker
from fedistill.tracking.wandb import WandB

TRACKERS: dict[str, type[TensorBoard] | type[MLflow] | type[WandB]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


def trackers(names: Sequence[str]) -> list[Tracker]:
    """Return a tracker for each name, set up by its own environment variables.

    Raises:
        ExperimentError: there is no such tracker, or its package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            known = ", ".join(TRACKERS)
            raise ExperimentError(f"--track {name}: must be one of {known}.{nearest(name, TRACKERS)}")
    return [TRACKERS[name]() for name in dict.fromkeys(names)]
