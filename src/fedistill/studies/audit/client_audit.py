"""The audit of one client: scores of its candidates, and its class means as the server decodes them."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedistill.errors import TrainingError
from fedistill.methods.base import AnyState
from fedistill.methods.combined.tally_like import TallyLike
from fedistill.methods.shared.moments import inverse
from fedistill.privacy.mechanisms import LocalMechanism
from fedistill.studies.audit.arm_evidence import ArmEvidence
from fedistill.studies.audit.asked import answers, features
from fedistill.studies.audit.candidates import HALVES, draw_candidates
from fedistill.studies.audit.evidence import (
    Features,
    Labels,
    Model,
    Outputs,
    Statistics,
    Words,
    evidence,
)
from fedistill.studies.audit.membership import (
    calibrated,
    confidence,
    log_probability,
    mean_of_usable,
    negative_entropy,
    trace,
    unseen_words,
    usable_shadows,
)
from fedistill.studies.audit.reconstruction import (
    ALIKE,
    KNOWN,
    ClassMeans,
    class_means,
    decode,
    within_covariance,
)
from fedistill.studies.audit.roc import Scored
from fedistill.studies.audit.shadows import ShadowReply
from fedistill.training.loop import predict
from fedistill.training.model_state import ModelState

Attack = tuple[str, str]
"""What is asked, such as ``weights``, and the score (`fedistill.studies.audit.membership`)."""
_RIDGE = 0.1
_LEAST = 1e-2
"""Variances are at least about this share of their mean."""


@dataclass
class ClientFindings:
    """What was found out about a client.

    Attributes:
        scored: its candidates' scores, by attack.
        means: its class means, by what they were decoded from.
    """

    scored: dict[Attack, Scored] = field(default_factory=dict)
    means: dict[str, ClassMeans] = field(default_factory=dict)


def audit_client(audit: ArmEvidence, client: int, asked_about: int | None = None) -> ClientFindings:
    """Attack a client.

    Args:
        asked_about: the client whose samples are the candidates; by default the same. Of another one's,
            a message from before any exchange says nothing: a control.

    Raises:
        TrainingError: a shadow or a surrogate fails in training, or scores are not finite.
    """
    found = ClientFindings()
    if not audit.said[client]:
        return found
    asking = _ClientAudit(audit, client, client if asked_about is None else asked_about)
    scores: dict[Attack, list[Tensor]] = {}
    for number in audit.said[client]:
        for attack, values in asking.scores(number):
            scores.setdefault(attack, []).append(values)
        found.means |= dict(asking.decoded(number))
    member_ids, other_ids = asking.candidates.ids(audit.arm.task)
    split = len(member_ids)
    for attack, every in scores.items():
        mean = torch.stack(every).double().mean(dim=0).numpy()
        if not np.isfinite(mean).all():
            raise TrainingError(f"scores of {', '.join(attack)} are not finite")
        found.scored[attack] = Scored(mean[:split], mean[split:], member_ids, other_ids)
    return found


class _ClientAudit:
    def __init__(self, audit: ArmEvidence, client: int, asked_about: int) -> None:
        self._audit, self._arm, self._client = audit, audit.arm, client
        self._name = self._arm.federation.clients[client].model
        settings = audit.settings
        self.candidates = draw_candidates(
            self._arm.task, asked_about, audit.half, settings.candidates, settings.seed
        )
        self._labels = self.candidates.labels
        parts = [part for rounds in audit.said[client].values() for part in rounds]
        # What a client of TallyLike is sent is coded given its own votes, which a shadow has not cast.
        uses_shadows = not isinstance(self._arm.method, TallyLike) and any(
            isinstance(part, Labels | Model | Features | Outputs) for part in parts
        )
        self._shadows = audit.shadows(client) if uses_shadows else []
        self._usable = usable_shadows([one.half for one in self._shadows], self.candidates)
        self._inputs: dict[str, Tensor] = {}

    def scores(self, number: int) -> Iterator[tuple[Attack, Tensor]]:
        """Yield scores (n,) of the candidates, from the client's message of a round."""
        for part in self._audit.said[self._client][number] if len(self.candidates) else []:
            match part:
                case Model():
                    yield from self._by_model("weights", number)
                case Labels():
                    what = "votes" if part.votes else "labels"
                    yield from self._by_model(f"{what}, distilled", number)
                    yield from self._by_own_model(what, number)
                case Statistics():
                    if (fixed := self._audit.fixed_features(self._client)) is not None:
                        name, net = fixed
                        test = predict(net, self._audit.test_inputs(name))
                        own, means = predict(net, self._asked(name)), _means(part)
                        traced = [self._traced(test, own, means, half) for half in range(HALVES)]
                        yield ("statistics", "trace"), torch.stack(traced).sum(dim=0)
                case Features() | Outputs():
                    what = "prototypes" if isinstance(part, Features) else "class outputs"
                    if (found := self._by_means(part, number)) is not None:
                        yield (what, "trace"), found
                case Words():
                    tokens = self._asked(self._arm.method.inputs_of(self._name)).long()
                    yield ("word counts", "words"), -unseen_words(tokens, self._labels, part.words).double()
                case _:
                    pass

    def decoded(self, number: int) -> Iterator[tuple[str, ClassMeans]]:
        """Yield the client's class means as they are decoded from its message of a round."""
        for part in self._audit.said[self._client][number]:
            if isinstance(part, Statistics) and (fixed := self._audit.fixed_features(self._client)):
                name, net = fixed
                test = self._audit.test_inputs(name)
                yield "statistics", self._decoded(name, [predict(net, test)], _means(part), KNOWN)
            elif isinstance(part, Features):
                test, states = self._audit.test_inputs(self._name), self._states(number)
                spaces = [features(self._arm, self._name, state, test) for state in states.values()]
                if spaces and self._arm.task.signature.kind != "text":
                    yield "prototypes", self._decoded(self._name, spaces, part.means, ALIKE)

    def _by_model(self, asked: str, number: int) -> Iterator[tuple[Attack, Tensor]]:
        """Yield scores by a model that was sent, or by a surrogate of labels."""
        model = self._audit.said_model(self._client, number)
        assert model is not None
        logits, labels = self._logits(model), self._labels
        yield (asked, "loss"), log_probability(logits, labels)
        yield (asked, "entropy"), negative_entropy(logits)
        own = confidence(logits, labels)
        peers = self._audit.peers(self._client, number, model.name)
        if len(peers) > 1:
            theirs = torch.stack([confidence(self._logits(peer), labels) for peer in peers])
            yield (asked, "co-op"), calibrated(own, theirs, torch.ones_like(theirs, dtype=torch.bool))
        references, places = [], []
        for place, reply in self._replies(number):
            for part in evidence(self._arm, self._client, number, reply.message):
                if isinstance(part, Labels | Model):
                    model = self._audit.model_of(self._client, number, part)
                    references.append(confidence(self._logits(model), labels))
                    places.append(place)
        if references:
            theirs, usable = torch.stack(references), self._usable[places]
            yield (asked, "lira"), calibrated(own, theirs, usable)
            yield (asked, "blind"), mean_of_usable(theirs, usable)

    def _by_own_model(self, what: str, number: int) -> Iterator[tuple[Attack, Tensor]]:
        """Yield scores by what the client would have answered, had the candidates been public samples."""
        if isinstance(self._arm.privacy, LocalMechanism):
            return  # what it would have answered has no noise
        own, score = self._audit.state(self._client, number), _hits if what == "votes" else confidence
        theirs = self._states(number)
        if not isinstance(getattr(own, "model", None), ModelState) or not theirs:
            return
        mine, *references = (
            score(answers(self._arm, self._name, state, self._asked(self._name)), self._labels)
            for state in (own.model, *theirs.values())
        )
        yield (f"{what}, if asked", "loss"), mine
        usable = self._usable[list(theirs)]
        yield (f"{what}, if asked", "lira"), calibrated(mine, torch.stack(references), usable)

    def _by_means(self, part: Features | Outputs, number: int) -> Tensor | None:
        """Return scores by means of what a model returns that the server does not have, but shadows."""
        test = self._audit.test_inputs(self._name)
        scores: dict[int, list[Tensor]] = {half: [] for half in range(HALVES)}
        for place, state in self._states(number).items():
            own, half = self._asked(self._name), 1 - self._shadows[place].half
            known, found = (self._returned(part, state, inputs) for inputs in (test, own))
            scores[half].append(self._traced(known, found, part.means, half))
        if not all(scores.values()):
            return None
        return torch.stack([torch.stack(found).mean(dim=0) for found in scores.values()]).sum(dim=0)

    def _traced(self, test: Tensor, own: Tensor, means: Tensor, half: int) -> Tensor:
        """Return scores (n,) of the candidates of a half, by the test set's other half; 0 for the others."""
        known = self._audit.test_half != half
        labels = self._audit.test_labels[known]
        usual, _ = class_means(test[known], labels, self._arm.task.signature.classes)
        covariance = within_covariance(test[known], labels, usual)
        # A unit that never fires in the test set has no variance, and any value of it would count most.
        covariance += torch.eye(len(covariance), dtype=torch.float64) * covariance.diag().mean() * _LEAST
        precision = inverse(covariance, _RIDGE)
        found = trace(own.double(), self._labels, means.double(), usual, precision)
        return torch.where(self.candidates.half == half, found, 0.0)

    def _decoded(self, name: str, spaces: list[Tensor], means: Tensor, ridge: float) -> ClassMeans:
        """Return the client's class means beside those decoded of means (C, d), averaged over the spaces."""
        task, classes = self._arm.task, self._arm.task.signature.classes
        scale = 255.0 if task.signature.kind == "image" else 1.0
        test = self._audit.test_inputs(name).flatten(1).double() / scale
        private = self._audit.private_inputs(self._client, name).flatten(1) / scale
        truth, counts = class_means(private, task.clients[self._client].labels, classes)
        labels = self._audit.test_labels
        usual, known = class_means(test, labels, classes)
        held = (counts > 0) & (known > 0)
        shifts = []
        for space in spaces:
            middle, _ = class_means(space, labels, classes)
            shift = means[held].double() - middle[held]
            shifts.append(decode(space.double() - middle[labels], test - usual[labels], shift, ridge))
        found = usual[held] + torch.stack(shifts).mean(dim=0)
        return ClassMeans(found, truth[held], usual[held], counts[held])

    def _returned(self, part: Features | Outputs, state: ModelState, inputs: Tensor) -> Tensor:
        if isinstance(part, Features):
            return features(self._arm, self._name, state, inputs)
        return answers(self._arm, self._name, state, inputs).softmax(dim=1)

    def _replies(self, number: int) -> list[tuple[int, ShadowReply]]:
        """Return the replies of a round of those shadows that replied, with the shadow's place."""
        found = [(place, shadow.replies.get(number)) for place, shadow in enumerate(self._shadows)]
        return [(place, reply) for place, reply in found if reply is not None]

    def _states(self, number: int) -> dict[int, ModelState]:
        """Return the models that shadows have after a round, by place; none if clients keep none."""
        found: list[tuple[int, AnyState]] = [(place, one.state) for place, one in self._replies(number)]
        return {
            place: state.model
            for place, state in found
            if isinstance(getattr(state, "model", None), ModelState)
        }

    def _logits(self, model: Model) -> Tensor:
        return answers(self._arm, model.name, model.state, self._asked(model.name))

    def _asked(self, name: str) -> Tensor:
        """Return the candidates (n, ...) as a model takes them."""
        if name not in self._inputs:
            self._inputs[name] = self.candidates.inputs(self._arm.task, name)
        return self._inputs[name]


def _means(part: Statistics) -> Tensor:
    return part.moments.sums / part.moments.samples.clamp(min=1)[:, None]


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1 (n,) where the vote is the label, else 0."""
    return (logits.argmax(dim=1) == labels).float()
