"""The same code for both sides of a message: a model calls `code`, whether it writes or reads."""

from typing import Protocol

from fedistill.communication.entropy_coding.range_coder import Decoder, Encoder, Integers


class SymbolIO(Protocol):
    """One side of a message."""

    def code(self, symbols: Integers, frequencies: Integers) -> Integers:
        """Write symbols (n,), or read as many, with frequencies (n, A) or (A,); return them."""


class SymbolWriter:
    """The sender's side."""

    def __init__(self) -> None:
        self._encoder = Encoder()

    def code(self, symbols: Integers, frequencies: Integers) -> Integers:
        self._encoder.put(symbols, frequencies)
        return symbols

    def finish(self) -> bytes:
        return self._encoder.finish()


class SymbolReader:
    """The receiver's side, which uses only the number of the symbols that it is passed."""

    def __init__(self, payload: bytes) -> None:
        self._decoder = Decoder(payload)

    def code(self, symbols: Integers, frequencies: Integers) -> Integers:
        return self._decoder.take(frequencies, len(symbols) if frequencies.ndim == 1 else None)

    def finish(self) -> None:
        """Check that no bytes are left.

        Raises:
            FrameError: some are.
        """
        self._decoder.finish()
