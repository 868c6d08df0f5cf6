"""The range coder, with probabilities that come from integers alone.

A model of symbols 0 … A-1 is a table of A >= 2 frequencies, integers from 0 to 2**40 and not all 0; they may
have any sum, and a symbol of frequency 0 can still be coded, in 24 bits. Integers of this size are exact as
float64, and constriction computes with them in single, correctly rounded IEEE operations: two machines with
the same integers have bit-identical models.
"""

from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from fedistill.errors import FrameError

Integers = NDArray[np.integer[Any]]
_WORD = 4
_Categorical = constriction.stream.model.Categorical
_EACH = _Categorical(perfect=False)


class Encoder:
    """Writes symbols, each with a model of its own or all with the same."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def put(self, symbols: Integers, frequencies: Integers) -> None:
        """Write symbols (n,) with frequencies (n, A), or (A,) for all of them."""
        if not len(symbols):
            return
        symbols = symbols.astype(np.int32, copy=False)
        if frequencies.ndim == 1:
            self._coder.encode(symbols, _Categorical(frequencies.astype(np.float64), perfect=False))
        else:
            self._coder.encode(symbols, _EACH, frequencies.astype(np.float64))

    def finish(self) -> bytes:
        """Return what was written, without trailing zero bytes, which the decoder adds again."""
        words: NDArray[np.uint32] = self._coder.get_compressed()
        return words.astype("<u4").tobytes().rstrip(b"\0")


class Decoder:
    """Reads what an `Encoder` wrote; the caller must pass the same models in the same order."""

    def __init__(self, payload: bytes) -> None:
        words = np.frombuffer(payload + bytes(-len(payload) % _WORD), dtype="<u4")
        self._coder = constriction.stream.queue.RangeDecoder(words.astype(np.uint32))

    def take(self, frequencies: Integers, count: int | None = None) -> NDArray[np.int32]:
        """Read a symbol for each row of frequencies (n, A), or ``count`` symbols with one table (A,).

        Raises:
            FrameError: no `Encoder` writes such bytes with these models.
        """
        if (len(frequencies) if count is None else count) == 0:
            return np.zeros(0, np.int32)
        try:
            if count is not None:
                model = _Categorical(frequencies.astype(np.float64), perfect=False)
                return self._coder.decode(model, count)  # type: ignore[no-any-return]  # it has no types
            each = frequencies.astype(np.float64)
            return self._coder.decode(_EACH, each)  # type: ignore[no-any-return]  # constriction has no types
        except AssertionError:  # constriction raises it for invalid bytes
            raise FrameError("coded symbols are not valid under the model they should follow") from None

    def finish(self) -> None:
        """Check that no bytes are left.

        Raises:
            FrameError: some are.
        """
        if not self._coder.maybe_exhausted():
            raise FrameError("coded symbols are followed by bytes that mean nothing")


def ideal_bits(symbols: Integers, frequencies: Integers) -> float:
    """Return the code length in bits of symbols (n,) with frequencies (n, A) or (A,): no coder needs less."""
    if frequencies.ndim == 1:
        shares = frequencies[symbols.astype(np.int64)] / frequencies.sum()
    else:
        chosen = np.take_along_axis(frequencies, symbols[:, None].astype(np.int64), axis=1)[:, 0]
        shares = chosen / frequencies.sum(axis=1)
    # The precision of the coder: no symbol costs more than 24 bits.
    shares = np.maximum(shares, 2.0**-24)
    return float(-np.log2(shares).sum())
