"""All that the server of an arm has to go by: what clients said, guesses about them, and models to ask."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedistill.federation.client import client_state
from fedistill.methods.base import AnyState
from fedistill.methods.shared.moments import MomentsMethod
from fedistill.models import registry as models
from fedistill.studies.audit.candidates import halves
from fedistill.studies.audit.evidence import Evidence, Labels, Model, evidence
from fedistill.studies.audit.label_inference import guess_shares
from fedistill.studies.audit.replay import Replayed
from fedistill.studies.audit.shadows import Shadow, shadows
from fedistill.studies.audit.surrogates import Surrogates

_COMPARED = 2000
"""Samples of the test set that means are compared with, at most."""


@dataclass(frozen=True)
class Settings:
    """How to audit.

    Attributes:
        shadows: of each client, at least 2; the more, the better scores are calibrated.
        rounds: of how many messages are used, for each client and kind of message.
        clients: how many are audited, at most.
        candidates: members, and as many non-members, of each client, at most.
        seed: of all that the audit draws.
    """

    shadows: int = 4
    rounds: int = 3
    clients: int = 10
    candidates: int = 250
    seed: int = 0


class ArmEvidence:
    """What the server of an arm has.

    Attributes:
        said: what each client's messages say, by client and round.
        guesses: about each client's shares of classes, the best one first.
        half: of each sample of the test set (`fedistill.studies.audit.candidates`).
    """

    def __init__(self, replayed: Replayed, settings: Settings) -> None:
        self.arm, self.settings, self._replayed = replayed.arm, settings, replayed
        self.half = halves(self.arm.task, settings.seed)
        self.said: dict[int, dict[int, list[Evidence]]] = {}
        for client in replayed.exchanges:
            rounds = {}
            for one in replayed.kept(client):
                assert one.message is not None
                if found := evidence(self.arm, client, one.round, one.message):
                    rounds[one.round] = found
            self.said[client] = rounds
        self.guesses = guess_shares(self.arm, self.said)
        self._surrogates: dict[tuple[int, str], Surrogates] = {}
        self._models: dict[tuple[int, int], Model | None] = {}

    def shadows(self, client: int) -> list[Shadow]:
        """Train the shadows of a client, with the mix of classes that is guessed of it."""
        guess = self.guesses[client]
        shares = guess[0].shares if guess else torch.ones(self.arm.task.signature.classes)
        exchanges, count, seed = self._replayed.exchanges[client], self.settings.shadows, self.settings.seed
        return list(shadows(self.arm, client, exchanges, self.half, shares, count, seed))

    def state(self, client: int, number: int) -> AnyState:
        """Return a client's state after a round that is kept, which its server does not have."""
        found = next(one.state for one in self._replayed.exchanges[client] if one.round == number)
        return client_state(self.arm, client, found)

    def model_of(self, client: int, number: int, part: Labels | Model) -> Model:
        """Return the model that a message is, or the surrogate of its labels."""
        if isinstance(part, Model):
            return part
        name = self.arm.federation.clients[client].model
        if (number, name) not in self._surrogates:
            parts = [one for rounds in self.said.values() for one in rounds.get(number, [])]
            labels = [one for one in parts if isinstance(one, Labels)]
            self._surrogates[number, name] = Surrogates(self.arm, name, number, labels, self.settings.seed)
        return Model(name, self._surrogates[number, name].of(part))

    def said_model(self, client: int, number: int) -> Model | None:
        """Return `model_of` what a client sent in a round; None if that is neither a model nor labels."""
        key = client, number
        if key not in self._models:
            parts = [one for one in self.said[client].get(number, []) if isinstance(one, Labels | Model)]
            self._models[key] = self.model_of(client, number, parts[0]) if parts else None
        return self._models[key]

    def peers(self, client: int, number: int, name: str) -> list[Model]:
        """Return what the other clients sent in a round as models of this name, surrogates among them."""
        found = [self.said_model(other, number) for other in self.said if other != client]
        return [one for one in found if one is not None and one.name == name]

    def fixed_features(self, client: int) -> tuple[str, nn.Module] | None:
        """Return the features of the statistics that are sent, and the model whose inputs they take.

        None if the arm's method does not say what they are.
        """
        method = self.arm.method
        if not isinstance(method, MomentsMethod):
            return None
        name = method.inputs_of(self.arm.federation.clients[client].model)
        return name, method.blank(self.arm.federation).features

    def test_inputs(self, name: str) -> Tensor:
        """Return the samples of the test set that means are compared with, as a model takes them."""
        return self.arm.task.test_inputs(models.preprocessing(name))[:: self._step]

    def private_inputs(self, client: int, name: str) -> Tensor:
        """Return a client's private samples, which only serve to judge what was found."""
        return self.arm.task.client_inputs(client, models.preprocessing(name))

    @property
    def _step(self) -> int:
        return -(-len(self.arm.task.test) // _COMPARED)

    @property
    def test_labels(self) -> Tensor:
        """Labels (n,) of `test_inputs`."""
        return self.arm.task.test.labels[:: self._step]

    @property
    def test_half(self) -> Tensor:
        """Half (n,) of `test_inputs`."""
        return self.half[:: self._step]
