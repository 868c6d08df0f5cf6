"""Secure sums: exact for whoever remains, nothing seen of one client, refused if something is wrong."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedistill.communication.entropy_coding.bit_packing import unpack
from fedistill.communication.kinds import Kind
from fedistill.communication.protocol import frame as frames
from fedistill.communication.secure_aggregation import turns
from fedistill.communication.secure_aggregation.collector import Collector
from fedistill.communication.secure_aggregation.fixed_point import Addend
from fedistill.communication.secure_aggregation.participant import Participant
from fedistill.communication.secure_aggregation.sizes import SHARES, round_bytes
from fedistill.config.secure_sums import SecureSums
from fedistill.errors import ExperimentError, FrameError, TrainingError
from helpers.secure_round import SecureRound, secrets_of

VOTES = {"votes": Addend.integers((4, 3), most=1)}


def votes(client: int) -> dict[str, np.ndarray]:
    return {"votes": np.eye(3, dtype=np.int64)[(np.arange(4) + client) % 3].reshape(-1)}


def test_a_sum_of_votes_by_hand() -> None:
    """Clients 0, 3 and 6 vote alike, as do 1 and 4, and 2 and 5."""
    total = SecureRound(VOTES).play({client: votes(client) for client in range(7)})
    assert total.clients == (0, 1, 2, 3, 4, 5, 6)
    assert total.sums["votes"].tolist() == [[3, 2, 2], [2, 3, 2], [2, 2, 3], [3, 2, 2]]


@st.composite
def rounds(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(3, 8))
    clients = sorted(draw(st.sets(st.integers(0, 300), min_size=count, max_size=count)))
    share = SecureSums(threshold=draw(st.floats(0.51, 1)))
    most = count - share.needed(count)
    gone = draw(st.lists(st.sampled_from(clients), max_size=most, unique=True)) if most > 0 else []
    when = {client: draw(st.sampled_from(["unshared", "unadded", "silent"])) for client in gone}
    top = draw(st.sampled_from([1, 2, 255, 65535, (1 << 40) - 1]))
    values = st.one_of(st.just(0), st.just(top), st.integers(0, top))
    integers = {
        client: {
            "a": np.array(draw(st.lists(values, min_size=5, max_size=5)), np.int64),
            "b": np.array([draw(st.integers(0, 6))], np.int64),
        }
        for client in clients
    }
    addends = {"a": Addend.integers((5,), top), "b": Addend.integers((), 6)}
    return {"integers": integers, "addends": addends, "when": when, "settings": share}


@settings(max_examples=12)
@given(rounds())
def test_the_total_is_the_sum_over_those_whose_integers_arrived(case: dict[str, Any]) -> None:
    when = case["when"]
    leavers = {
        name: [one for one, at in when.items() if at == name] for name in ("unshared", "unadded", "silent")
    }
    total = SecureRound(case["addends"], case["settings"]).play(case["integers"], **leavers)
    there = [client for client in case["integers"] if when.get(client, "silent") == "silent"]
    assert total.clients == tuple(there)
    for name in ("a", "b"):
        exact = sum(case["integers"][client][name] for client in there)
        assert total.sums[name].reshape(-1).tolist() == exact.tolist()


@pytest.mark.parametrize("clients", [3, 1024, 1 << 16])
def test_no_sum_wraps_around_with_all_clients_at_the_top(clients: int) -> None:
    """Where 2**22 + 1 values have a range of 2**22, 1,024 clients at the top would add up to nothing."""
    for addend in (Addend.shares((1,), 22), Addend.integers((1,), 1 << 22), Addend.symmetric((1,), 8.0, 22)):
        bits = addend.bits(clients)
        total = np.array([clients * addend.top])
        assert clients * addend.top < 1 << bits
        assert clients * addend.top >= 1 << (bits - 1), "no bit is spent that the sum has no use for"
        assert addend.decode(total & ((1 << bits) - 1), clients).item() == pytest.approx(
            clients * addend.high
        )


def test_a_sum_too_large_to_be_exact_is_refused() -> None:
    with pytest.raises(ExperimentError, match="takes 53 bits, more than the 52 that stay exact"):
        Addend.integers((1,), (1 << 51) + 1).bits(3)


def test_numbers_are_rounded_to_the_nearest_step() -> None:
    shares = Addend.shares((4,), bits=4)
    assert shares.encode(torch.tensor([0.0, 1.0, 0.5, 0.1]), "probs").tolist() == [0, 15, 8, 2]
    signed = Addend.symmetric((3,), 7.0, bits=4)
    integers = signed.encode(torch.tensor([-7.0, 0.0, 6.6]), "weights")
    assert integers.tolist() == [0, 7, 14]
    assert signed.decode(integers, 1).tolist() == [-7.0, 0.0, 7.0]
    with pytest.raises(TrainingError, match=r"a number outside of -7 to 7: set secure_sums\.range higher"):
        signed.encode(torch.tensor([0.0, 1.0, 7.6]), "weights")
    with pytest.raises(TrainingError, match="NaN or infinite"):
        signed.encode(torch.tensor([0.0, 1.0, torch.nan]), "weights")
    with pytest.raises(TrainingError, match=r"shape \(2,\), not \(3,\)"):
        signed.encode(torch.zeros(2), "weights")


def test_what_the_server_sees_of_a_client_is_uniform_and_says_nothing_of_its_input() -> None:
    """All clients add zeros: a chi-squared test of the masked integers, and of their difference."""
    addends = {"a": Addend.integers((20_000,), most=5)}
    bits = addends["a"].bits(3)
    zero = {"a": np.zeros(20_000, np.int64)}
    played = SecureRound(addends)
    assert played.play(dict.fromkeys(range(3), zero)).sums["a"].abs().max() == 0
    seen = [
        unpack(frames.decode(played.up["addends", client]).sections[0], 20_000, bits) for client in range(3)
    ]
    for values in (*seen, (seen[0] - seen[1]) % (1 << bits), (seen[0] + seen[1]) % (1 << bits)):
        counts = np.bincount(values, minlength=1 << bits)
        expected = 20_000 / (1 << bits)
        # 15 degrees of freedom; 44.3 is exceeded once in ten thousand draws, and these are always the same.
        assert ((counts - expected) ** 2 / expected).sum() < 44.3


def test_masks_are_never_used_twice() -> None:
    """All vote alike in both rounds, and draw, as they should not, the same secrets in the second."""
    rounds = [
        SecureRound(VOTES, round=number, draw=lambda client, round: secrets_of(client)) for number in (1, 2)
    ]
    sent = []
    for played in rounds:
        played.play({client: votes(0) for client in range(3)})
        sent += [frames.decode(played.up["addends", client]).sections[0] for client in range(3)]
    assert len(set(sent)) == len(sent) == 6


def test_too_few_that_remain_unmask_nothing() -> None:
    integers = {client: votes(client) for client in range(6)}  # 4 are needed
    for when in ("unshared", "unadded", "silent"):
        with pytest.raises(TrainingError, match=r"3 of 6 clients sent .*, but a secure sum needs 4"):
            SecureRound(VOTES).play(integers, **{when: [0, 2, 4]})


def test_fewer_shares_than_needed_do_not_give_a_secret_back() -> None:
    from fedistill.communication.secure_aggregation.primitives import joined, split

    secret = bytes(range(16))
    shares = list(enumerate(split(secret, 4, 6)))
    assert joined(shares[:4]) == joined(shares[2:]) == secret
    assert joined(shares[:3]) != secret


def changed(turn: str, client: int, at: int) -> Any:
    """Flip a bit of a section in one client's frame, whose checksum is made right again."""

    def tamper(this: str, sender: int, data: bytes) -> bytes:
        if (this, sender) != (turn, client):
            return data
        frame = frames.decode(data)
        section = bytearray(frame.sections[0])
        section[at] ^= 1
        return turns.up(Kind(frame.kind), frame.round, sender, bytes(section))

    return tamper


def test_a_share_that_was_changed_on_its_way_names_who_sent_it() -> None:
    integers = {client: votes(client) for client in range(4)}
    with pytest.raises(FrameError, match="the share that client 2 has sent: it has been changed on its way"):
        SecureRound(VOTES).play(integers, tamper=changed("shares", 2, at=5))


def test_a_wrong_share_at_the_end_names_who_sent_it() -> None:
    integers = {client: votes(client) for client in range(5)}
    with pytest.raises(FrameError, match="client 1 has sent a wrong share of client 0's secret"):
        SecureRound(VOTES).play(integers, tamper=changed("unmasking", 1, at=3))
    with pytest.raises(FrameError, match="client 3's secret do not give back what it has announced"):
        SecureRound(VOTES, SecureSums(threshold=1)).play(integers, tamper=changed("unmasking", 1, at=3 * 16))


def test_integers_that_no_client_may_add_are_found_in_the_sum() -> None:
    """What one client adds cannot be checked, but of 4 clients that vote no class has 5 votes."""
    integers = {client: votes(client) for client in range(4)}
    integers[1]["votes"][0] = 2
    assert SecureRound({"votes": Addend.integers((12,), 1)}).play(integers).sums["votes"].max() == 4
    integers[1]["votes"][0] = 3
    with pytest.raises(FrameError, match=r"integer of 5, more than 4: one of them has not added"):
        SecureRound({"votes": Addend.integers((12,), 1)}).play(integers)


@pytest.mark.parametrize(
    ("turn", "error"),
    [
        ("keys", "not 1 times 80"),
        ("shares", "not 3 times 48"),
        ("addends", "bytes where 12 numbers of 3 bits were expected"),
        ("unmasking", "not 4 times 16"),
    ],
)
def test_frames_of_another_length_damaged_or_of_another_turn_are_refused(turn: str, error: str) -> None:
    integers = {client: votes(client) for client in range(4)}

    def longer(this: str, client: int, data: bytes) -> bytes:
        frame = frames.decode(data)
        if (this, client) != (turn, 1):
            return data
        return turns.up(Kind(frame.kind), 1, client, frame.sections[0] + b"\0")

    with pytest.raises(FrameError, match=error):
        SecureRound(VOTES).play(integers, tamper=longer)
    with pytest.raises(FrameError, match="checksum"):
        SecureRound(VOTES).play(
            integers,
            tamper=lambda this, client, data: data[:-1] + bytes([data[-1] ^ 1]) if this == turn else data,
        )
    for wrong in (Kind.VOTES, Kind.REFRESH):
        with pytest.raises(FrameError, match=r"came where secure-.* belong"):
            SecureRound(VOTES).play(
                integers,
                tamper=lambda this, client, data, wrong=wrong: (
                    turns.up(wrong, 1, client, *frames.decode(data).sections) if this == turn else data
                ),
            )
    for round, peer, error in ((2, 2, "of round 2"), (1, 1, "of client 0 came where client 1's")):
        with pytest.raises(FrameError, match=error):
            SecureRound(VOTES).play(
                integers,
                tamper=lambda this, client, data, to=(round, peer - 1): (
                    turns.up(Kind(frames.decode(data).kind), to[0], to[1], *frames.decode(data).sections)
                    if (this, client) == (turn, 1)
                    else data
                ),
            )


def after(turns_taken: int) -> tuple[Participant, SecureRound]:
    """Client 1 of four before it answers the frame of a turn, and the frames of a complete round."""
    played = SecureRound(VOTES)
    played.play({client: votes(client) for client in range(4)})
    party = Participant.begin(1, 1, secrets_of(1), votes(1))
    for turn in ("shares", "addends")[:turns_taken]:
        following, _ = party.answer(played.down[turn, 1], VOTES, SecureSums())
        assert following is not None
        party = following
    return party, played


def test_a_client_refuses_lists_that_would_expose_it_or_another() -> None:
    party, played = after(0)
    keys = frames.decode(played.down["shares", 1]).sections[1]

    def listed(members: list[int], section: bytes, kind: Kind = Kind.SECURE_KEYS) -> bytes:
        return turns.down(kind, 1, None, turns.client_list(members), section)

    wrong = [
        (listed([0, 2, 3], keys[:240]), "lists other clients"),
        (listed([0, 1], keys[:160]), "lists 2 clients, fewer than the 3 needed"),
        (listed([0, 1, 2, 3], keys[80:160] + keys[:80] + keys[160:]), "other keys for this client"),
        (listed([0, 1, 2, 3], keys[160:240] + keys[80:]), "the same public key"),
        (listed([0, 1, 2, 3], bytes(80) + keys[80:]), "the same public key"),
        (listed([0, 1, 2, 3], bytes(31) + b"\1" + keys[32:]), None),
    ]
    for data, error in wrong:
        if error is not None:
            with pytest.raises(FrameError, match=error):
                party.answer(data, VOTES, SecureSums())
    point_of_small_order = bytes([1]) + bytes(31)
    with pytest.raises(FrameError, match="not one that can be agreed with"):
        party.answer(listed([0, 1, 2, 3], point_of_small_order + keys[32:]), VOTES, SecureSums())
    party, played = after(1)
    shares = frames.decode(played.down["addends", 1]).sections[1]
    for members, error in (([0, 1], "fewer than the 3 needed"), ([0, 1, 2, 5], "lists other clients")):
        with pytest.raises(FrameError, match=error):
            party.answer(listed(members, shares, Kind.SECURE_SHARES), VOTES, SecureSums())
    party, _ = after(2)
    for members, error in (([0, 1], "fewer than the 3 needed"), ([0, 2, 3], "lists other clients")):
        data = turns.down(Kind.SECURE_UNMASKING, 1, None, turns.client_list(members))
        with pytest.raises(FrameError, match=error):
            party.answer(data, VOTES, SecureSums())


def test_a_client_never_gives_both_secrets_of_another_away() -> None:
    """Those whose integers arrived: the share of the own mask; others: that of the key of pairwise masks."""
    party, _ = after(2)
    both = turns.parts(party.shares.numpy().tobytes(), 4, SHARES)
    data = turns.down(Kind.SECURE_UNMASKING, 1, None, turns.client_list([0, 1, 3]))
    following, reply = party.answer(data, VOTES, SecureSums())
    assert following is None
    sent = turns.parts(frames.decode(reply).sections[0], 4, 16)
    assert sent == [both[0][16:], both[1][16:], both[2][:16], both[3][16:]]


def test_what_a_client_keeps_between_turns_is_plain_data() -> None:
    from fedistill.state import decode_state, encode_state, from_plain, to_plain

    party, played = after(1)
    restored = from_plain(Participant, decode_state(encode_state(to_plain(party))))
    answers = [one.answer(played.down["addends", 1], VOTES, SecureSums())[1] for one in (party, restored)]
    assert answers[0] == answers[1] == played.up["addends", 1]


def test_bytes_are_as_predicted() -> None:
    for clients in (3, 7):
        played = SecureRound(VOTES)
        played.play({client: votes(client) for client in range(clients)})
        for sent, expected in zip((played.up, played.down), round_bytes(VOTES, clients), strict=True):
            assert sum(len(data) for (_, client), data in sent.items() if client == 1) == expected


AFTER_TWO = functools.cache(lambda: after(2))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_by_frame_error_alone(data: bytes) -> None:
    party, played = AFTER_TWO()
    with pytest.raises(FrameError):
        party.answer(data, VOTES, SecureSums())
    with pytest.raises(FrameError):
        played.server.take_unmasking(1, data)
    with pytest.raises(FrameError):
        party.answer(turns.down(Kind.SECURE_UNMASKING, 1, None, b"\x80" + data), VOTES, SecureSums())


@given(st.lists(st.integers(0, 5000), unique=True).map(sorted))
def test_lists_of_clients_are_read_back(clients: list[int]) -> None:
    assert turns.read_clients(turns.client_list(clients)) == clients
    if clients:
        with pytest.raises(FrameError, match="listed twice"):
            turns.read_clients(turns.client_list(clients) + b"\0")


def test_keys_that_others_could_not_use_are_refused_where_they_arrive() -> None:
    """Else one client's keys would cost all others the round."""
    collector = Collector(1, VOTES, SecureSums())
    honest = Participant.begin(0, 1, bytes(range(48)), {}).announce()
    collector.take_keys(0, honest)
    copied = turns.up(Kind.SECURE_KEYS, 1, 1, turns.opened(honest, Kind.SECURE_KEYS, 1, 0, 1).sections[0])
    with pytest.raises(FrameError, match="one of them is there already"):
        collector.take_keys(1, copied)
    low_order = turns.up(Kind.SECURE_KEYS, 1, 2, bytes(32) + b"\x01" + bytes(47))
    with pytest.raises(FrameError, match="not one that can be agreed with"):
        collector.take_keys(2, low_order)
    assert collector.members == [0]
