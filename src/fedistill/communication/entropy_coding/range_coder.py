"""The range coder, under probabilities that come from integers alone.

A model of symbols 0 … A-1 is a table of A >= 2 frequencies, integers from 0 to 2**40 and not all 0; they
need not add up to anything in particular, and a symbol of frequency 0 can still be coded, at 24 bits.
Integers this small are exact as float64, and so is all that constriction makes of them up to single
correctly rounded IEEE operations: two machines that hold the same integers have the same model to the
last bit.
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
    """Writes symbols, each under a model of its own or all under one."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def put(self, symbols: Integers, frequencies: Integers) -> None:
        """Write symbols (n,) under frequencies (n, A), or (A,) for all of them."""
        if not len(symbols):
            return
        symbols = symbols.astype(np.int32, copy=False)
        if frequencies.ndim == 1:
            self._coder.encode(symbols, _Categorical(frequencies.astype(np.float64), perfect=False))
        else:
            self._coder.encode(symbols, _EACH, frequencies.astype(np.float64))

    def finish(self) -> bytes:
        """Return all that was written; the decoder puts trailing zeros back."""
        words: NDArray[np.uint32] = self._coder.get_compressed()
        return words.astype("<u4").tobytes().rstrip(b"\0")


class Decoder:
    """Reads what an `Encoder` wrote; the caller gives the same models in the same order."""

    def __init__(self, payload: bytes) -> None:
        words = np.frombuffer(payload + bytes(-len(payload) % _WORD), dtype="<u4")
        self._coder = constriction.stream.queue.RangeDecoder(words.astype(np.uint32))

    def take(self, frequencies: Integers, count: int | None = None) -> NDArray[np.int32]:
        """Read a symbol for each row of (n, A), or ``count`` symbols under one table (A,).

        Raises:
            FrameError: no symbols under these models are written like this.
        """
        if (len(frequencies) if count is None else count) == 0:
            return np.zeros(0, np.int32)
        try:
            if count is not None:
                model = _Categorical(frequencies.astype(np.float64), perfect=False)
                return self._coder.decode(model, count)  # type: ignore[no-any-return]  # it has no types
            each = frequencies.astype(np.float64)
            return self._coder.decode(_EACH, each)  # type: ignore[no-any-return]  # constriction has no types
        except AssertionError:  # how constriction says so
            raise FrameError("coded symbols are not valid under the model they should follow") from None

    def finish(self) -> None:
        """Refuse bytes that are left over.

        Raises:
            FrameError: there are some.
        """
        if not self._coder.maybe_exhausted():
            raise FrameError("coded symbols are followed by bytes that mean nothing")


def ideal_bits(symbols: Integers, frequencies: Integers) -> float:
    """Code length of symbols (n,) under frequencies (n, A) or (A,), in bits: the floor for any coder."""
    if frequencies.ndim == 1:
        shares = frequencies[symbols.astype(np.int64)] / frequencies.sum()
    else:
        chosen = np.take_along_axis(frequencies, symbols[:, None].astype(np.int64), axis=1)[:, 0]
        shares = chosen / frequencies.sum(axis=1)
    # The coder's own precision: no symbol is dearer than 24 bits.
    shares = np.maximum(shares, 2.0**-24)
    return float(-np.log2(shares).sum())
