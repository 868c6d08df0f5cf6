"""A codec: the upper half of each float."""

import numpy as np

from fedistill.communication.codecs.base import Codec, Decoded, Encoded, Sender
from fedistill.communication.tensor_specs import Floats, SharedKnowledge, TensorSpec
from fedistill.errors import FrameError


class BFloat16(Codec):
    """Numbers as bfloat16: the upper two bytes of each float, rounded towards zero."""

    name = "bf16"
    lossiness = "all but 8 significant bits"
    fixed = True

    def encode(self, values: Floats, spec: TensorSpec, known: SharedKnowledge, sender: Sender) -> Encoded:
        upper = np.ascontiguousarray(values, "<f4").view("<u4") >> 16
        return Encoded(upper.astype("<u2").tobytes())

    def decode(self, payload: bytes, spec: TensorSpec, known: SharedKnowledge) -> Decoded:
        if len(payload) != 2 * spec.count:
            raise FrameError(f"{len(payload)} bytes of bf16 where {2 * spec.count} were expected")
        values = (np.frombuffer(payload, "<u2").astype("<u4") << 16).view("<f4").astype(np.float32)
        if not np.isfinite(values).all():
            raise FrameError("a number in the message is not finite")
        return Decoded(values.reshape(spec.shape))
