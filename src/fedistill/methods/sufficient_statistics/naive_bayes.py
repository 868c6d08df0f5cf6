"""Naive Bayes: each client counts its words by class, once, and the server is the classifier of the sums."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedistill.communication.messages.base import Message, MessageContext
from fedistill.communication.messages.statistics import StatisticsRequest, WordCounts
from fedistill.communication.secure_aggregation.fixed_point import Addend
from fedistill.communication.secure_aggregation.total import SecureTotal
from fedistill.config.schema import Positive
from fedistill.config.secure_sums import SecureSums
from fedistill.errors import FrameError, Refusal
from fedistill.methods.base import Needs, NoState, Reply
from fedistill.methods.participants import Client, FederationInfo, Server
from fedistill.methods.shared.statistics import StatisticsServer, StatisticsSettings, SumsOfStatistics
from fedistill.models import registry as models
from fedistill.models.naive_bayes import NaiveBayes as Net


class NaiveBayesSettings(StatisticsSettings):
    words: Literal["hashed", "tokens"] = Field(
        default="hashed",
        description="what is counted: words hashed to numbers, which needs no vocabulary, or the token ids of"
        " the arm's models",
    )
    buckets: int = Field(default=8192, ge=2, le=1_000_000, description="numbers that hashed words may have")
    length: int | None = Field(
        default=None, ge=1, description="hashed words that count per text; default: task.text.length"
    )
    least: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="a client leaves out words that a class has less often; from 2 on, far fewer bytes",
    )
    alpha: Positive = Field(default=1.0, description="added to each count, so that no word is impossible")
    prior: Literal["texts", "uniform"] = Field(
        default="texts", description="of a class: its share of all private texts, or the same for all"
    )


@dataclass(frozen=True)
class NaiveBayesServer(StatisticsServer):
    """What answers for the server, whose counts it has, and the sums of texts (C,) and words (C, V)."""

    texts: Tensor
    words: Tensor


class NaiveBayes(SumsOfStatistics[WordCounts, NaiveBayesServer]):
    """Each client sends its counts of words by class once; the server is a multinomial naive Bayes.

    Nobody trains. The server adds up the counts of texts ``N_c`` and of words ``T_cw``, and returns for a
    text ``log N_c / N + sum over its words w of log (T_cw + alpha) / sum over v of (T_cv + alpha)``. The
    sums are those of all texts pooled, so the result depends neither on how these are split nor on which
    client answers when, as long as all do. A client is asked in every round in which it takes part, until
    the server has its counts.

    Hashed words need no vocabulary, so nothing is sent before round 1, and ``models`` has no meaning, but
    that with ``distill_epochs`` the server's network learns the classes given to the public texts. With
    ``words = "tokens"``, all models must have the same tokenizer. Most words of a client are rare: ``least =
    2`` leaves out those that occur once in a class and nearly halves the bytes; the result then depends on
    how texts are split. Fewer rare words of longer texts are worth more than all words of short ones.

    Exchanged: a request down, C V counts up, most of them zero. Bytes: 11 down, and the entropy of the counts
    up, about 6 bits for each that is positive; nothing later. Counts reveal which words a client's texts of a
    class have, but not in which text; with ``least``, no rare ones.
    """

    name = "naive-bayes"
    paper = "Manning et al., 2008, Introduction to Information Retrieval, section 13.2"
    exchanges = "counts of words by class up, once"
    byte_formula = "up = CVH/8, H bits per count; down = 11; once"
    uplink = WordCounts
    ServerState = NaiveBayesServer
    needs = Needs(inputs="text")
    Settings = NaiveBayesSettings
    settings: NaiveBayesSettings

    def inputs_of(self, model: str) -> str:
        hashed = self.settings.words == "hashed"
        return models.hashed_words(self.settings.buckets, self.settings.length) if hashed else model

    def check(self, federation: FederationInfo) -> None:
        super().check(federation)
        names = {info.model for info in federation.clients} | {federation.server_model}
        if len({models.preprocessing(self.inputs_of(name)) for name in names}) > 1:
            raise Refusal(
                f"method {self.name} adds up counts of tokens, so all models need the same tokenizer, but"
                f' {", ".join(sorted(names))} differ: for this arm, set words = "hashed", or name one model'
            )

    def message_context(self, federation: FederationInfo, client: int) -> MessageContext:
        context = super().message_context(federation, client)
        return replace(
            context,
            width=self._vocabulary(federation),
            length=self._length(federation),
            settings={"skipped": self.settings.least - 1},
        )

    def start_server(self, server: Server) -> NaiveBayesServer:
        texts = torch.zeros(server.classes, dtype=torch.int64)
        words = torch.zeros(server.classes, self._vocabulary(server.federation), dtype=torch.int64)
        return NaiveBayesServer(self.start_model(server), [], texts, words)

    def client_step(
        self, state: NoState, client: Client, received: StatisticsRequest | None
    ) -> tuple[NoState, WordCounts | None]:
        if received is None:
            return state, None
        tokens, labels = client.inputs(self.inputs_of(client.model)).long(), client.data.labels
        length = self._vocabulary(client.federation)
        kept = tokens > 0
        cells = (labels[:, None] * length + tokens - 1)[kept]
        words = torch.bincount(cells, minlength=client.classes * length)
        words[words < self.settings.least] = 0
        texts = torch.bincount(labels, minlength=client.classes)
        return state, WordCounts(texts, words, self.settings.least - 1)

    def check_reply(self, state: NaiveBayesServer, server: Server, reply: Reply[WordCounts]) -> None:
        message, samples = reply.message, server.clients[reply.client].samples
        if reply.client in state.clients:
            raise FrameError("its counts came before, and it was not asked for them again")
        if int(message.texts.sum()) != samples:
            raise FrameError(f"it counts {int(message.texts.sum())} texts, but has {samples}")
        most = message.texts * self._length(server.federation)
        many = message.words.reshape(server.classes, -1).sum(dim=1) > most
        if many.any():
            wrong = int(many.nonzero()[0])
            raise FrameError(f"it counts more words of class {wrong} than its texts can have")

    def add(
        self, state: NaiveBayesServer, server: Server, replies: Iterable[Reply[WordCounts]]
    ) -> NaiveBayesServer:
        texts, words, clients = state.texts, state.words, [*state.clients]
        for reply in replies:
            texts = texts + reply.message.texts
            words = words + reply.message.words.reshape(words.shape)
            clients.append(reply.client)
        return replace(state, clients=clients, texts=texts, words=words)

    def addends(self, federation: FederationInfo, settings: SecureSums) -> dict[str, Addend]:
        most = max(federation.samples)
        words = federation.classes, self._vocabulary(federation)
        return {
            "texts": Addend.integers((federation.classes,), most),
            "words": Addend.integers(words, most * self._length(federation)),
        }

    def to_add(self, client: Client, message: Message, settings: SecureSums) -> dict[str, Tensor]:
        assert isinstance(message, WordCounts)
        return {"texts": message.texts, "words": message.words.reshape(client.classes, -1)}

    def add_sum(self, state: NaiveBayesServer, server: Server, total: SecureTotal) -> NaiveBayesServer:
        texts, words = (state.texts + total.sums["texts"].long(), state.words + total.sums["words"].long())
        return replace(state, texts=texts, words=words)

    def solve(self, state: NaiveBayesServer, federation: FederationInfo) -> Net:
        uniform = self.settings.prior == "uniform"
        return Net.of(state.words, state.texts, self.settings.alpha, uniform)

    def blank(self, federation: FederationInfo) -> Net:
        return Net(self._vocabulary(federation), federation.classes)

    def _length(self, federation: FederationInfo) -> int:
        """Return the most words of a text."""
        own = self.settings.length if self.settings.words == "hashed" else None
        return own or federation.signatures[federation.server_model].shape[0]

    def _vocabulary(self, federation: FederationInfo) -> int:
        """Return V, the number of different words, padding not counted."""
        if self.settings.words == "hashed":
            return self.settings.buckets
        return federation.signatures[federation.server_model].vocabulary - 1
