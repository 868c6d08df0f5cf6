"""MLflow: one run for each arm and seed, on the store that ``MLFLOW_TRACKING_URI`` names."""

import os
import time
from collections.abc import Mapping
from typing import final

from fedistill.errors import ExperimentError
from fedistill.experiment.results import Status
from fedistill.tracking.tracker import KeptIds, TrackedArm, Tracker, missing

_STATUS: dict[Status, str] = {"done": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
_MOST_PARAMETERS = 100
"""In one request; MLflow refuses more."""


@final
class MLflow(Tracker):
    """Logs to MLflow; the tag ``fedistill.run`` has the name of the run's folder, which its arms share.

    Metrics have the names of views and bytes, but for the ``@``, which MLflow refuses: ``server/global``. The
    round is their step; settings are parameters. A resumed run continues the runs that it has begun.

    Args:
        experiment: MLflow's experiment; by default ``MLFLOW_EXPERIMENT_NAME``, or ``fedistill`` if that is
            unset. It is made if it does not exist.

    Raises:
        ExperimentError: neither mlflow nor mlflow-skinny is installed, or the store cannot be used.
    """

    def __init__(self, experiment: str | None = None) -> None:
        super().__init__()
        try:
            from mlflow import MlflowException, entities
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise missing("mlflow", error) from None
        try:
            self._client = MlflowClient()
        except MlflowException as error:
            raise ExperimentError(
                f"MLflow cannot use its store: {str(error).strip()}; set MLFLOW_TRACKING_URI to another one"
            ) from None
        self._entities = entities
        self._experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "fedistill"
        self._ids = KeptIds("mlflow")
        self._experiment_id = ""
        self._run = ""

    def connect(self) -> None:
        found = self._client.get_experiment_by_name(self._experiment)
        self._experiment_id = (
            found.experiment_id if found else self._client.create_experiment(self._experiment)
        )

    def begin(self, arm: TrackedArm) -> None:
        kept = self._ids.of(arm)
        if kept is not None:
            self._run = kept
            self._client.update_run(kept, status="RUNNING")
            return
        tags = {"fedistill.run": arm.folder.name}
        made = self._client.create_run(self._experiment_id, tags=tags, run_name=arm.title)
        self._run = made.info.run_id
        self._ids.keep(arm, self._run)
        parameters = [self._entities.Param(key, str(value)) for key, value in arm.settings.items()]
        for first in range(0, len(parameters), _MOST_PARAMETERS):
            self._client.log_batch(self._run, params=parameters[first : first + _MOST_PARAMETERS])

    def log(self, values: Mapping[str, float], round: int) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self._entities.Metric(name.replace("@", "/"), value, now, round) for name, value in values.items()
        ]
        self._client.log_batch(self._run, metrics=metrics)

    def end(self, status: Status) -> None:
        self._client.set_terminated(self._run, _STATUS[status])
