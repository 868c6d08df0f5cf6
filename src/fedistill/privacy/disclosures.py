"""What each number that leaves a client depends on, so that nothing is sent beside the noise unnoticed."""

from collections.abc import Iterable
from enum import Enum

from fedistill.communication.messages.base import Message
from fedistill.communication.messages.bridge import BridgeReply, BridgeRequest
from fedistill.communication.messages.classwise import ClassOutputs, Prototypes, WeightsAndOutputs
from fedistill.communication.messages.labels import (
    ChosenLabels,
    DueLabels,
    FreshLabels,
    Logits,
    SoftLabels,
    Votes,
)
from fedistill.communication.messages.masked import MaskedReply, MaskedRequest
from fedistill.communication.messages.private_samples import PrivateLogits, PrivateOutputs
from fedistill.communication.messages.scored import ScoredLabels, ScoredWeights
from fedistill.communication.messages.statistics import FeatureMoments, StatisticsRequest, WordCounts
from fedistill.communication.messages.tally import TallyReply, TallyRequest
from fedistill.communication.messages.weights import (
    CountedWeights,
    GeneratorWeights,
    TrainedWeights,
    Weights,
)


class Source(Enum):
    """What a number depends on, in words."""

    PUBLIC = "public"
    SIZE = "of the number of private samples"
    MODEL = "of the trained model"
    RECORDS = "of the model on private samples"
    COUNTS = "of counts of private samples"
    CHOICE = "of which public samples are chosen"
    STATISTICS = "of sums over private samples"
    SERVER = "of the server"


_SERVER, _PUBLIC, _MODEL, _SIZE = Source.SERVER, Source.PUBLIC, Source.MODEL, Source.SIZE
SOURCES: dict[type[Message], dict[str, Source]] = {
    Logits: {"scores": _MODEL, "sampled_round": _PUBLIC},
    SoftLabels: {"probs": _MODEL, "sampled_round": _PUBLIC},
    Votes: {"probs": _MODEL, "sampled_round": _PUBLIC},
    ChosenLabels: {
        "probs": _MODEL,
        "places": Source.CHOICE,  # of fedgems, which the server chooses
        "sampled_round": _PUBLIC,
        "chosen": Source.CHOICE,
    },
    DueLabels: {"probs": _MODEL, "turn": _PUBLIC},
    FreshLabels: {"probs": _SERVER, "turn": _SERVER},
    Weights: {"values": _SERVER, "integers": _SERVER},
    TrainedWeights: {"values": _MODEL, "samples": _SIZE, "integers": _MODEL},
    CountedWeights: {"values": _MODEL, "counts": Source.COUNTS, "integers": _MODEL},
    GeneratorWeights: {"values": _SERVER, "generator": _SERVER, "shares": _SERVER, "integers": _SERVER},
    ClassOutputs: {"means": Source.RECORDS},
    Prototypes: {"vectors": Source.RECORDS, "classes": Source.COUNTS, "present": Source.COUNTS},
    WeightsAndOutputs: {"values": _MODEL, "means": Source.RECORDS, "samples": _SIZE, "integers": _MODEL},
    ScoredLabels: {"probs": _MODEL, "scores": Source.CHOICE, "sampled_round": _PUBLIC},
    ScoredWeights: {"values": _MODEL, "scores": Source.CHOICE, "samples": _SIZE, "integers": _MODEL},
    PrivateOutputs: {
        "features": Source.RECORDS,
        "scores": Source.RECORDS,
        "labels": Source.RECORDS,
        "labelled": _PUBLIC,
    },
    PrivateLogits: {"scores": _SERVER},
    MaskedRequest: dict.fromkeys(("turn", "known", "steps", "changes"), _SERVER),
    MaskedReply: {"turn": _PUBLIC, "step": _MODEL, "changes": _MODEL},
    TallyRequest: dict.fromkeys(("values", "merges", "labelled", "base", "labels", "integers"), _SERVER),
    TallyReply: {"values": _MODEL, "merges": _PUBLIC, "votes": _MODEL, "integers": _MODEL},
    BridgeRequest: dict.fromkeys(
        (
            *("asks", "labelled", "voted", "given", "turn", "known", "thresholds", "agreement", "labels"),
            *("start", "steps", "changes"),
        ),
        _SERVER,
    ),
    BridgeReply: {
        "has": _PUBLIC,
        "digest": _PUBLIC,
        "turn": _PUBLIC,
        "step": _MODEL,
        "levels": Source.COUNTS,
        "votes": Source.COUNTS,
        "changes": _MODEL,
    },
    StatisticsRequest: {},
    WordCounts: dict.fromkeys(("texts", "words", "skipped"), Source.STATISTICS),
    FeatureMoments: dict.fromkeys(
        ("classes", "samples", "scales", "means", "correlations", "present", "levels"), Source.STATISTICS
    ),
}
"""Of each field of each message. Those of the server depend on whatever it was sent."""

BEFORE_ROUND_1: dict[str, Source] = {
    "samples": _SIZE,
    "column_sums": Source.STATISTICS,
}
"""What a client sends before round 1, as `Task` names it: how many samples it has, and, where rows of tables
are encoded by sums that clients share, those, with which no noise goes together."""


def told_of(messages: Iterable[type[Message]]) -> list[str]:
    """Return what leaves a client in these messages, each field with what it depends on."""
    return [
        f"{field} ({SOURCES[kind][field].value})"
        if kind in SOURCES
        else f"{field} (of a message of your own)"
        for kind in messages
        for field in kind.names()
    ]
