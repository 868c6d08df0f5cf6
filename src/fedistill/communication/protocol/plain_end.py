"""Codes tensors whose last numbers no codec may change: the buffers among a model's weights."""

from dataclasses import replace

import numpy as np

from fedistill.communication.codecs.base import Codec, Decoded, Encoded, Sender
from fedistill.communication.tensor_specs import Floats, SharedKnowledge, TensorSpec
from fedistill.errors import FrameError

_FP32 = np.dtype("<f4")


def encode_tensor(
    codec: Codec, values: Floats, spec: TensorSpec, known: SharedKnowledge, sender: Sender
) -> Encoded:
    """Code numbers of the shape ``spec.shape`` by a codec, the last ``spec.plain`` of them as fp32."""
    if not spec.plain:
        return codec.encode(values, spec, known, sender)
    coded = spec.count - spec.plain
    encoded = codec.encode(values[:coded], *_coded(spec, known, coded), sender)
    return replace(encoded, payload=encoded.payload + values[coded:].astype(_FP32).tobytes())


def decode_tensor(codec: Codec, payload: bytes, spec: TensorSpec, known: SharedKnowledge) -> Decoded:
    """Decode what `encode_tensor` coded.

    Raises:
        FrameError: it codes no such payload.
    """
    if not spec.plain:
        return codec.decode(payload, spec, known)
    coded, size = spec.count - spec.plain, len(payload) - spec.plain * _FP32.itemsize
    if size < 0:
        raise FrameError(f"the message ends within its {spec.plain} numbers of buffers")
    end = np.frombuffer(payload[size:], _FP32).astype(np.float32)
    if not np.isfinite(end).all():
        raise FrameError("a number of a buffer is not finite")
    decoded = codec.decode(payload[:size], *_coded(spec, known, coded))
    return replace(decoded, values=np.concatenate([decoded.values, end]))


def _coded(spec: TensorSpec, known: SharedKnowledge, coded: int) -> tuple[TensorSpec, SharedKnowledge]:
    """Return what both sides know about the numbers before the plain ones."""
    reference = None if known.reference is None else known.reference[:coded]
    return replace(spec, shape=(coded,), plain=0), replace(known, reference=reference)
