"""Builds a `Task` from an experiment's ``[task]``: loads, holds out, divides among clients and encodes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedistill.config.inputs import SAMPLES
from fedistill.config.partitions import Iid, Listed, Natural
from fedistill.config.task import DEFAULT_CLIENTS, Source, TableConfig, TaskConfig
from fedistill.data import image, sources, text
from fedistill.data.own_tests import hold_out, hold_out_own
from fedistill.data.partition import partition, partition_title
from fedistill.data.public import public_set, take_public
from fedistill.data.reading import read_parts
from fedistill.data.record_encoding import RecordEncoding, encoding_frame
from fedistill.data.record_setup import record_setup
from fedistill.data.records import Records
from fedistill.data.samples import Samples
from fedistill.data.several_files import short_title, title
from fedistill.data.sites import Sites, divide_by_site
from fedistill.data.table import Inputs, Loaded, Rows, Table
from fedistill.data.task import Labelled, Task
from fedistill.errors import ExperimentError, nearest
from fedistill.models.signature import Signature
from fedistill.rng import numpy_stream


def build_task(
    config: TaskConfig,
    seed: int,
    *,
    validation: bool = False,
    opened: Loaded | None = None,
    scratch: Path | None = None,
) -> Task:
    """Build a task; equal settings and seeds yield equal tasks.

    Args:
        validation: test on training samples in place of the test set, which is not read. They are
            ``test_share`` of those that are neither test nor public samples; the first that are taken are
            those beyond ``limit``, so that, if there are enough of them, private and public samples are those
            of the task without validation.
        opened: the source, if the caller has opened it with these settings already.
        scratch: the folder on whose disk the samples lie, in a file without a name (`Task.stored`); default:
            the system's folder for temporary files.

    Raises:
        ExperimentError: the data cannot be found, read, or divided as asked.
        RuntimeFailure: the disk is full or fails.
    """
    if opened is None:
        opened = sources.open_source(config, config.image_size, test=not validation)
    source = _without(opened, config.exclude_classes)
    private, test_table, test_rows = _hold_out_test(source, config, seed)
    taken = take_public(config, source, private, seed)
    private, unused = _draw(taken.private, config.limit, seed)
    if validation:
        private, test_rows = _hold_out_validation(private, unused, source.train, config, seed)
        test_table = source.train

    kind = config.partition or (Natural() if source.by_file else Iid())
    if isinstance(kind, Natural | Listed):
        sites = divide_by_site(kind, source, private, config.clients)
    else:
        found, clients = source.train.labels[private], config.clients or DEFAULT_CLIENTS
        sites = Sites((), partition(kind, found, clients, seed, source.classes), ())

    parts, held = sites.parts, list[Rows]()
    if share := config.own_share(kind):
        keys = np.array(source.train.keys())[private]
        parts, held = hold_out_own(parts, keys, share, seed)
        if validation:
            parts, held = hold_out_own(parts, keys, share, seed, "own-validation")

    sums: tuple[bytes, ...] = ()
    encoding, unknown = None, None
    if source.features is not None:
        records = source.train.read(private)
        assert isinstance(records, Records)
        sums, encoding = record_setup(
            [records.picked(part) for part in parts], taken.inputs, config.table or TableConfig()
        )
        unknown = encoding.unknown_share(records)
    read = read_parts(source.train, private, [*parts, *held], scratch, encoding=encoding)
    signature, frame = _signature(source, read[0], taken.inputs, config, encoding)
    labels = torch.from_numpy(source.train.labels[private])

    def fitted(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        _check_size("test", images, signature)
        return image.fit_to(images, signature.shape)

    every_test = np.arange(len(test_rows))
    (tested,) = read_parts(test_table, test_rows, [every_test], scratch, fitted, encoding)
    if isinstance(taken.inputs, np.ndarray):
        if taken.labels is not None:
            _check_size("public", taken.inputs, signature)
        taken = replace(taken, inputs=image.fit_to(taken.inputs, signature.shape))
    public, public_labels = public_set(config.public, taken, signature.shape, seed, encoding)

    def labelled(parts: Sequence[Rows], samples: Sequence[Samples]) -> tuple[Labelled, ...]:
        pairs = zip(samples, parts, strict=True)
        return tuple(Labelled(own, labels[rows]) for own, rows in pairs)

    task = Task(
        name=config.title or config.name or short_title(config.train),
        signature=signature,
        classes=source.classes,
        clients=labelled(parts, read[: len(parts)]),
        test=Labelled(tested, torch.from_numpy(test_table.labels[test_rows])),
        public=public,
        public_labels=public_labels,
        partition=partition_title(kind),
        vocabulary_frame=frame,
        vocabulary_from_public=not sums and config.text.tokenizer is None,
        column_sums=sums,
        client_names=sites.names,
        own_tests=labelled(held, read[len(parts) :]),
        absent=sites.absent,
        unused=len(private) - sum(map(len, sites.parts)) - sum(site.private for site in sites.absent),
        rendering=_rendering(source, config),
        left_out=dict(source.left_out),
        unknown_categories=unknown,
        scratch=scratch,
    )
    return task.stored()


def build_at_site(
    config: TaskConfig, seed: int, own: Source, client: int, scratch: Path | None = None
) -> tuple[Task, Labelled, Labelled | None]:
    """Build a task and a site's own samples, with classes matched by name and inputs in the task's format.

    Returns:
        The task, the samples that the site trains on, and those that it holds out, or None if the task holds
        out none.

    Raises:
        ExperimentError: as in `build_task`, or the site's data have another kind, size or other classes.
        RuntimeFailure: as in `build_task`.
    """
    task = build_task(config, seed, scratch=scratch)
    # A site's images are rendered like the others' as far as the experiment says how.
    shared = {key: getattr(config, key) for key in ("background", "white_level") if getattr(own, key) is None}
    shared["relabel"] = config.relabel
    if own.format == "csv":
        shared |= {"column_names": config.column_names, "missing": config.missing}
    own = own.model_copy(update=shared)
    encoding = task.record_encoding()
    features = None if encoding is None else encoding.features
    opened = sources.open_source(own, config.image_size, features=features)
    excluded = [name for name in config.exclude_classes if name in opened.classes]
    found = _without(opened, excluded)
    if found.kind != task.signature.kind:
        raise ExperimentError(
            f"{title(own.train)} holds {SAMPLES[found.kind]}, but the task holds"
            f" {SAMPLES[task.signature.kind]}"
        )
    unknown = [repr(name) for name in found.classes if name not in task.classes]
    if unknown:
        shown = ", ".join(unknown[:5]) + (" …" if len(unknown) > 5 else "")
        raise ExperimentError(
            f"{title(own.train)} has labels that are not classes of the task: {shown}. Classes of the task:"
            f" {', '.join(map(repr, task.classes))}"
        )
    places = torch.tensor([task.classes.index(name) for name in found.classes])
    rows = np.flatnonzero(found.train.labels >= 0)
    every = np.arange(len(rows))
    parts = [every]
    if task.own_tests:
        keys, generator = np.array(found.train.keys())[rows], numpy_stream(seed, "own-test", client)
        share = config.own_share(config.partition or Natural())
        parts = list(hold_out(every, keys, share, generator))

    def fitted(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        _check_size("the site's", images, task.signature)
        return image.fit_to(images, task.signature.shape)

    read = read_parts(found.train, rows, parts, scratch, fitted, encoding)
    labels = places[torch.from_numpy(found.train.labels[rows])]
    own_data = [Labelled(samples, labels[part]) for samples, part in zip(read, parts, strict=True)]
    task = replace(task, rendering=_rendering(found, own))
    return task, own_data[0], own_data[1] if task.own_tests else None


def _without(source: Loaded, excluded: Sequence[str]) -> Loaded:
    """Return a source without these classes; their rows keep their positions and get the label -1."""
    if not excluded:
        return source
    for name in excluded:
        if name not in source.classes:
            raise ExperimentError(
                f"task.exclude_classes: {name!r} is not a class of the data; they have"
                f" {', '.join(source.classes)}.{nearest(name, source.classes)}"
            )
    kept = [number for number, name in enumerate(source.classes) if name not in excluded]
    if len(kept) < 2:
        raise ExperimentError(
            "task.exclude_classes leaves fewer than two classes, so there is nothing to learn"
        )
    places = np.full(len(source.classes), -1, dtype=np.int64)
    places[kept] = np.arange(len(kept))
    train = replace(source.train, labels=places[source.train.labels])
    test = None if source.test is None else replace(source.test, labels=places[source.test.labels])
    return replace(source, classes=tuple(source.classes[number] for number in kept), train=train, test=test)


def _hold_out_test(source: Loaded, config: TaskConfig, seed: int) -> tuple[Rows, Table, Rows]:
    """Return the rows left for training, and the table and rows to test on; no rows if it is not read."""
    everything = np.flatnonzero(source.train.labels >= 0)
    if source.test is not None:
        return everything, source.test, np.flatnonzero(source.test.labels >= 0)
    if source.own_test:
        return everything, source.train, everything[:0]
    wanted = max(1, round(config.test_share * len(everything)))
    rest, held = _hold_out(everything, wanted, source.train, config, numpy_stream(seed, "test"))
    return rest, source.train, held


def _hold_out(
    rows: Rows, wanted: int, table: Table, config: TaskConfig, generator: np.random.Generator
) -> tuple[Rows, Rows]:
    """Return the rows that are left, and at least ``wanted`` rows to test on.

    Equal inputs stay on one side: a copy in the training data would reveal the label.
    """
    _, group = np.unique(np.array(table.keys())[rows], return_inverse=True)
    order = generator.permutation(int(group.max()) + 1)
    sizes = np.bincount(group)[order].cumsum()
    chosen = order[: int(np.searchsorted(sizes, wanted)) + 1]
    held = np.isin(group, chosen)
    if held.all():
        raise ExperimentError(f"task.test_share = {config.test_share} leaves nothing to train on")
    return rows[~held], rows[held]


def _draw(private: Rows, limit: int | None, seed: int) -> tuple[Rows, Rows]:
    """Return at most ``limit`` rows, and the others."""
    if limit is None or limit >= len(private):
        return private, private[:0]
    order = numpy_stream(seed, "limit").permutation(len(private))
    return private[np.sort(order[:limit])], private[np.sort(order[limit:])]


def _hold_out_validation(
    private: Rows, unused: Rows, table: Table, config: TaskConfig, seed: int
) -> tuple[Rows, Rows]:
    """Return the private rows that are left, and those to validate on: unused ones before private ones."""
    size = max(1, round(config.test_share * (len(private) + len(unused))))
    keys, generator = np.array(table.keys()), numpy_stream(seed, "validation")
    free = unused[~np.isin(keys[unused], keys[private])]
    drawn = np.sort(generator.permutation(free)[:size])
    if len(drawn) == size:
        return private, drawn
    private, held = _hold_out(private, size - len(drawn), table, config, generator)
    return private, np.concatenate([drawn, held])


def _rendering(source: Loaded, config: Source) -> image.Rendering:
    """Return how images were rendered; if none needed it, what the settings say of others."""
    made = None if source.rendering is None else source.rendering.made
    return made or image.Rendering(config.background, config.white_level)


def _check_size(what: str, images: NDArray[np.uint8], signature: Signature) -> None:
    if images.shape[2:] != signature.shape[1:]:
        height, width = images.shape[2:]
        raise ExperimentError(
            f"task: {what} images are {height}x{width} pixels, private ones are"
            f" {signature.shape[1]}x{signature.shape[2]}; set task.image_size = [height, width]"
        )


def _signature(
    source: Loaded,
    private: Samples,
    public: Inputs | None,
    config: TaskConfig,
    encoding: RecordEncoding | None,
) -> tuple[Signature, bytes]:
    """Return the task's signature and the set-up frame; ``private`` are some of the samples."""
    classes = len(source.classes)
    if encoding is not None:
        return Signature("table", (encoding.width,), classes, 0), encoding_frame(encoding)
    if isinstance(private, Tensor):
        return Signature("image", tuple(private.shape[1:]), classes, 0), b""
    words = public if isinstance(public, list) else []
    tokenizer = text.build_tokenizer(words, config.text)
    return text.signature_of(tokenizer, classes), text.vocabulary_frame(tokenizer)
