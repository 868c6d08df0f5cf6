"""Attacks: what each changes, by hand; which methods they fit; that runs with liars repeat bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedistill import compare, parse, resume
from fedistill.attacks.base import Attack, DataAttack, Liar, MessageAttack
from fedistill.attacks.parts import Role, parts_of, roles_of
from fedistill.attacks.registry import ATTACKS, attack_of, check_attack, refuse_on_network
from fedistill.communication.messages.base import Message, MessageContext
from fedistill.communication.messages.classwise import ClassOutputs, Prototypes
from fedistill.communication.messages.labels import Logits, SoftLabels, Votes
from fedistill.communication.messages.masked import MaskedReply
from fedistill.communication.messages.statistics import FeatureMoments
from fedistill.communication.messages.weights import TrainedWeights, Weights
from fedistill.config.schema import Experiment
from fedistill.errors import ExperimentError, Refusal
from fedistill.experiment.runner import prepare
from fedistill.federation.local_executor import ProcessExecutor, SerialExecutor
from fedistill.methods.registry import METHODS, create_method
from fedistill.testing.runs import bits, finish
from helpers.method_rows import ROWS, Row
from helpers.runs import ready

CONTEXT = MessageContext(classes=3, parameters=4, buffers=1, samples=2, width=2)


def attack(kind: str, **settings: Any) -> Attack:
    return ATTACKS[kind].model_validate({"kind": kind, **settings})


def sent(
    kind: str,
    message: Message,
    received: Message | None = None,
    client: int = 0,
    round: int = 1,
    **settings: Any,
) -> Any:
    found = attack(kind, **settings)
    assert isinstance(found, MessageAttack)
    return found.sent(message, Liar(0, client, round, received, CONTEXT))


def small(**tables: Any) -> dict[str, Any]:
    return {
        "rounds": 2,
        "task": {"name": "digits", "clients": 3, "limit": 60, "public": 20},
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "train": {"batch_size": 16},
        "runtime": {"kind": "serial"},
        "arms": [{"method": "dsfl"}],
    } | tables


@pytest.mark.parametrize(
    ("kind", "settings", "wrong"),
    [
        ("label-flip", {}, [3, 2, 0, 1]),
        ("shifted-labels", {}, [1, 2, 0, 3]),
        ("one-class", {"target": 2}, [2, 2, 2, 2]),
        ("one-class", {"target": 9}, [3, 3, 3, 3]),
    ],
)
def test_wrong_labels(kind: str, settings: dict[str, Any], wrong: list[int]) -> None:
    found = attack(kind, **settings)
    assert isinstance(found, DataAttack)
    assert found.labels(torch.tensor([0, 1, 3, 2]), classes=4).tolist() == wrong


ROWS_SENT = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])


@pytest.mark.parametrize(
    ("kind", "lied"),
    [
        ("least-likely", [[0, 0, 1], [1, 0, 0]]),
        ("class-permuted", [[0.1, 0.7, 0.2], [0.3, 0.6, 0.1]]),
        # Standard deviations over the two rows: 0.3, 0.05 and 0.25.
        ("little-is-enough", [[0.4, 0.5, 0.1], [0.1, 0.55, 0.35]]),
    ],
)
def test_wrong_rows(kind: str, lied: list[list[float]]) -> None:
    found = sent(kind, SoftLabels(ROWS_SENT, 1))
    torch.testing.assert_close(found.probs, torch.tensor(lied, dtype=torch.float32))
    assert found.sampled_round == 1


def test_votes_stay_votes() -> None:
    for kind in ("random", "class-permuted", "least-likely", "colluding"):
        votes = sent(kind, Votes(torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), 1)).probs
        assert votes.sum(dim=1).tolist() == [1, 1]
        assert set(votes.flatten().tolist()) == {0, 1}


WEIGHTS, RECEIVED = torch.tensor([1.0, 3.0, -2.0, 9.0]), torch.tensor([0.0, 2.0, 0.0, 5.0])
"""The last is of a buffer, which no attack changes."""


@pytest.mark.parametrize(
    ("kind", "settings", "lied"),
    [
        ("sign-flip", {}, [-1, 1, 2, 9]),
        ("boosted", {"factor": 10}, [10, 12, -20, 9]),
        ("boosted", {"factor": -5}, [-5, -3, 10, 9]),
        ("little-is-enough", {"z": 1.5}, [-0.5, 1.5, -5, 9]),
    ],
)
def test_wrong_weights(kind: str, settings: dict[str, Any], lied: list[float]) -> None:
    found = sent(kind, TrainedWeights(WEIGHTS, samples=7), Weights(RECEIVED), **settings)
    assert found.values.tolist() == lied
    assert found.samples == 7


def test_a_random_direction_is_as_far_away() -> None:
    found = sent("random", TrainedWeights(WEIGHTS, samples=7), Weights(RECEIVED)).values
    assert float((found - RECEIVED)[:3].norm()) == pytest.approx(float((WEIGHTS - RECEIVED)[:3].norm()))
    assert found[3] == 9


def test_boosted_and_turned_changes() -> None:
    reply = MaskedReply(turn=1, step=1, changes=torch.tensor([1, -2, 100]))
    assert sent("sign-flip", reply).changes.tolist() == [-1, 2, -100]
    assert sent("boosted", reply, factor=3).changes.tolist() == [3, -6, 127]


def test_class_outputs_keep_the_classes_that_are_absent() -> None:
    outputs = ClassOutputs(torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.0, 0.0], [0.1, 0.3, 0.6]]))
    for kind in ("random", "least-likely", "class-permuted", "colluding"):
        lied = sent(kind, outputs).means
        assert lied.sum(dim=1).tolist() == pytest.approx([1, 0, 1])
        assert not torch.equal(lied, outputs.means)


def test_prototypes_go_to_another_class() -> None:
    sends = Prototypes(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0, 2]), present=2)
    assert sent("class-permuted", sends).vectors.tolist() == [[3, 4], [1, 2]]
    assert sent("boosted", sends, factor=2).vectors.tolist() == [[2, 4], [6, 8]]


def test_class_means_go_to_another_class() -> None:
    """They cross as the first class's, and differences of the others from it."""
    moments = FeatureMoments(
        classes=torch.tensor([0, 2]),
        samples=torch.tensor([4, 6]),
        scales=torch.zeros(2).long(),
        means=torch.tensor([1, 2, 10, 20]),
        correlations=torch.zeros(1).long(),
        present=2,
        levels=3,
    )
    lied = sent("class-permuted", moments)
    assert lied.means.tolist() == [11, 22, -10, -20]
    assert lied.samples.tolist() == [4, 6]
    far = sent("boosted", moments, factor=100)
    assert far.means.tolist() == [100, 127, 27, 0], "no mean is further away than a message can say"


def test_liars_that_collude_send_the_same_in_every_round() -> None:
    def lie(client: int, round: int, kind: str = "colluding") -> Tensor:
        own = torch.softmax(torch.randn(2, 3, generator=torch.Generator().manual_seed(client)), dim=1)
        found: Tensor = sent(kind, SoftLabels(own, round), client=client, round=round).probs
        return found

    assert torch.equal(lie(0, 1), lie(5, 3))
    assert not torch.equal(lie(0, 1, "random"), lie(5, 1, "random"))
    assert not torch.equal(lie(0, 1, "random"), lie(0, 2, "random"))


def test_who_lies() -> None:
    drawn = attack("random", share=0.3).liars(seed=0, count=10)
    assert len(drawn) == 3
    assert list(drawn) == sorted(set(drawn))
    assert len({attack("random").liars(seed, 10) for seed in range(20)}) > 5
    assert attack("random", share=0.01).liars(0, 10) == attack("random", share=0.1).liars(0, 10)
    assert attack("random", clients=[4, 2]).liars(0, 5) == (2, 4)
    with pytest.raises(ExperimentError, match=r"attack.clients names client 5, but the clients are 0 to 4"):
        attack("random", clients=[5]).liars(0, 5)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"share": 0.2}, "`attack.kind` is missing: must be one of"),
        ({"kind": "label-flop"}, "`attack.kind` = 'label-flop': must be one of .* Did you mean 'label-flip'"),
        ({"kind": "random", "share": 0.2, "clients": [1]}, "set either `share`"),
        ({"kind": "random", "share": 1.5}, "`share` = 1.5"),
        ({"kind": "random", "factor": 2.0}, "unknown key `factor`"),
        ({"kind": "boosted", "factor": 1.0}, "1 is the honest message and 0 none"),
        ({"kind": "boosted", "factor": 1e300}, "`factor` = 1e\\+300"),
        ({"kind": ["label-flip"]}, r"`attack.kind` = \['label-flip'\]: must be one of"),
        (
            {"kind": "random", "from_round": 3},
            "`attack.from_round` = 3: there are 2 rounds, and nobody would lie",
        ),
    ],
)
def test_an_attack_that_does_not_exist_is_refused(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ExperimentError, match=said):
        prepare(parse(small(attack=table), "test"))


def test_a_network_refuses_it() -> None:
    with pytest.raises(ExperimentError, match=r"\[attack\] is for simulations on one machine"):
        refuse_on_network(parse(small(attack={"kind": "random"}), "test"))
    refuse_on_network(parse(small(), "test"))


def test_an_attack_that_does_not_fit_is_refused_before_round_1(tmp_path: Path) -> None:
    wanted = parse(small(attack={"kind": "sign-flip"}), "test")
    with pytest.raises(
        ExperimentError, match=r"attack sign-flip changes nothing that clients of method dsfl"
    ):
        compare(wanted, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_who_is_asked_once_cannot_begin_to_lie_later() -> None:
    _, arm = ready(small(arms=[{"method": "gaussian", "width": 16}]))
    check_attack(attack("label-flip"), arm.method, 0, 3)
    with pytest.raises(Refusal, match="method gaussian asks each client once, so that nobody lies with"):
        check_attack(attack("label-flip", from_round=2), arm.method, 0, 3)


def test_which_attacks_fit_which_methods() -> None:
    def fitting(method: str) -> set[str]:
        found = create_method(parse(small(arms=[{"method": method}]), "test").arms[0])
        return {kind for kind in ATTACKS if attack(kind).fits(found)}

    data = {"label-flip", "shifted-labels", "one-class", "silent"}
    outputs = {"random", "colluding", "least-likely", "class-permuted"}
    assert fitting("local") == set()
    assert fitting("dsfl") == fitting("voting") == data | outputs | {"little-is-enough"}
    assert fitting("fedmd") == data | outputs | {"boosted"}
    assert fitting("fd") == data | outputs
    assert fitting("fedproto") == data | outputs - {"least-likely"} | {"boosted"}
    assert fitting("fedavg") == data | {"random", "colluding", "sign-flip", "boosted", "little-is-enough"}
    assert fitting("random-mask") == data | {"random", "colluding", "sign-flip", "boosted"}
    with pytest.raises(Refusal, match="clients of method local send nothing: remove this arm"):
        check_attack(
            attack("random"),
            create_method(parse(small(), "test").arms[0].model_copy(update={"method": "local"})),
            0,
            3,
        )


def test_every_role_has_a_method_that_sends_it() -> None:
    kinds = {kind for method in METHODS.values() if method.uplink is not None for kind in [method.uplink]}
    assert {role for kind in kinds for role in roles_of(kind)} == set(Role)
    assert roles_of(Logits) == {Role.LOGITS}


WITH_UPLINK = [row for row in ROWS if METHODS[row.method].uplink is not None and not row.variant]
"""A variant sends what its method sends."""


@pytest.mark.parametrize("row", WITH_UPLINK, ids=lambda row: row.name)
def test_lies_are_valid_and_change_the_run(row: Row) -> None:
    """One round of each method with an attack on messages, if one fits.

    Nobody is refused but liars whose moments are of no image.
    """
    texts = METHODS[row.method].needs.inputs == "text"
    tables: dict[str, Any] = {
        "models": row.models,
        "arms": [{"method": row.method, **row.settings}],
        "rounds": 2 if row.method == "bridge" else 1,  # its first round has no votes
    }
    if texts:
        tables |= {"task": {"name": "bbc-news", "clients": 3, "limit": 60, "public": 20}}
    honest, arm = ready(small(**tables))
    # Votes of tally-like are coded given what the client was sent, and no attack on messages changes them.
    fits = row.method != "tally-like" and attack("colluding").fits(arm.method)
    kind = "colluding" if fits else "label-flip"
    lying, lied = ready(small(**tables, attack={"kind": kind}))
    with SerialExecutor(honest, arm.task) as executor:
        true = finish(arm, executor)
    with SerialExecutor(lying, lied.task) as executor:
        run = finish(lied, executor)
    refused = set(map(int, run.records[0].missing))
    assert refused == ({*lied.liars} if row.method in ("gaussian", "ridge") else set())
    assert bits(run) != bits(true)


def test_the_same_liars_lie_in_every_runtime_and_in_a_run_that_is_resumed(tmp_path: Path) -> None:
    wanted, arm = ready(small(attack={"kind": "random", "from_round": 2}))
    with SerialExecutor(wanted, arm.task) as executor:
        once = bits(finish(arm, executor))
    _, again = ready(small(attack={"kind": "random", "from_round": 2}))
    with ProcessExecutor(2, wanted, again.task) as executor:
        assert bits(finish(again, executor)) == once
    whole = compare(parse(small(rounds=2, attack={"kind": "random"}), "test"), out=tmp_path / "whole")
    first = compare(parse(small(rounds=1, attack={"kind": "random"}), "test"), out=tmp_path / "part")
    assert first["dsfl"].rounds[0]["views"] == whole["dsfl"].rounds[0]["views"]
    written = tmp_path / "part" / "experiment.toml"
    written.write_text(written.read_text().replace("rounds = 1", "rounds = 2"))
    resumed = resume(tmp_path / "part")
    assert resumed["dsfl"].views == whole["dsfl"].views
    assert 'kind = "random"' in written.read_text()


def test_nobody_lies_before_from_round() -> None:
    _, arm = ready(small(rounds=3, attack={"kind": "random", "clients": [1], "from_round": 3}))
    assert [arm.attack_by(client, round) is not None for client, round in [(1, 2), (1, 3), (0, 3)]] == [
        False,
        True,
        False,
    ]
    assert arm.liars == (1,)


def test_weights_that_answer_nothing_are_left_as_they_are() -> None:
    """Without what was sent there is no change to turn around."""
    assert [*parts_of(TrainedWeights(WEIGHTS, 7), None, CONTEXT)] == []


def test_an_honest_experiment_has_no_attack() -> None:
    assert attack_of(parse(small(), "test")) is None
    assert isinstance(parse(small(attack={"kind": "random"}), "test"), Experiment)
