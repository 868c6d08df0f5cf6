"""Writes small files of every format that a task is read from."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

Pixels = NDArray[Any]


@dataclass
class Files:
    """Writes files into one folder; each method returns the path as an experiment file has it."""

    folder: Path

    @staticmethod
    def pixels(count: int, height: int = 8, width: int = 8, channels: int = 0, seed: int = 0) -> list[Pixels]:
        """Different pictures of noise; no channels: grey."""
        shape = (height, width, channels) if channels else (height, width)
        rng = np.random.default_rng(seed)
        return [rng.integers(0, 256, shape).astype(np.uint8) for _ in range(count)]

    @staticmethod
    def png(pixels: Pixels) -> bytes:
        sink = io.BytesIO()
        PIL.Image.fromarray(pixels).save(sink, "PNG")
        return sink.getvalue()

    def images(
        self, name: str, pictures: Sequence[Pixels | bytes | None], labels: Any = None, **more: Any
    ) -> str:
        """A Parquet file in the layout of the hub; bytes stand for an encoded picture."""
        cells = [
            None
            if picture is None
            else {"bytes": picture if isinstance(picture, bytes) else self.png(picture), "path": None}
            for picture in pictures
        ]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns = {"image": pa.array(cells, type=kind)} | ({} if labels is None else {"label": labels}) | more
        return self.parquet(name, **columns)

    def parquet(self, name: str, **columns: Any) -> str:
        pq.write_table(pa.table(columns), self.folder / name)
        return str(self.folder / name)

    def csv(self, name: str, **columns: Sequence[Any]) -> str:
        rows = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        return self.text(name, "\n".join(rows) + "\n")

    def json(self, name: str, **columns: Sequence[Any]) -> str:
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return self.text(name, "".join(json.dumps(row) + "\n" for row in rows))

    def text(self, name: str, content: str) -> str:
        (self.folder / name).write_text(content, encoding="utf-8")
        return str(self.folder / name)

    def tree(self, name: str, **classes: Sequence[Pixels]) -> str:
        """An image folder: one folder for each class."""
        for label, pictures in classes.items():
            (self.folder / name / label).mkdir(parents=True)
            for number, picture in enumerate(pictures):
                (self.folder / name / label / f"{number}.png").write_bytes(self.png(picture))
        return str(self.folder / name)
