"""Weights & Biases: one run for each arm and seed, all in one group."""

import os
from collections.abc import Mapping
from typing import Any, final
from uuid import uuid4

from fedistill.experiment.results import Status
from fedistill.tracking.tracker import KeptIds, TrackedArm, Tracker, missing


@final
class WandB(Tracker):
    """Logs to Weights & Biases; the group has the name of the run's folder, which its arms share.

    Values have the names of views and bytes and the round as their step; settings are the run's config. Files
    lie in the run's folder unless ``WANDB_DIR`` is set; ``WANDB_MODE=offline`` sends nothing. A resumed run
    continues the runs that it has begun.

    Args:
        project: by default ``WANDB_PROJECT``, or ``fedistill`` if that is unset.

    Raises:
        ExperimentError: wandb is not installed.
    """

    def __init__(self, project: str | None = None) -> None:
        super().__init__()
        try:
            import wandb
        except ImportError as error:
            raise missing("wandb", error) from None
        self._package = wandb
        self._project = project or os.environ.get("WANDB_PROJECT") or "fedistill"
        self._ids = KeptIds("wandb")
        self._run: Any = None

    def connect(self) -> None:
        if self._package.setup().settings.mode == "online":
            self._package.login()

    def begin(self, arm: TrackedArm) -> None:
        id = self._ids.of(arm)
        if id is None:
            id = uuid4().hex
            self._ids.keep(arm, id)
        self._run = self._package.init(
            project=self._project,
            id=id,
            resume="allow",
            reinit="create_new",  # the user may have a run of their own in this process
            name=arm.title,
            group=arm.folder.name,
            config=dict(arm.settings),
            dir=os.environ.get("WANDB_DIR") or str(arm.folder),
            settings=self._package.Settings(console="off"),  # stdout and stderr are not ours to take
        )

    def log(self, values: Mapping[str, float], round: int) -> None:
        self._run.log(dict(values), step=round)

    def end(self, status: Status) -> None:
        self._run.finish(exit_code=0 if status == "done" else 1)
