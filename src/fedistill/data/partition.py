"""Divides private samples among clients; refuses impossible partitions at once.

Partitions by label are those of flwr-datasets, which takes longer to import than torch: only they do.
"""

import contextlib
import io
import json
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedistill.config.partitions import Dirichlet, Iid, Listed, Natural, Partition, Pathological, Quantity
from fedistill.config.spelling import spell
from fedistill.data.table import Rows
from fedistill.errors import ExperimentError
from fedistill.rng import derive, numpy_stream

if TYPE_CHECKING:
    from flwr_datasets import partitioner as flwr

_TRIES = 20


Random = Iid | Dirichlet | Pathological | Quantity
"""Partitions that are drawn; `fedistill.data.sites` has those that the user gives."""


def partition(
    kind: Random, labels: NDArray[np.int64], clients: int, seed: int, classes: Sequence[str]
) -> list[Rows]:
    """Divide samples among clients.

    Args:
        labels: int64 (n,), the class of each private sample.
        classes: the names of the classes, for error messages.

    Returns:
        For each client the positions of its samples, none of them empty; disjoint.

    Raises:
        ExperimentError: the samples cannot be divided like this; the message names the cause and a remedy.
    """
    if clients > len(labels):
        raise ExperimentError(
            f"task.clients = {clients}, but there are {len(labels)} private samples: lower task.clients"
            " or task.public, or raise task.limit"
        )
    match kind:
        case Iid():
            order = numpy_stream(seed, "partition").permutation(len(labels))
            return np.array_split(order, clients)
        case Dirichlet():
            return _dirichlet(kind, labels, clients, seed)
        case Pathological():
            return _pathological(kind, labels, clients, seed, classes)
        case Quantity():
            return _quantity(kind, labels, clients, seed)


def partition_title(kind: Partition) -> str:
    """Return a short description of the partition, such as ``dirichlet(alpha=0.3)``."""
    if isinstance(kind, Listed):
        return kind.kind
    if isinstance(kind, Natural):
        return spell("natural", {"column": kind.column}) if kind.column else "natural(one file per client)"
    return spell(kind.kind, kind.model_dump(exclude={"kind"}, exclude_defaults=True))


def _dirichlet(kind: Dirichlet, labels: Rows, clients: int, seed: int) -> list[Rows]:
    from flwr_datasets import partitioner as flwr

    need = clients * kind.min_samples
    if need > len(labels):
        raise ExperimentError(
            f"task.partition: {clients} clients of at least {kind.min_samples} samples need {need}, but"
            f" there are {len(labels)}: lower task.clients or task.partition.min_samples"
        )
    for attempt in range(_TRIES):
        dealer = flwr.DirichletPartitioner(
            num_partitions=clients,
            partition_by="label",
            alpha=kind.alpha,
            min_partition_size=kind.min_samples,
            seed=derive(seed, "partition", round=attempt) % 2**32,
        )
        try:
            return _load(dealer, labels)
        except ValueError:
            continue
    raise ExperimentError(
        f"task.partition: no draw of dirichlet(alpha={kind.alpha}) gave each of {clients} clients"
        f" {kind.min_samples} samples of {len(labels)}: raise alpha, lower task.clients or"
        " task.partition.min_samples"
    )


def _pathological(
    kind: Pathological, labels: Rows, clients: int, seed: int, classes: Sequence[str]
) -> list[Rows]:
    present, counts = np.unique(labels, return_counts=True)
    wanted = kind.classes_per_client
    if wanted > len(present):
        raise ExperimentError(
            f"task.partition.classes_per_client = {wanted}, but the private samples have {len(present)}"
            f" classes: set it to at most {len(present)}"
        )
    found = _deal_classes(kind, labels, clients, seed)
    if found is not None:
        return found
    rarest = classes[int(present[counts.argmin()])]
    # Whether fewer clients are enough depends on the draw, so numbers are tried; with one it always works.
    fewer = next(some for some in _halves(clients) if _deal_classes(kind, labels, some, seed))
    rare = [classes[int(number)] for number in present[counts < clients]]
    leave_out = ""
    if len(present) - len(rare) >= max(wanted, 2):
        leave_out = f", or leave out the rare classes: {leave_out_setting(rare)}"
    raise ExperimentError(
        f"task.partition: with {clients} clients of {wanted} classes, one class would go to more clients than"
        f" it has samples (the rarest, {rarest!r}, has {counts.min()}): lower task.clients to"
        f" {fewer}{leave_out}"
    )


def leave_out_setting(classes: Sequence[str]) -> str:
    """Return the setting that leaves out these classes, as an experiment file has it."""
    return f"task.exclude_classes = {json.dumps(list(classes), ensure_ascii=False)}"


def _deal_classes(kind: Pathological, labels: Rows, clients: int, seed: int) -> list[Rows] | None:
    """Return the samples of each client, or None if a class has too few for all that should have it."""
    from flwr_datasets import partitioner as flwr

    dealer = flwr.PathologicalPartitioner(
        num_partitions=clients,
        partition_by="label",
        num_classes_per_partition=kind.classes_per_client,
        class_assignment_mode="first-deterministic",
        seed=derive(seed, "partition") % 2**32,
    )
    try:
        return _load(dealer, labels)
    except ValueError:
        return None


def _halves(number: int) -> Iterator[int]:
    while number > 1:
        number //= 2
        yield number


def _quantity(kind: Quantity, labels: Rows, clients: int, seed: int) -> list[Rows]:
    """Sizes from a Dirichlet distribution, labels IID (NIID-Bench, arXiv 2102.02079, section 4.3)."""
    spare = len(labels) - clients * kind.min_samples
    if spare < 0:
        raise ExperimentError(
            f"task.partition: {clients} clients of at least {kind.min_samples} samples need"
            f" {clients * kind.min_samples}, but there are {len(labels)}: lower task.clients or"
            " task.partition.min_samples"
        )
    rng = numpy_stream(seed, "partition")
    order = rng.permutation(len(labels))
    cuts = np.floor(np.cumsum(rng.dirichlet(np.full(clients, kind.alpha))) * spare).astype(np.int64)
    ends = cuts[:-1] + kind.min_samples * np.arange(1, clients)
    return np.split(order, ends)


def _load(dealer: "flwr.Partitioner", labels: Rows) -> list[Rows]:
    from datasets import Dataset

    dealer.dataset = Dataset.from_dict({"label": labels, "row": np.arange(len(labels))})
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # `doctor` shows classes that no client has
        return [
            np.array(dealer.load_partition(client)["row"], dtype=np.int64)
            for client in range(dealer.num_partitions)
        ]
