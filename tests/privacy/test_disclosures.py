"""Every number that may leave a client has an entry that says what it depends on."""

import pkgutil
from dataclasses import fields
from importlib import import_module

import pytest

import fedistill.communication.messages as messages
from fedistill.communication.messages.base import Message
from fedistill.communication.messages.labels import Logits, SoftLabels, Votes
from fedistill.data.task import Task
from fedistill.methods.base import Method
from fedistill.methods.participants import ClientInfo
from fedistill.methods.registry import METHODS
from fedistill.privacy.disclosures import BEFORE_ROUND_1, SOURCES, Source, told_of
from fedistill.privacy.mechanisms import GaussianLabels, RandomisedResponse

UPLINKS = {kind for method in METHODS.values() for kind in (method.uplink,) if kind is not None}
COVERED = {Source.PUBLIC, Source.SIZE, Source.MODEL}
"""What DP-SGD covers, or what neighbouring data sets share."""


def every_message() -> list[type[Message]]:
    for info in pkgutil.iter_modules(messages.__path__):
        import_module(f"{messages.__name__}.{info.name}")
    found, ahead = [], [Message]
    while ahead:
        more = ahead.pop().__subclasses__()
        ahead += more
        found += [one for one in more if one.__module__.startswith("fedistill.")]
    return found


@pytest.mark.parametrize("kind", every_message(), ids=lambda kind: kind.__name__)
def test_every_field_of_every_message_has_an_entry(kind: type[Message]) -> None:
    assert kind in SOURCES, f"say in privacy/disclosures.py what each field of {kind.__name__} depends on"
    assert set(SOURCES[kind]) == {one.name for one in fields(kind)}


def test_there_are_no_entries_of_anything_else() -> None:
    assert set(SOURCES) == set(every_message())


def test_what_crosses_before_round_1_has_an_entry() -> None:
    """A client registers its samples; what else the task has of each client is in a frame of its own."""
    assert {one.name for one in fields(ClientInfo)} == {"id", "model", "parameters", "samples"}
    public = ("classes", "client_names", "absent", "samples_elsewhere")
    lists = {one.name for one in fields(Task) if "tuple" in str(one.type)}
    # The samples themselves never leave; own tests are refused with any noise.
    assert lists - {"clients", "own_tests", *public} == set(BEFORE_ROUND_1) - {"samples"}


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_claim_to_tell_nothing_beside_the_model(name: str) -> None:
    """Their messages have nothing else in them, but for places that the server has chosen."""
    method = METHODS[name]
    assert "beyond_model" in {key for one in method.__mro__[:-1] if one is not Method for key in vars(one)}
    if method.uplink is None:
        return
    beside = {field for field, source in SOURCES[method.uplink].items() if source not in COVERED}
    if method.beyond_model is None:
        assert beside <= ({"places", "chosen"} if name == "fedgems" else set())
    elif beside:
        assert len(method.beyond_model.split()) > 3


def test_label_mechanisms_change_all_that_depends_on_private_data() -> None:
    for kind in (*RandomisedResponse.messages, *GaussianLabels.messages):
        labels = [name for name, source in SOURCES[kind].items() if source is not Source.PUBLIC]
        assert labels in (["probs"], ["scores"])
        assert SOURCES[kind][labels[0]] is Source.MODEL
    assert {Votes, SoftLabels, Logits} <= UPLINKS


def test_what_is_told_of_a_message() -> None:
    assert told_of([Votes]) == ["probs (of the trained model)", "sampled_round (public)"]

    class Own(Votes):
        pass

    assert told_of([Own])[0] == "probs (of a message of your own)"
