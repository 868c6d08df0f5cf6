"""The encoding of a task of tables: from its public set, or from sums that clients share in set-up."""

from collections.abc import Sequence

from fedistill.config.task import TableConfig
from fedistill.data.record_encoding import RecordEncoding
from fedistill.data.record_sums import ColumnSums, combined, read_sums, sums_frame
from fedistill.data.records import Records
from fedistill.data.table import Inputs
from fedistill.errors import ExperimentError


def record_setup(
    clients: Sequence[Records], public: Inputs | None, settings: TableConfig
) -> tuple[tuple[bytes, ...], RecordEncoding]:
    """Return the frame of each client with its sums, if they are shared, and the encoding.

    Raises:
        ExperimentError: there is no public set, or it lacks what the encoding needs.
    """
    if settings.scaling == "sums":
        features = clients[0].features
        frames = tuple(sums_frame(ColumnSums.of(own), client) for client, own in enumerate(clients))
        # What the server knows is in the frames, and nothing else.
        read = [read_sums(frame, features, len(own)) for frame, own in zip(frames, clients, strict=True)]
        return frames, combined(read, features).encoding(features)
    if not isinstance(public, Records):
        raise ExperimentError(
            "a table is scaled by its public set: set task.public, or set task.table.scaling ="
            ' "sums", if all clients may share counts, means and deviations of their columns and the'
            " categories in them"
        )
    sums = ColumnSums.of(public)
    unseen = [
        repr(name) for name, one in zip(public.features.numeric, sums.numeric, strict=True) if one.count == 0
    ]
    if unseen:
        raise ExperimentError(
            f"the public set has no value in {', '.join(unseen)}, so that it tells no scale: raise"
            ' task.public, leave these columns out of task.table.numeric, or set task.table.scaling = "sums"'
        )
    return (), sums.encoding(public.features)
