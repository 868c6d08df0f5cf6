"""The public set: held out or of another data set, as it is, stored lossily, or made of few images."""

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from fedistill.config.inputs import SAMPLES
from fedistill.config.task import PublicSource, Source, TaskConfig
from fedistill.data import sources
from fedistill.data.image_sheet import decode_sheet, encode_sheet
from fedistill.data.made_images import images_of, shapes
from fedistill.data.record_encoding import RecordEncoding
from fedistill.data.records import Records
from fedistill.data.several_files import find_files, short_title
from fedistill.data.table import Inputs, Loaded, Rows, Table, place_of, samples_of
from fedistill.data.task import PublicSet
from fedistill.errors import ExperimentError
from fedistill.rng import numpy_stream


@dataclass(frozen=True)
class Taken:
    """What has been taken for the public set.

    Attributes:
        private: the training rows that are left for the clients.
        inputs: the samples, or None if there are none.
        labels: their labels (n,), or None if they are of another data set.
        where: where they come from, for people to read.
    """

    private: Rows
    inputs: Inputs | None = None
    labels: Tensor | None = None
    where: str = ""


def take_public(config: TaskConfig, source: Loaded, private: Rows, seed: int) -> Taken:
    """Take the samples of the public set, or those that it is made of, from the private rows or elsewhere.

    Raises:
        ExperimentError: there are too few, or they are not what the setting is for.
    """
    public = config.public
    if isinstance(public, int):
        return _hold_out(private, public, "task.public", source.train, seed) if public else Taken(private)
    key, count = ("samples", public.samples) if public.images is None else ("images", public.images)
    if source.kind != "image" and (public.images is not None or public.quality is not None):
        setting = "quality" if public.images is None else "images"
        raise ExperimentError(
            f"task.public.{setting} is for images, but the task holds {SAMPLES[source.kind]}: leave it out"
        )
    if not public.is_held_out:
        return _other(public, config, source, private, seed, f"task.public.{key}", count)
    if not count:
        return Taken(private)
    return _hold_out(private, count, f"task.public.{key}", source.train, seed)


def public_set(
    public: int | PublicSource,
    taken: Taken,
    shape: tuple[int, ...],
    seed: int,
    encoding: RecordEncoding | None = None,
) -> tuple[PublicSet | None, Tensor | None]:
    """Return the public set and its labels, if it has any.

    Args:
        taken: what `take_public` returned; images have the shape (channels, height, width) of the task's.
        encoding: of records.

    Raises:
        ExperimentError: there are too many images to store them lossily.
    """
    inputs, labels, where, size = taken.inputs, taken.labels, taken.where, 0
    quality = public.quality if isinstance(public, PublicSource) else None
    if isinstance(inputs, np.ndarray) and quality is not None:
        sheet = encode_sheet(inputs, quality)
        inputs, size = decode_sheet(sheet, inputs.shape), len(sheet)
        where += f", as WebP of quality {quality}"
    elif inputs is not None:
        size = stored_bytes(inputs)
    if isinstance(public, PublicSource) and public.images is not None:
        generator, labels = numpy_stream(seed, "made"), None
        if isinstance(inputs, np.ndarray):
            inputs = images_of(inputs, public.samples, generator)
            where = f"made of {public.images} images: {where}"
        else:
            inputs, where = shapes(shape, public.samples, generator), "shapes, drawn by the seed"
    return None if inputs is None else PublicSet(samples_of(inputs, encoding), size, where), labels


def stored_bytes(inputs: Inputs) -> int:
    """Return the bytes of one copy of unlabelled samples as a Parquet file.

    Pixels or UTF-8 texts with zstd; of records, the columns that are inputs as float64 and texts.
    """
    sink = io.BytesIO()
    table = _stored(inputs)
    # Column statistics would store two samples a second time without being used.
    pq.write_table(
        table, sink, write_statistics=False, compression="zstd", compression_level=19, use_dictionary=False
    )
    return len(sink.getvalue())


def _stored(inputs: Inputs) -> pa.Table:
    if isinstance(inputs, Records):
        numbers = [pa.array(column, from_pandas=True) for column in inputs.numbers.T]
        texts = [pa.array(list(column), type=pa.string()) for column in inputs.categories.T]
        return pa.table([*numbers, *texts], names=list(inputs.features.names))
    if isinstance(inputs, np.ndarray):
        flat = inputs.reshape(len(inputs), -1)
        pixels = [row.tobytes() for row in flat]
        return pa.table({"input": pa.array(pixels, type=pa.binary(flat.shape[1]))})
    return pa.table({"input": pa.array(inputs, type=pa.string())})


def _hold_out(private: Rows, size: int, setting: str, table: Table, seed: int) -> Taken:
    """Return ``size`` of the private rows in random order, and the others.

    Data are often sorted by class, and the position of a public sample must not reveal its class.
    """
    if size >= len(private):
        raise ExperimentError(
            f"{setting} = {size}, but there are {len(private)} training samples: nothing would be left"
            " for the clients"
        )
    order = numpy_stream(seed, "public").permutation(len(private))
    rest, public = private[np.sort(order[size:])], private[order[:size]]
    # Public samples are not private: clients must not hold copies of them.
    keys = np.array(table.keys())
    rest = rest[~np.isin(keys[rest], keys[public])]
    if len(rest) == 0:
        raise ExperimentError(
            f"{setting} = {size}: all other training samples are copies of public ones; nothing would be"
            " left for the clients"
        )
    labels = torch.from_numpy(table.labels[public])
    return Taken(rest, table.read(public), labels, "held out from the training data")


def _other(
    public: PublicSource,
    config: TaskConfig,
    source: Loaded,
    private: Rows,
    seed: int,
    setting: str,
    count: int,
) -> Taken:
    """Return ``count`` samples of another data set that the task does not hold itself."""
    own_data = _data(config, config.train or "train") | _data(config, config.test or "test")
    if own_data & _data(public, public.train or "train"):
        raise ExperimentError(
            "task.public names the task's own data, which would put private or test samples into the public"
            f" set: hold a part out instead, with task.public = {public.samples}"
        )
    other = sources.open_source(public, config.image_size, features=source.features)
    if other.kind != source.kind:
        raise ExperimentError(
            f"task.public holds {SAMPLES[other.kind]}, but the task holds {SAMPLES[source.kind]}"
        )
    # Compared by content: samples that the task holds itself are private or used for testing.
    own = {*source.train.keys(), *(source.test.keys() if source.test else ())}
    free = np.array([row for row, key in enumerate(other.train.keys()) if key not in own], dtype=np.int64)
    if count > len(free):
        raise ExperimentError(
            f"{setting} = {count}, but there are {len(free)} samples"
            + (" that the task does not hold itself" if len(free) < len(other.train) else "")
        )
    rows = free[numpy_stream(seed, "public").permutation(len(free))[:count]]
    return Taken(private, other.train.read(rows), where=public.name or short_title(public.train))


def _data(source: Source, split: str | list[str]) -> set[tuple[str | None, ...]]:
    """Return keys that identify the split of a source, or the files of one."""
    parts = [str(split)]
    if source.format is not None:
        parts = list(find_files(split, f"{place_of(source)}.train").values())
    return {(sources.hub_name(source.name), source.format, source.subset, part) for part in parts}
