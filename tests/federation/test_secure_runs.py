"""Runs with secure sums: what the server makes of a sum, who drops out, what crosses, and what is refused."""

import builtins
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fedistill import parse
from fedistill.communication.kinds import Kind
from fedistill.communication.protocol import frame as frames
from fedistill.communication.secure_aggregation import turns
from fedistill.config.schema import Experiment
from fedistill.errors import ExperimentError, TrainingError
from fedistill.experiment.file_schema import file_schema
from fedistill.experiment.preflight import examine_arm
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import prepare
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client import ClientResult
from fedistill.federation.executor import Job
from fedistill.federation.expected_bytes import expected_bytes
from fedistill.federation.history import ArmRun
from fedistill.federation.local_executor import ProcessExecutor, SerialExecutor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run
from fedistill.testing.runs import bits, finish, require_one_memory, require_same
from fedistill.training.loop import predict
from helpers.bad_replies import Changing
from helpers.runs import finished, ready, run_serially

CLIENTS = 5


def raw(arm: dict[str, Any], **more: Any) -> dict[str, Any]:
    tables: dict[str, Any] = {
        "rounds": 2,
        "task": {"name": "digits", "clients": CLIENTS, "limit": 150, "public": 30},
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "train": {"batch_size": 16},
        "runtime": {"kind": "serial"},
        "flower": {"quorum": 0.2},
        "arms": [arm],
    }
    return {**tables, **more}


def both(method: str, secure: Any = True, **more: Any) -> tuple[ReadyArm, ArmRun, ArmRun]:
    """The arm with secure sums, its run, and the run of the same arm without."""
    settings = {key: more.pop(key) for key in [*more] if key not in Experiment.model_fields}
    _, plain = finished(raw({"method": method, **settings}, **more))
    arm, run = finished(raw({"method": method, "secure_sums": secure, **settings}, **more))
    return arm, run, plain


def test_votes_counted_in_secret_give_the_same_run() -> None:
    """Whole numbers are not rounded, so that labels and models are the same bit for bit."""
    _, run, plain = both("voting")
    assert torch.equal(run.server.labels, plain.server.labels)
    assert torch.equal(run.server.model.weights, plain.server.model.weights)
    assert [record.views for record in run.records] == [record.views for record in plain.records]
    assert plain.shared_states.keys() == run.shared_states.keys()


def test_a_sum_of_votes_refines_labels_as_the_votes_do() -> None:
    task = {"name": "digits", "clients": CLIENTS, "limit": 400, "public": 200}
    more: dict[str, Any] = {"rounds": 1, "task": task, "train": {"batch_size": 16, "epochs": 3}}
    _, run, plain = both("voting", refine_labels=True, **more)
    assert torch.equal(run.server.labels, plain.server.labels)
    _, counted = finished(raw({"method": "voting"}, **more))
    assert not torch.equal(counted.server.labels, plain.server.labels)


def test_the_mean_of_soft_labels_is_that_of_rounded_ones() -> None:
    """Each of the 5 clients rounds to steps of 1 / 255, so that their mean is off by half a step at most."""
    _, run, plain = both("dsfl", {"bits": 8}, aggregation="mean", rounds=1)
    off = (run.server.labels - plain.server.labels).abs()
    assert 1e-5 < off.max() <= 0.5 / 255 + 1e-6


def test_soft_labels_that_vote_are_counted_as_whole_numbers() -> None:
    arm, run, plain = both("dsfl", aggregation="majority", rounds=1)
    assert arm.addends["probs"].top == 1
    assert torch.equal(run.server.labels, plain.server.labels)


def test_averaged_weights_are_weighted_at_the_clients() -> None:
    partition = {"kind": "dirichlet", "alpha": 0.5, "min_samples": 5}
    task = {"name": "digits", "clients": CLIENTS, "limit": 150, "public": 30, "partition": partition}
    arm, run, plain = both("fedavg", {"bits": 20}, rounds=1, task=task)
    samples = arm.federation.samples
    assert len(set(samples)) > 1
    step = arm.addends["weights"].step
    most = 0.5 * step * len(samples) * max(samples) / sum(samples)
    off = (run.server.model.weights - plain.server.model.weights).abs()
    assert 0 < off.max() <= most + 1e-6
    with pytest.raises(TrainingError, match=r"client 0: 'weights' to add .*: set secure_sums\.range higher"):
        finished(raw({"method": "fedavg", "secure_sums": {"range": 1e-3}}))


def test_moments_are_those_of_all_samples_pooled() -> None:
    arm, run = finished(raw({"method": "gaussian", "width": 12, "secure_sums": {"bits": 30}}, rounds=1))
    method: Any = arm.method
    features, labels = [], []
    for number in range(CLIENTS):
        client = arm.client(number, 1)
        features.append(predict(method._features(arm.federation), client.inputs("mlp-s")).double())
        labels.append(client.data.labels)
    pooled, classes = torch.cat(features), torch.cat(labels)
    found = run.server.moments
    assert found.samples.tolist() == torch.bincount(classes, minlength=10).tolist()
    torch.testing.assert_close(found.products, pooled.T @ pooled, rtol=0, atol=1e-3)
    for label in range(10):
        torch.testing.assert_close(found.sums[label], pooled[classes == label].sum(0), rtol=0, atol=1e-4)
    assert run.server.clients == [0, 1, 2, 3, 4]
    assert run.server.by_client == {}


def test_word_counts_are_exact() -> None:
    task = {"name": "bbc-news", "clients": 4, "limit": 80, "public": 20}
    models = {"clients": ["bag"], "server": "bag"}
    _, run, plain = both("naive-bayes", buckets=300, task=task, models=models, rounds=1)
    assert torch.equal(run.server.words, plain.server.words)
    assert torch.equal(run.server.texts, plain.server.texts)
    assert run.records[0].views == plain.records[0].views


def test_what_crosses_is_counted_as_predicted() -> None:
    arm, run = finished(raw({"method": "dsfl", "secure_sums": True}))
    counted = [
        sum(entry.bytes for entry in run.records[1].traffic if entry.direction == way)
        for way in ("up", "down")
    ]
    assert expected_bytes(arm) == (*counted,)
    kinds = run.ledger.kinds(2, "up")
    assert [*kinds] == ["secure-keys", "secure-shares", "secure-addends", "secure-unmasking"]
    # 30 samples of 10 classes, of 19 bits: 16, and 3 for the sum over 5 clients; two bytes for the length.
    assert kinds["secure-addends"] == CLIENTS * (11 + 2 + -(-30 * 10 * 19 // 8))
    assert [*run.ledger.kinds(2, "down")] == [
        "soft-labels",
        "secure-keys",
        "secure-shares",
        "secure-unmasking",
    ]


class Noting(SerialExecutor):
    """Notes all frames that pass."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.passed: list[tuple[str, int, bytes]] = []

    def run_clients(self, arm: str, round: int, jobs: Sequence[Job]) -> Iterator[ClientResult]:
        for job, result in zip(jobs, super().run_clients(arm, round, jobs), strict=True):
            self.passed += [("down", job[0], job[2]), ("up", job[0], result.frame)]
            yield result


def test_the_ledger_has_every_frame_with_its_length() -> None:
    tables = raw({"method": "voting", "secure_sums": {"threshold": 0.51}}, sampling={"dropout": 0.2})
    experiment, arm = ready(tables)
    with Noting(experiment, arm.task) as executor:
        run = finish(arm, executor)
    assert any(record.dropped for record in run.records)
    passed = sorted((way, client, len(data)) for way, client, data in executor.passed if data)
    assert sorted((e.direction, e.client, e.bytes) for e in run.ledger.entries) == passed
    inputs = [data for way, _, data in executor.passed if way == "up" and frames.decode(data).kind == 42]
    assert len(set(inputs)) == len(inputs) == 2 * CLIENTS, "no masked message comes twice"


def test_who_drops_out_is_not_in_the_sum() -> None:
    """Replies are lost after sharing; the labels are those of the others, as without secure sums."""
    _, run, plain = both("voting", {"threshold": 0.51}, sampling={"dropout": 0.2})
    assert [record.dropped for record in run.records] == [record.dropped for record in plain.records]
    assert any(record.dropped for record in run.records)
    assert torch.equal(run.server.labels, plain.server.labels)
    assert torch.equal(run.server.model.weights, plain.server.model.weights)


def test_too_few_that_remain_end_the_arm_with_one_reason() -> None:
    reason = (
        r"round 1, secure sum: \d of 5 clients sent what they add, but a secure sum needs 5"
        r" \(secure_sums\.threshold\), so that nothing was unmasked"
    )
    with pytest.raises(TrainingError, match=reason):
        finished(raw({"method": "voting", "secure_sums": {"threshold": 1}}, sampling={"dropout": 0.5}))


def changing(
    change: Callable[[int, int, bytes], bytes], method: str = "voting", **more: Any
) -> tuple[ReadyArm, ArmRun]:
    experiment, arm = ready(raw({"method": method, "secure_sums": True}, rounds=1, **more))
    with Changing(SerialExecutor(experiment, arm.task), change) as executor:
        return arm, finish(arm, executor)


@pytest.mark.parametrize("turn", [Kind.SECURE_KEYS, Kind.SECURE_SHARES, Kind.SECURE_ADDENDS])
def test_a_client_whose_frame_is_damaged_is_named_and_left_out(turn: Kind) -> None:
    def damage(round: int, client: int, data: bytes) -> bytes:
        hit = client == 3 and frames.decode(data).kind == turn
        return data[:-1] + bytes([data[-1] ^ 255]) if hit else data

    _, run = changing(damage)
    (record,) = run.records
    assert record.missing == {"3": "its reply is refused: frame is damaged: its checksum differs"}
    assert record.dropped == [3]
    assert 3 not in run.shared_states
    assert run.server.labels is not None


def test_one_that_leaves_after_its_integers_have_arrived_is_in_the_sum() -> None:
    def damage(round: int, client: int, data: bytes) -> bytes:
        hit = client == 3 and frames.decode(data).kind == Kind.SECURE_UNMASKING
        return data[:-1] if hit else data

    _, run = changing(damage)
    _, whole = changing(lambda round, client, data: data)
    assert torch.equal(run.server.labels, whole.server.labels)
    assert [*run.records[0].missing] == ["3"]


def test_a_share_that_is_changed_on_its_way_ends_the_arm_and_names_its_sender() -> None:
    def damage(round: int, client: int, data: bytes) -> bytes:
        frame = frames.decode(data)
        if client != 2 or frame.kind != Kind.SECURE_SHARES:
            return data
        (sealed,) = frame.sections
        return turns.up(Kind.SECURE_SHARES, round, client, bytes([sealed[0] ^ 1]) + sealed[1:])

    with pytest.raises(TrainingError, match="client 0: the share that client 2 has sent: it has been"):
        changing(damage)


def test_stragglers_too_few_for_a_sum_are_left_out_and_asked_again() -> None:
    """In round 1 one reply is lost; what that client alone would add in round 2 is its own statistics."""
    experiment, arm = ready(raw({"method": "gaussian", "width": 8, "secure_sums": True}, rounds=3))

    def damage(round: int, client: int, data: bytes) -> bytes:
        return data[:-1] if data and round == 1 and client == 4 else data

    with Changing(SerialExecutor(experiment, arm.task), damage) as executor:
        run = start_run(arm)
        play_round(run, arm, executor)
        assert run.server.clients == [0, 1, 2, 3]
        before = run.server
        record = play_round(run, arm, executor)
    assert torch.equal(run.server.moments.sums, before.moments.sums)
    assert record.missing == {
        "4": "so few clients have something to add that their sum would tell what each of them sends"
    }
    assert {entry.kind for entry in record.traffic} == {"statistics-request", "secure-keys"}


def test_processes_and_a_resumed_run_end_in_the_same_bits(tmp_path: Path) -> None:
    tables = raw({"method": "voting", "secure_sums": {"threshold": 0.51}}, sampling={"dropout": 0.2})
    experiment, arm = ready(tables)
    with SerialExecutor(experiment, arm.task) as executor:
        expected = bits(finish(arm, executor))
    with ProcessExecutor(2, experiment, arm.task) as executor:
        require_same(finish(arm, executor), expected, "worker processes end in the same bits")
    with SerialExecutor(experiment, arm.task) as executor:
        folder = RunFolder.create(tmp_path / "run", experiment, "test")
        run = start_run(arm)
        play_round(run, arm, executor)
        folder.add_round(arm, run)
        folder.save(arm, run)
        restored = RunFolder.open(folder.path).restore(arm)
        require_same(finish(arm, executor, restored), expected, "a resumed run ends in the same bits")


def test_both_ends_of_a_link_remember_the_same() -> None:
    arm, run = finished(raw({"method": "voting", "secure_sums": True}, rounds=4, sampling={"dropout": 0.1}))
    assert arm.coder.remembers
    require_one_memory(run, arm)


def errors(arm: dict[str, Any], **more: Any) -> list[str]:
    _, (found,) = prepare(parse(raw(arm, **more), "test"))
    return [str(finding) for finding in examine_arm(found) if finding.level == "error"]


def test_all_that_secure_sums_rule_out_is_refused_in_one_message() -> None:
    (error,) = errors(
        {
            "method": "dsfl",
            "secure_sums": True,
            "codec": "fp16",
            "aggregation": "reliability",
            "start": "gaussian(width=8)",
        },
        sampling={"fraction": 0.4},
        attack={"kind": "boosted"},
    )
    for part in (
        "aggregation reliability, which looks at each client's labels (mean, era, enhanced-era and",
        "`start`, whose statistics the server reads client by client (leave it out)",
        "2 clients per round, each of whom could tell what others send (task.clients times sampling.fraction",
        'codec fp16 up, as masked integers have no shorter code (leave `codec` out, or write { up = "fp32",',
        "attack boosted, which changes messages beyond what clients can add (attacks on labels go with it)",
        "or take secure_sums out",
    ):
        assert part in error


@pytest.mark.parametrize(
    ("arm", "more", "part"),
    [
        ({"method": "fedmd"}, {}, "method fedmd, whose server reads each client's message (of fedavg,"),
        ({"method": "fedavg", "averaging": "median"}, {}, "averaging median, which looks at each client's"),
        ({"method": "ridge", "screen": True}, {}, "`screen`, which looks at each client's moments"),
        (
            {"method": "voting"},
            {"sampling": {"dropout": 0.5}},
            "of 5 replies remain in round",
        ),
        ({"method": "gaussian", "codec": "fp32"}, {}, None),
        ({"method": "dsfl", "codec": {"up": "fp32", "down": "int8"}}, {}, None),
        ({"method": "voting"}, {"attack": {"kind": "label-flip"}}, None),
        (
            {"method": "voting"},
            {"task": {"name": "digits", "clients": 2, "public": 9}},
            "2 clients per round",
        ),
    ],
)
def test_refusals(arm: dict[str, Any], more: dict[str, Any], part: str | None) -> None:
    found = errors({**arm, "secure_sums": True}, **more)
    assert [part in error for error in found] == [True] if part else found == []


def test_models_with_buffers_are_refused() -> None:
    models = {"clients": ["helpers.odd_models:batch_norm"], "server": "helpers.odd_models:batch_norm"}
    found = errors({"method": "fedavg", "secure_sums": True, "models": models})
    assert any("buffers of model helpers.odd_models:batch_norm, as of batch norm" in one for one in found)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("fedistill.communication.secure_aggregation.primitives"):
            raise ImportError("No module named 'Crypto'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    (error,) = errors({"method": "voting", "secure_sums": True})
    assert "packages that are missing (No module named 'Crypto'): pip install 'fedistill[secure]'" in error


def test_the_setting_is_a_boolean_or_a_table() -> None:
    def parsed(value: Any) -> Experiment:
        return parse(raw({"method": "voting", "secure_sums": value}), "test")

    assert parsed(False).arms[0].secure_sums is None
    default = parsed(True).arms[0].secure_sums
    assert default is not None
    assert (default.bits, default.needed(10), default.needed(3), default.needed(100)) == (16, 7, 3, 67)
    found = parsed({"threshold": 0.6, "bits": 12}).arms[0].secure_sums
    assert found is not None
    assert (found.bits, found.needed(10)) == (12, 6)
    (arm, *_) = file_schema()["$defs"]["Arm"]["anyOf"]
    kinds = arm["properties"]["secure_sums"]["anyOf"]
    assert kinds == [{"type": "boolean"}, {"$ref": "#/$defs/SecureSums"}]
    for wrong, part in (
        ("yes", "must be true, false, or a table of settings"),
        ({"threshold": 0.5}, "greater than 0.5"),
        ({"treshold": 0.6}, "threshold"),
    ):
        with pytest.raises(ExperimentError, match=part):
            parsed(wrong)


def test_a_turn_without_a_sum_that_was_begun_is_refused() -> None:
    experiment, arm = ready(raw({"method": "voting", "secure_sums": True}))
    data = turns.down(Kind.SECURE_UNMASKING, 1, None, turns.client_list([0, 1, 2]))
    with (
        SerialExecutor(experiment, arm.task) as executor,
        pytest.raises(TrainingError, match="round 1, client 0: a frame of a secure sum came where none was"),
    ):
        [*executor.run_clients(arm.name, 1, [(0, b"", data)])]
    assert run_serially(experiment, arm).round == 2


def test_sums_of_columns_that_cross_in_the_clear_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("a,b,label\n" + "".join(f"{n % 7},{n % 5},{'xy'[n % 2]}\n" for n in range(80)))
    task = {"format": "csv", "train": str(file), "label": "label", "table": {"scaling": "sums"}, "clients": 4}
    models = {"clients": ["logistic"], "server": "logistic"}
    (error,) = errors({"method": "gaussian", "secure_sums": True}, task=task, models=models)
    assert "the sums of its rows that each client sends" in error
