"""Numbers at a fixed width, against which every other codec is measured."""

from typing import ClassVar

import numpy as np

from fedistill.communication.codecs.base import Codec, Decoded, Encoded, Sender
from fedistill.communication.tensor_specs import Floats, SharedKnowledge, TensorSpec
from fedistill.errors import FrameError


class _Plain(Codec):
    """Little-endian floats in C order."""

    fixed = True
    dtype: ClassVar[np.dtype[np.float16] | np.dtype[np.float32]]

    def decode(self, payload: bytes, spec: TensorSpec, known: SharedKnowledge) -> Decoded:
        size = spec.count * self.dtype.itemsize
        if len(payload) != size:
            raise FrameError(
                f"{len(payload)} bytes of {self.name} where {spec.count} numbers were expected ({size} bytes)"
            )
        values = np.frombuffer(payload, dtype=self.dtype).astype(np.float32)
        if not np.isfinite(values).all():
            raise FrameError("a number in the message is not finite")
        return Decoded(values.reshape(spec.shape))


class Fp32(_Plain):
    name = "fp32"
    lossiness = "nothing"
    dtype = np.dtype("<f4")

    def encode(self, values: Floats, spec: TensorSpec, known: SharedKnowledge, sender: Sender) -> Encoded:
        return Encoded(values.astype(self.dtype, copy=False).tobytes())


class Fp16(_Plain):
    name = "fp16"
    lossiness = "all but 11 significant bits; values beyond 65,504 are clipped to it"
    dtype = np.dtype("<f2")

    def encode(self, values: Floats, spec: TensorSpec, known: SharedKnowledge, sender: Sender) -> Encoded:
        largest = float(np.finfo(np.float16).max)
        return Encoded(np.clip(values, -largest, largest).astype(self.dtype).tobytes())
