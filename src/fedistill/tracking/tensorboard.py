"""TensorBoard: event files in the run's own folder."""

from collections.abc import Mapping
from typing import Any, final

from fedistill.experiment.results import Status
from fedistill.tracking.tracker import TrackedArm, Tracker, missing


@final
class TensorBoard(Tracker):
    """Writes event files to ``tensorboard/ARM/`` in the run's folder, or ``tensorboard/ARM/seed-N/``.

    Scalars have the names of views and bytes and the round as their step; settings are hyperparameters. Look
    at all runs by ``tensorboard --logdir runs``.

    Raises:
        ExperimentError: tensorboard is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from torch.utils import tensorboard
            from torch.utils.tensorboard import summary
        except ImportError as error:
            raise missing("tensorboard", error) from None
        self._package, self._summary = tensorboard, summary
        self._writer: Any = None

    def begin(self, arm: TrackedArm) -> None:
        self._writer = self._package.SummaryWriter(str(arm.folder / "tensorboard" / arm.place))
        # Torch has no types for it.
        for one in self._summary.hparams(dict(arm.settings), {}):  # type: ignore[no-untyped-call]  # torch
            self._writer.file_writer.add_summary(one)

    def log(self, values: Mapping[str, float], round: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, round)
        self._writer.flush()

    def end(self, status: Status) -> None:
        self._writer.close()
