"""Codecs for soft labels: one class per sample, b bits per probability, or the most likely classes."""

from abc import abstractmethod
from typing import Annotated

from pydantic import Field

from fedistill.communication.codecs.base import Codec, Decoded, Encoded, Sender
from fedistill.communication.codecs.label_formats import (
    Coder,
    HardFormat,
    LabelFormat,
    PackableFormat,
    SimplexFormat,
    TopFormat,
)
from fedistill.communication.entropy_coding.bit_packing import pack, unpack
from fedistill.communication.entropy_coding.symbol_io import SymbolReader, SymbolWriter
from fedistill.communication.tensor_specs import Content, Floats, SharedKnowledge, TensorSpec
from fedistill.config.schema import Section

_Coder = Annotated[
    Coder,
    Field(
        description="predictive: uses all that both sides know; delta: changes only, as CFD; order0: by"
        " frequency; plain: fixed width"
    ),
]


class OneHotSettings(Section):
    coder: _Coder = "predictive"


class SimplexSettings(Section):
    bits: int = Field(default=2, ge=1, le=8, description="b: entries are multiples of 1 / (2**b - 1)")
    coder: _Coder = "predictive"


class TopClassesSettings(Section):
    k: int = Field(default=2, ge=1, description="number of classes that are sent per sample")
    bits: int = Field(default=4, ge=1, le=8, description="b: probabilities are multiples of 1 / (2**b - 1)")


class _LabelCodec(Codec):
    codes = frozenset({Content.PROBS})
    remembers = True

    @abstractmethod
    def label_format(self, spec: TensorSpec) -> LabelFormat:
        """Return what is left of labels, and how that is coded."""

    def encode(self, values: Floats, spec: TensorSpec, known: SharedKnowledge, sender: Sender) -> Encoded:
        label_format = self.label_format(spec)
        found = label_format.reduce(values, sender.random)
        writer = SymbolWriter()
        memory = label_format.code(writer, found, spec, known)
        return Encoded(writer.finish(), memory)

    def decode(self, payload: bytes, spec: TensorSpec, known: SharedKnowledge) -> Decoded:
        label_format = self.label_format(spec)
        found = label_format.blank(spec)
        reader = SymbolReader(payload)
        memory = label_format.code(reader, found, spec, known)
        reader.finish()
        return Decoded(label_format.expand(found, spec), memory)


class _Fixed(_LabelCodec):
    """Adds a coder, ``plain``: a fixed width, without the range coder and without a memory."""

    def __init__(self, settings: Section) -> None:
        super().__init__(settings)
        self.remembers = self.coder in ("predictive", "delta")

    @property
    @abstractmethod
    def coder(self) -> Coder:
        """The coder that the settings name."""

    def encode(self, values: Floats, spec: TensorSpec, known: SharedKnowledge, sender: Sender) -> Encoded:
        if self.coder != "plain":
            return super().encode(values, spec, known, sender)
        label_format = self.label_format(spec)
        return Encoded(pack(label_format.reduce(values, sender.random).ravel(), label_format.width(spec)))

    def decode(self, payload: bytes, spec: TensorSpec, known: SharedKnowledge) -> Decoded:
        if self.coder != "plain":
            return super().decode(payload, spec, known)
        label_format = self.label_format(spec)
        blank = label_format.blank(spec)
        found = unpack(payload, blank.size, label_format.width(spec)).reshape(blank.shape)
        label_format.check(found, spec)
        return Decoded(label_format.expand(found, spec))

    @abstractmethod
    def label_format(self, spec: TensorSpec) -> PackableFormat:
        """Return what is left of labels, and how that is coded."""


class OneHot(_Fixed):
    """The most likely class of each sample; the first, if several are equally likely."""

    name = "onehot"
    lossiness = "all but the most likely class of each sample"
    source = "as CFD with one bit: Sattler et al., 2020, arXiv 2012.00632"
    Settings = OneHotSettings
    settings: OneHotSettings

    @property
    def coder(self) -> Coder:
        return self.settings.coder

    def label_format(self, spec: TensorSpec) -> PackableFormat:
        return HardFormat(self.coder)


class Simplex(_Fixed):
    """The nearest row of multiples of 1 / (2**b - 1) whose sum is 1; ties are broken by a seeded draw."""

    name = "simplex"
    lossiness = "all but b bits of each probability"
    source = "Sattler et al., 2020, arXiv 2012.00632, eq. 10-13"
    Settings = SimplexSettings
    settings: SimplexSettings

    @property
    def coder(self) -> Coder:
        return self.settings.coder

    def label_format(self, spec: TensorSpec) -> PackableFormat:
        if self.settings.bits == 1:
            return HardFormat(self.coder, random_ties=True)
        return SimplexFormat(self.coder, self.settings.bits)


class TopClasses(_LabelCodec):
    """The k most likely classes with their probabilities; the rest is spread evenly over the other classes.

    The probabilities and the rest are rounded together, by largest remainder; classes whose probability
    becomes 0 count among the others. Which of equally likely classes come first is drawn by the seed.
    """

    name = "top-classes"
    lossiness = "all but the k most likely classes of each sample and b bits of their probabilities"
    Settings = TopClassesSettings
    settings: TopClassesSettings

    def label_format(self, spec: TensorSpec) -> LabelFormat:
        return TopFormat(min(self.settings.k, spec.shape[1]), 2**self.settings.bits - 1)
