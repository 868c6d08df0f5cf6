"""Divides private samples among clients by flwr-datasets' partitioners; refuses impossible ones at once."""

import contextlib
import io
import warnings

import numpy as np
from datasets import Dataset
from flwr_datasets import partitioner as flwr
from numpy.typing import NDArray

from fedistill.config.schema import Dirichlet, Iid, Natural, Partition, Pathological, Quantity
from fedistill.data.table import Column, Rows
from fedistill.errors import ExperimentError
from fedistill.rng import derive, numpy_stream

_TRIES = 20


def partition(
    kind: Partition, labels: NDArray[np.int64], clients: int, seed: int, ids: Column | None = None
) -> list[Rows]:
    """Divide samples among clients.

    Args:
        labels: int64 (n,), the class of each private sample.
        ids: the natural id of each sample, for `Natural` only.

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
            return [order[rows] for rows in _load(flwr.IidPartitioner(clients), labels)]
        case Dirichlet():
            return _dirichlet(kind, labels, clients, seed)
        case Pathological():
            return _pathological(kind, labels, clients, seed)
        case Quantity():
            return _quantity(kind, labels, clients, seed)
        case Natural():
            assert ids is not None
            return _natural(kind, labels, clients, ids)


def partition_title(kind: Partition) -> str:
    """Return a short description of the partition, such as ``dirichlet(alpha=0.3)``."""
    settings = kind.model_dump(exclude={"kind"}, exclude_defaults=True)
    inside = ", ".join(f"{key}={value}" for key, value in settings.items())
    return f"{kind.kind}({inside})" if inside else kind.kind


def _dirichlet(kind: Dirichlet, labels: Rows, clients: int, seed: int) -> list[Rows]:
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


def _pathological(kind: Pathological, labels: Rows, clients: int, seed: int) -> list[Rows]:
    present, counts = np.unique(labels, return_counts=True)
    wanted = kind.classes_per_client
    if wanted > len(present):
        raise ExperimentError(
            f"task.partition.classes_per_client = {wanted}, but the private samples have {len(present)}"
            f" classes: set it to at most {len(present)}"
        )
    dealer = flwr.PathologicalPartitioner(
        num_partitions=clients,
        partition_by="label",
        num_classes_per_partition=wanted,
        class_assignment_mode="first-deterministic",
        seed=derive(seed, "partition") % 2**32,
    )
    try:
        return _load(dealer, labels)
    except ValueError:
        raise ExperimentError(
            f"task.partition: with {clients} clients of {wanted} classes, one class would go to more clients"
            f" than it has samples (the rarest has {counts.min()}): lower task.clients or"
            " task.partition.classes_per_client"
        ) from None


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
    cuts[-1] = spare
    sizes = np.diff(cuts, prepend=0) + kind.min_samples
    return [order[rows] for rows in _load(flwr.SizePartitioner(sizes.tolist()), labels)]


def _natural(kind: Natural, labels: Rows, clients: int, ids: Column) -> list[Rows]:
    names = [str(value) for value in ids]
    found = len(set(names))
    if found < clients:
        raise ExperimentError(
            f"task.partition.column = {kind.column!r} has {found} values among the private samples, but"
            f" task.clients = {clients}: set task.clients to at most {found}"
        )
    dealer = flwr.NaturalIdPartitioner(partition_by="id")
    parts = _load(dealer, labels, names)
    # Largest parts first: with fewer clients than ids, the smallest are left out of the run.
    return sorted(parts, key=len, reverse=True)[:clients]


def _load(dealer: flwr.Partitioner, labels: Rows, ids: list[str] | None = None) -> list[Rows]:
    columns: dict[str, Rows | list[str]] = {"label": labels, "row": np.arange(len(labels))}
    if ids is not None:
        columns["id"] = ids
    dealer.dataset = Dataset.from_dict(columns)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # `doctor` shows classes that no client has
        return [
            np.array(dealer.load_partition(client)["row"], dtype=np.int64)
            for client in range(dealer.num_partitions)
        ]
