"""The two ends of a link, under all that can go wrong between them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from communication_helpers import (
    SIZES,
    Changes,
    Described,
    Halving,
    Plain,
    WithBackbone,
    Witness,
    digests,
    message,
)
from communication_world import CLIENTS, Fate, Talk, World, world
from hypothesis import given, settings
from hypothesis import strategies as st

from fedistill import parse
from fedistill.communication.codecs.base import Encoded, Sender
from fedistill.communication.codecs.registry import CODECS, create_codec
from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import Message, contents
from fedistill.communication.messages.classwise import ClassOutputs
from fedistill.communication.messages.labels import ChosenLabels, DueLabels, FreshLabels, Logits, SoftLabels
from fedistill.communication.messages.statistics import StatisticsRequest
from fedistill.communication.messages.weights import TrainedWeights, Weights
from fedistill.communication.protocol import frame as frames
from fedistill.communication.protocol.endpoints import ClientEndpoint, ServerEndpoint, StaleState
from fedistill.communication.protocol.frame import Frame, StateId
from fedistill.communication.protocol.message_coder import MessageCoder
from fedistill.communication.protocol.shared_state import EMPTY, SharedState, dump_states
from fedistill.communication.tensor_specs import Content, Floats, SharedKnowledge, TensorSpec
from fedistill.errors import FrameError
from fedistill.experiment.runner import prepare
from fedistill.federation.history import RoundRecord
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run
from fedistill.state import State, decode_state, encode_state, to_plain

WEIGHTS = Talk(TrainedWeights, Weights)
LABELS = Talk(SoftLabels, SoftLabels)
OUTPUTS = Talk(ClassOutputs, ClassOutputs, "each")
CACHED = Talk(DueLabels, FreshLabels)
MIXED = Talk(SoftLabels, Weights)
CHOSEN = Talk(ChosenLabels, ChosenLabels, "each")
ONCE = Talk(Described, Described, "each")
ONCE_FOR_ALL = Talk(WithBackbone, WithBackbone)
ONCE_UP = Talk(Described, Weights)
TALKS = {
    "weights": WEIGHTS,
    "labels": LABELS,
    "outputs": OUTPUTS,
    "cached": CACHED,
    "mixed": MIXED,
    "chosen": CHOSEN,
    "once": ONCE,
    "once for all": ONCE_FOR_ALL,
    "once up": ONCE_UP,
}


def fitting(kind: type[Message]) -> list[str]:
    return [name for name, codec in CODECS.items() if contents(kind) <= codec.codes]


fate = st.sampled_from([Fate.WHOLE, Fate.WHOLE, *Fate])
schedules = st.lists(st.lists(fate, min_size=CLIENTS, max_size=CLIENTS), min_size=1, max_size=9)
TOYS: dict[str, Any] = {
    "witness": Witness,
    "changes": Changes,
    "halving": Halving,
    "fp32": lambda: create_codec("fp32"),
}


@settings(max_examples=4 * settings().max_examples)
@given(st.sampled_from(sorted(TALKS)), st.data(), schedules)
def test_toy_codecs_never_fall_out_of_step(talk: str, data: Any, schedule: list[list[Fate]]) -> None:
    spoken = TALKS[talk]
    weights = [Content.WEIGHTS]
    names = {
        way: data.draw(
            st.sampled_from([name for name in TOYS if name != "halving" or list(contents(kind)) == weights])
        )
        for way, kind in (("up", spoken.up), ("down", spoken.down))
    }
    played = world(spoken, TOYS[names["up"]](), TOYS[names["down"]]())
    for round, fates in enumerate(schedule, start=1):
        played.play(round, fates)


@settings(max_examples=2 * settings().max_examples)
@given(st.sampled_from(sorted(TALKS)), st.data(), schedules)
def test_registered_codecs_never_fall_out_of_step(talk: str, data: Any, schedule: list[list[Fate]]) -> None:
    spoken = TALKS[talk]
    up, down = (data.draw(st.sampled_from(fitting(kind))) for kind in (spoken.up, spoken.down))
    played = world(spoken, create_codec(up), create_codec(down))
    for round, fates in enumerate(schedule, start=1):
        played.play(round, fates)


ROUGH = [
    [Fate.WHOLE, Fate.WHOLE, Fate.ABSENT],
    [Fate.REPLY_LOST, Fate.CRASHED, Fate.WHOLE],
    [Fate.WHOLE, Fate.WHOLE, Fate.NOT_REACHED],
    [Fate.FORGOT, Fate.WHOLE, Fate.CRASHED_AND_LOST],
    [Fate.WHOLE, Fate.FORGOT_AND_LOST, Fate.WHOLE],
    [Fate.WHOLE, Fate.WHOLE, Fate.WHOLE],
    [Fate.WHOLE, Fate.WHOLE, Fate.WHOLE],
]
PAIRS = [
    (talk, up, down)
    for talk, spoken in TALKS.items()
    for up in fitting(spoken.up)
    for down in fitting(spoken.down)
    if talk not in ("outputs", "mixed") or up == down or "fp32" in (up, down)
]


@pytest.mark.parametrize(
    ("talk", "up", "down"),
    [
        pytest.param(*pair, marks=[] if pair[1] == pair[2] or "fp32" in pair else [pytest.mark.long])
        for pair in PAIRS
    ],
)
def test_every_pair_of_registered_codecs_through_a_rough_run(talk: str, up: str, down: str) -> None:
    played = world(TALKS[talk], create_codec(up), create_codec(down))
    for round, fates in enumerate(ROUGH, start=1):
        played.play(round, fates)
    # By hand: client 1 is refreshed in round 3, having crashed, and in 5 and 6, having forgotten, since the
    # first of these is lost; client 0 in round 4. Where nothing is remembered, these are exchanges too.
    remembers = played.coder.remembers
    assert played.happened["refresh"] == (REFRESHES if remembers else 0)
    assert played.happened["exchange"] == (WHOLE if remembers else WHOLE + REFRESHES - 1)


REFRESHES, WHOLE = 4, 13


@pytest.mark.parametrize("down", [name for name, codec in CODECS.items() if codec.relative])
def test_replies_of_clients_that_were_away_are_shifted_by_what_was_lost_on_the_way(down: str) -> None:
    played = world(WEIGHTS, create_codec("fp32"), create_codec(down))
    for round, fates in enumerate(ROUGH, start=1):
        played.play(round, fates)  # asserts the exact shift, which is nothing before somebody is away
        assert (played.happened["shift"] > 0) == (round > 1)


# The parts of the protocol, one by one


def test_a_client_that_forgot_is_refreshed_once_and_then_served() -> None:
    played = world(LABELS, Witness(), Witness())
    for round, fate in enumerate([Fate.WHOLE, Fate.WHOLE, Fate.FORGOT, Fate.WHOLE, Fate.WHOLE], start=1):
        played.play(round, [fate, Fate.WHOLE, Fate.WHOLE])
        refreshed = round == 3
        assert played.happened["refresh"] == (round >= 3)
        assert (played.shared_states[0] == EMPTY) == refreshed
    assert played.happened["exchange"] == 3 * 5 - 1
    assert [played.shared_states[client].version for client in range(3)] == [2, 5, 5]


def test_a_refresh_that_is_lost_is_asked_for_again() -> None:
    played = world(LABELS, Witness(), Witness())
    played.play(1, [Fate.WHOLE] * 3)
    for round in (2, 3):
        played.play(round, [Fate.FORGOT_AND_LOST, Fate.ABSENT, Fate.ABSENT])
        assert played.shared_states[0].version == 1
    played.play(4, [Fate.WHOLE, Fate.ABSENT, Fate.ABSENT])
    assert played.shared_states[0] == EMPTY
    played.play(5, [Fate.WHOLE, Fate.ABSENT, Fate.ABSENT])
    assert (played.happened["refresh"], played.shared_states[0].version) == (3, 1)


def test_a_lost_reply_changes_nothing_at_the_server() -> None:
    played = world(LABELS, Witness(), Witness())
    played.play(1, [Fate.WHOLE] * 3)
    before = encode_state(dump_states(played.shared_states))
    for round, lost in enumerate([Fate.REPLY_LOST, Fate.NOT_REACHED, Fate.CRASHED_AND_LOST], start=2):
        played.play(round, [lost] * 3)
        assert encode_state(dump_states(played.shared_states)) == before
    played.play(5, [Fate.WHOLE] * 3)
    assert played.happened["refresh"] == 0


def test_what_a_sender_keeps_for_itself_is_that_of_the_last_exchange_that_arrived() -> None:
    """Else a residual would be lost with a reply, or sent twice."""
    codec = Halving()
    played = world(WEIGHTS, codec, create_codec("fp32"))
    fates = [Fate.WHOLE, Fate.REPLY_LOST, Fate.WHOLE, Fate.CRASHED_AND_LOST, Fate.NOT_REACHED, Fate.WHOLE]
    for round, fate in enumerate([*fates, Fate.ABSENT, Fate.WHOLE], start=1):
        played.play(round, [fate])
    first = {round: float(message(TrainedWeights, round, 0).tensors()["values"][0]) for round in range(1, 9)}
    arrived = [first[1], first[3], first[6]]
    assert (
        [own.get("messages", []) for own in codec.seen if own is not None]
        == [
            [],
            arrived[:1],  # round 2: its reply is lost
            arrived[:1],
            arrived[:2],  # round 4: likewise
            arrived[:2],
            arrived,
        ]
    )


def test_nothing_is_kept_where_nothing_is_remembered() -> None:
    played = world(WEIGHTS, create_codec("fp32"), create_codec("fp16"))
    played.play(1, [Fate.WHOLE] * 3)
    assert set(played.kept.values()) == {encode_state({})}
    assert all(shared == EMPTY for shared in played.shared_states.values())
    played.play(2, [Fate.FORGOT] * 3)
    assert played.happened == {"exchange": 6}


@pytest.mark.parametrize("name", CODECS)
def test_what_a_sender_keeps_for_itself_comes_back_to_it(name: str) -> None:
    """Whatever a codec returns as its own must be handed to it in the next round."""
    codec = create_codec(name)
    talk = WEIGHTS if Content.WEIGHTS in codec.codes else LABELS
    given: list[State | None] = []
    returned: list[State] = []
    encode = codec.encode

    def watched(values: Floats, spec: TensorSpec, known: SharedKnowledge, sender: Sender) -> Encoded:
        encoded = encode(values, spec, known, sender)
        given.append(sender.own)
        returned.append(encoded.own)
        return encoded

    codec.encode = watched  # type: ignore[method-assign]  # a spy
    played = world(talk, codec, create_codec("fp32"))
    for round in range(1, 4):
        played.play(round, [Fate.WHOLE])
    assert given[0] == {}
    assert [encode_state(own or {}) for own in given[1:]] == [encode_state(own) for own in returned[:-1]]


# Sharing


def test_clients_that_remember_the_same_share_one_coding() -> None:
    codec = Changes()
    played = world(WEIGHTS, create_codec("fp32"), codec)
    played.play(1, [Fate.WHOLE] * 3)
    assert codec.coded == 1
    played.play(2, [Fate.WHOLE, Fate.WHOLE, Fate.ABSENT])
    assert codec.coded == 2
    # Client 2 missed a message, so that what it remembers differs.
    played.play(3, [Fate.WHOLE] * 3)
    assert codec.coded == 4
    # What it was sent last is the same, but not how often it was sent something.
    assert len({digests(shared)["down"] for shared in played.shared_states.values()}) == 2


def test_clients_share_a_coding_after_different_numbers_of_exchanges() -> None:
    """Only what was sent matters: here nothing is remembered of it."""
    codec = Plain()
    played = world(WEIGHTS, Halving(), codec)
    played.play(1, [Fate.WHOLE, Fate.ABSENT, Fate.ABSENT])
    played.play(2, [Fate.WHOLE] * 3)
    assert codec.coded == 2
    assert [played.shared_states[client].version for client in range(3)] == [2, 1, 1]


def test_clients_that_said_different_things_do_not_share_a_coding_that_looks_at_it() -> None:
    codec = Witness()
    codec.relative = False
    played = world(LABELS, Changes(), codec)
    played.play(1, [Fate.WHOLE] * 3)
    played.play(2, [Fate.WHOLE] * 3)
    assert codec.coded == 1 + 3


def test_audiences_do_not_share_a_coding() -> None:
    codec = Plain()
    played = world(OUTPUTS, create_codec("fp32"), codec)
    played.play(1, [Fate.WHOLE] * 3)
    assert codec.coded == 3


def test_a_broadcast_is_one_frame_and_others_are_each_clients_own() -> None:
    played = world(LABELS, create_codec("fp32"), create_codec("fp32"))
    server = ServerEndpoint(played.coder, {}, lambda client: EMPTY, 1)
    first, second = (server.send(client, "everyone", message(SoftLabels, 1, 0), SIZES) for client in (0, 1))
    assert first is second
    own = [server.send(client, client, message(SoftLabels, 1, 0), SIZES) for client in (0, 1)]
    assert [frames.decode(one).peer for one in (first, *own)] == [0, 1, 2]


# Real runs

RUNS: list[dict[str, Any]] = [
    *({"method": "dsfl", "codec": name} for name in fitting(SoftLabels) if CODECS[name].remembers),
    *({"method": "fedavg", "codec": name} for name in fitting(Weights) if CODECS[name].relative),
    {"method": "scarlet", "samples": 40},
    {"method": "voting"},
    {"method": "cfd"},
]


@pytest.mark.parametrize("arm", RUNS, ids=lambda arm: f"{arm['method']}-{arm.get('codec', 'own')}")
def test_a_client_whose_state_is_lost_takes_part_again_after_a_refresh(arm: dict[str, Any]) -> None:
    wanted = parse(
        {
            "rounds": 5,
            "task": {"name": "digits", "clients": 3, "limit": 120, "public": 60},
            "models": {"clients": ["mlp-s"], "server": "mlp-s"},
            "train": {"batch_size": 32, "optimizer": {"lr": 0.05}},
            "evaluate": {"every": 5},
            "arms": [arm],
        },
        "test",
    )
    task, (ready,) = prepare(wanted)
    with SerialExecutor(wanted, task) as executor:
        run = start_run(ready)
        for _ in range(2):
            play_round(run, ready, executor)
        del run.clients[1]
        refreshed, anew, after = (play_round(run, ready, executor) for _ in range(3))
    kind = ready.method.uplink
    assert kind is not None

    def replies(record: RoundRecord) -> list[tuple[int, str]]:
        return [(e.client, e.kind) for e in record.traffic if e.direction == "up"]

    usual = [(client, kind.kind.label) for client in range(3)]
    assert replies(refreshed) == [usual[0], (1, "refresh"), usual[2]]
    assert replies(anew) == replies(after) == usual
    # "fd", version, kind, round, peer, base and checksum.
    (asked,) = [entry for entry in refreshed.traffic if entry.kind == "refresh"]
    assert (asked.bytes, asked.payload) == (11, 0)
    # Its memory begins again, and the others' go on.
    assert [run.shared_states[client].version for client in range(3)] == [5, 2, 5]
    held = SharedState.of(decode_state(run.clients[1])["link"]["after"]["memory"])
    assert held.state_id == run.shared_states[1].state_id


def test_the_round_of_a_refresh_goes_on_with_the_others() -> None:
    """The server learns from those that replied: as if the client had not been asked."""
    raw: dict[str, Any] = {
        "rounds": 3,
        "task": {"name": "digits", "clients": 3, "limit": 120, "public": 60},
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "evaluate": {"every": 3},
        "arms": [{"method": "fedavg", "codec": "stc"}],
    }
    wanted = parse(raw, "test")
    task, (ready,) = prepare(wanted)
    with SerialExecutor(wanted, task) as executor:
        servers = []
        for forgets in (True, False):
            run = start_run(ready)
            play_round(run, ready, executor)
            if forgets:
                del run.clients[1]
                play_round(run, ready, executor)
            else:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr("fedistill.federation.round.sample_dropouts", lambda *_: [1])
                    play_round(run, ready, executor)
            servers.append(encode_state(to_plain(run.server)))
    assert servers[0] == servers[1]


# Frames that do not belong


@pytest.fixture
def met() -> tuple[World, ServerEndpoint, ClientEndpoint, Frame, Frame]:
    """Client 1 and the server in the middle of round 3, and the frames down and up."""
    played = world(LABELS, Witness(), Witness())
    for round in (1, 2):
        played.play(round, [Fate.WHOLE] * 3)
    server = ServerEndpoint(played.coder, played.shared_states, lambda client: EMPTY, 3)
    down = server.send(1, "everyone", message(SoftLabels, 3, 0), SIZES)
    client = ClientEndpoint(played.coder, decode_state(played.kept[1]), EMPTY, 3, 1)
    client.receive(SoftLabels, down, SIZES)
    up = client.reply(message(SoftLabels, 3, 1), SIZES)
    again = ClientEndpoint(played.coder, decode_state(played.kept[1]), EMPTY, 3, 1)
    return played, server, again, frames.decode(down), frames.decode(up)


MARK = b"\x01\x23\xab\xcd"
WRONG = {
    "round": ({"round": 2}, "a frame of round 2 came in round 3"),
    "later": ({"round": 4}, "a frame of round 4 came in round 3"),
    "client": ({"peer": 5}, "a frame of client 4 came where client 1's belongs"),
    "kind": ({"kind": Kind.LOGITS}, "a frame of logits came where soft-labels belong"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_frame_that_does_not_belong_is_refused_by_name(case: str, met: Any) -> None:
    _, server, client, down, up = met
    changes, said = WRONG[case]
    before = dict(server.shared_states)
    with pytest.raises(FrameError) as caught:
        client.receive(SoftLabels, frames.encode(replace(down, **changes)), SIZES)
    assert str(caught.value) == said
    with pytest.raises(FrameError) as caught:
        server.receive(1, SoftLabels, frames.encode(replace(up, **changes)), SIZES)
    assert str(caught.value) == said
    assert server.shared_states == before


@pytest.mark.parametrize("version", [0, 1, 3, 70])
def test_a_frame_against_another_memory_is_refused_by_name(version: int, met: Any) -> None:
    """The client holds memories 1 and 2 in round 3, the server 2."""
    _, server, client, down, up = met
    state_id = StateId(version, down.state_id.hash)
    first, second = (shared.state_id for shared, _ in client._held[::-1])
    assert (first.version, second.version) == (1, 2)
    with pytest.raises(StaleState) as caught:
        client.receive(SoftLabels, frames.encode(replace(down, state_id=state_id)), SIZES)
    hash = down.state_id.hash.hex()
    held = f"2 ({second.hash.hex()}) and 1 ({first.hash.hex()})"
    named = f"a frame coded against shared state {version} ({hash})"
    assert str(caught.value) == f"{named} came where {held} is held"
    with pytest.raises(StaleState) as caught:
        server.receive(1, SoftLabels, frames.encode(replace(up, state_id=state_id)), SIZES)
    assert str(caught.value) == f"{named} came where 2 ({up.state_id.hash.hex()}) is held"


def test_a_frame_against_another_hash_is_refused_by_name(met: Any) -> None:
    _, server, client, down, up = met
    said = r"coded against shared state 2 \(0123abcd\) came where 2 \("
    with pytest.raises(StaleState, match=said):
        client.receive(SoftLabels, frames.encode(replace(down, state_id=StateId(2, MARK))), SIZES)
    with pytest.raises(StaleState, match=said):
        server.receive(1, SoftLabels, frames.encode(replace(up, state_id=StateId(2, MARK))), SIZES)


def test_a_frame_against_a_memory_where_nothing_is_held_is_refused_by_name() -> None:
    exchange = MessageCoder(Witness(), Witness(), seed=0)
    frame = frames.encode(Frame(Kind.SOFT_LABELS, 1, 1, (b"", b"\1"), StateId(4, MARK)))
    said = "a frame coded against shared state 4 (0123abcd) came where nothing is held"
    with pytest.raises(StaleState) as caught:
        ClientEndpoint(exchange, {}, EMPTY, 1, 0).receive(SoftLabels, frame, SIZES)
    assert str(caught.value) == said
    with pytest.raises(StaleState) as caught:
        ServerEndpoint(exchange, {}, lambda client: EMPTY, 1).receive(0, SoftLabels, frame, SIZES)
    assert str(caught.value) == said


def test_a_refresh_with_something_in_it_is_refused(met: Any) -> None:
    _, server, _, _, _ = met
    before = dict(server.shared_states)
    with pytest.raises(FrameError, match="a refresh frame has sections"):
        server.receive(1, SoftLabels, frames.encode(Frame(Kind.REFRESH, 3, 2, (b"",))), SIZES)
    with pytest.raises(FrameError, match="a frame of client 0 came where client 1's belongs"):
        server.receive(1, SoftLabels, frames.encode(Frame(Kind.REFRESH, 3, 1, ())), SIZES)
    with pytest.raises(FrameError, match="a frame of round 2 came in round 3"):
        server.receive(1, SoftLabels, frames.encode(Frame(Kind.REFRESH, 2, 2, ())), SIZES)
    assert server.shared_states == before


def test_a_refresh_is_for_servers_only(met: Any) -> None:
    _, _, client, _, _ = met
    with pytest.raises(FrameError, match="a frame of refresh came where soft-labels belong"):
        client.receive(SoftLabels, frames.encode(Frame(Kind.REFRESH, 3, 2, ())), SIZES)


def test_a_damaged_reply_commits_nothing_and_the_whole_one_still_counts(met: Any) -> None:
    _, server, _, _, up = met
    before = dict(server.shared_states)
    whole = frames.encode(up)
    for odd in (whole[:-1], frames.encode(replace(up, sections=(b"short", up.sections[1])))):
        with pytest.raises(FrameError):
            server.receive(1, SoftLabels, odd, SIZES)
        assert server.shared_states == before
    assert server.receive(1, SoftLabels, whole, SIZES) is not None
    committed = digests(server.shared_states[1])
    assert server.shared_states[1].version == 3
    # The same frame once more, as a network may bring it, is the same exchange.
    server.receive(1, SoftLabels, whole, SIZES)
    assert (server.shared_states[1].version, digests(server.shared_states[1])) == (3, committed)


def test_a_server_that_sent_nothing_reads_a_reply_coded_against_nothing() -> None:
    """In round 1 most methods send nothing down."""
    exchange = MessageCoder(Witness(), Witness(), seed=0)
    server = ServerEndpoint(exchange, {}, lambda client: EMPTY, 1)
    client = ClientEndpoint(exchange, {}, EMPTY, 1, 0)
    sent = message(SoftLabels, 1, 0)
    came = server.receive(0, SoftLabels, client.reply(sent, SIZES), SIZES)
    assert isinstance(came, SoftLabels)
    assert torch.equal(came.probs, sent.tensors()["probs"])
    assert SharedState.of(client.kept()["after"]["memory"]).state_id == server.shared_states[0].state_id


def test_a_sender_may_always_begin_anew(met: Any) -> None:
    """A client that was sent nothing codes against nothing, whatever the server holds."""
    played, server, _, _, _ = met
    client = ClientEndpoint(played.coder, decode_state(played.kept[1]), EMPTY, 3, 1)
    data = client.reply(message(SoftLabels, 3, 1), SIZES)
    assert frames.decode(data).state_id is None
    assert server.receive(1, SoftLabels, data, SIZES) is not None
    assert server.shared_states[1].version == 1
    assert server.shared_states[1].state_id == SharedState.of(client.kept()["after"]["memory"]).state_id


def test_the_kind_of_a_frame_tells_which_of_several_messages_it_has() -> None:
    coder = MessageCoder(Plain(), Plain(), seed=0)
    server = ServerEndpoint(coder, {}, lambda client: EMPTY, round=1)
    both = (SoftLabels, StatisticsRequest)
    for sent in (
        SoftLabels(torch.full((SIZES.samples, SIZES.classes), 1 / SIZES.classes), 1),
        StatisticsRequest(),
    ):
        frame = server.send(2, "everyone " + type(sent).__name__, sent, SIZES)
        client = ClientEndpoint(coder, {}, EMPTY, 1, 2)
        assert type(client.receive(both, frame, SIZES)) is type(sent)
        with pytest.raises(FrameError, match="came where weights or logits belong"):
            client.receive((Weights, Logits), frame, SIZES)
