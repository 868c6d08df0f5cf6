"""One bit for each number of an update."""

import numpy as np

from fedistill.communication.codecs.updates import (
    FeedbackCodec,
    Scales,
    mean_size,
    pack_scales,
    parts,
    short,
    unpack_scales,
)
from fedistill.communication.entropy_coding.parametric_model import Flags, changes, put, take, unchanged
from fedistill.communication.entropy_coding.range_coder import Decoder, Encoder
from fedistill.communication.tensor_specs import Floats, TensorSpec

_MOST = 255
_NOTHING = np.zeros(0, np.float32)


class Sign(FeedbackCodec):
    """The sign of each number, and the mean size of each tensor.

    Signs are written as changes from one to the next, eight per symbol, since neighbours tend to agree.
    """

    name = "sign"
    lossiness = "all but the signs of an update; error feedback sends the rest later"
    source = "Karimireddy et al., 2019, arXiv 1901.09847 (EF-signSGD)"

    def compress(self, update: Floats, spec: TensorSpec) -> tuple[bytes, Floats]:
        negative = update < 0
        encoder = Encoder()
        put(encoder, np.packbits(changes(negative)).astype(np.int32), 0, _MOST)
        scales = short(np.concatenate([_NOTHING, *(mean_size(update[place]) for place, _ in parts(spec))]))
        return pack_scales(scales) + encoder.finish(), _signed(negative, scales, spec)

    def read(self, body: bytes, spec: TensorSpec) -> Floats:
        scales, coded = unpack_scales(body, len(list(parts(spec))))
        decoder = Decoder(coded)
        packed = take(decoder, -(-spec.count // 8), 0, _MOST).astype(np.uint8)
        decoder.finish()
        negative = unchanged(np.unpackbits(packed, count=spec.count).astype(bool))
        return _signed(negative, scales, spec)


def _signed(negative: Flags, scales: Scales, spec: TensorSpec) -> Floats:
    """Return plus or minus the scale of its tensor for each number."""
    signs = np.where(negative, np.float32(-1), np.float32(1))
    for (place, _), scale in zip(parts(spec), scales, strict=True):
        signs[place] *= scale
    return signs
