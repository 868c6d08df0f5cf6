"""Audits of small runs: what is replayed, who is asked about, and what is found where it is known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fedistill import ExperimentError, compare, parse
from fedistill.data.task import Task
from fedistill.experiment.run_folder import RunFolder, read_results
from fedistill.experiment.runner import prepare
from fedistill.federation.history import RoundRecord
from fedistill.federation.local_executor import SerialExecutor
from fedistill.studies.audit.arm_evidence import ArmEvidence, Settings
from fedistill.studies.audit.audit import audit
from fedistill.studies.audit.audit_json import AuditJson, MembershipJson, read_audit
from fedistill.studies.audit.candidates import draw_candidates, halves
from fedistill.studies.audit.client_audit import audit_client
from fedistill.studies.audit.membership import usable_shadows
from fedistill.studies.audit.replay import Replayed, replay
from fedistill.studies.audit.roc import auc
from fedistill.studies.audit.shadows import draw_samples

DIGITS: dict[str, Any] = {
    "rounds": 2,
    "task": {
        "name": "digits",
        "clients": 3,
        "limit": 120,
        "public": 40,
        "partition": {"kind": "dirichlet", "alpha": 0.5, "min_samples": 10},
    },
    "models": {"clients": ["mlp-s"], "server": "mlp-s"},
    "train": {"batch_size": 16, "optimizer": {"lr": 0.05, "momentum": 0.9}},
    "runtime": {"kind": "serial"},
    "arms": [{"method": "fedavg"}],
}
SMALL = Settings(shadows=2, rounds=2, clients=3)


class Silent:
    def replayed(self, arm: str, record: RoundRecord, rounds: int) -> None: ...
    def audited(self, arm: str, client: int, done: int, clients: int) -> None: ...


def audited(raw: dict[str, Any], folder: Path, settings: Settings = SMALL) -> AuditJson:
    compare(parse(raw, "test"), folder, quiet=True)
    return audit(folder, settings, [], "the command", Silent())


def replayed(raw: dict[str, Any], folder: Path, rounds: int = 2) -> Replayed:
    compare(parse(raw, "test"), folder, quiet=True)
    opened = RunFolder.open(folder)
    experiment = opened.experiment()
    task, (arm,) = prepare(experiment, folder)
    results = read_results(folder)
    assert "tasks" not in results
    with SerialExecutor(experiment, task) as executor:
        return replay(opened, arm, results["arms"][0], executor, range(3), rounds)


def attack(found: AuditJson, score: str, asked: str = "weights") -> MembershipJson:
    every = [one for arm in found["arms"] for one in arm["membership"]]
    return next(one for one in every if (one["asked"], one["score"]) == (asked, score))


def table(folder: Path, rows: int, classes: int, columns: int) -> dict[str, Any]:
    """A table without meaning: numbers and labels are drawn apart from each other."""
    generator = np.random.default_rng(0)
    for name, count in (("train", rows), ("test", 3 * rows)):
        frame = pd.DataFrame(
            generator.normal(size=(count, columns)), columns=[f"x{i}" for i in range(columns)]
        )
        frame["label"] = [f"class {one}" for one in generator.integers(classes, size=count)]
        frame.to_csv(folder / f"{name}.csv", index=False)
    return {
        "format": "csv",
        "train": str(folder / "train.csv"),
        "test": str(folder / "test.csv"),
        "label": "label",
        "table": {},
        "public": 20,
        "clients": 2,
    }


def test_members_of_a_model_that_knows_random_labels_by_heart_are_told(tmp_path: Path) -> None:
    """Labels say nothing about others, so that only who was trained on is answered right."""
    raw = {
        **DIGITS,
        "rounds": 1,
        "task": table(tmp_path, 160, 4, 30),
        "models": {"clients": ["mlp-tab"], "server": "mlp-tab"},
        "train": {"epochs": 40, "batch_size": 16, "optimizer": {"name": "adam", "lr": 0.005}},
    }
    found = audited(raw, tmp_path / "run")
    for score, least in {"loss": 0.5, "lira": 0.05}.items():  # one shadow alone judges each candidate
        assert attack(found, score)["auc"]["value"] > 0.9, score
        told = attack(found, score)["tpr"]["0.01"]
        assert told is not None
        assert told["value"] > least, score
    blind = attack(found, "blind")["auc"]
    assert blind["low"] <= 0.5 <= blind["high"]
    assert found["arms"][0]["notes"] == []


def test_of_a_model_that_was_not_trained_nothing_is_told(tmp_path: Path) -> None:
    raw = {**DIGITS, "train": {"optimizer": {"lr": 1e-9}}}
    found = audited(raw, tmp_path / "run")
    assert {one["score"] for one in found["arms"][0]["membership"]} == {
        *("loss", "entropy", "lira", "co-op", "blind")
    }
    for one in found["arms"][0]["membership"]:
        assert one["members"] == one["others"] == 120
        assert abs(one["auc"]["value"] - 0.5) < 0.12, one["score"]
        assert one["auc"]["low"] < 0.55
        assert one["auc"]["high"] > 0.45
        assert one["tpr"]["0.001"] is None


def test_of_the_members_of_another_client_nothing_is_told(tmp_path: Path) -> None:
    """Before anything was exchanged, models know their own samples alone: swapped, all are non-members."""
    train = {"epochs": 40, "batch_size": 16, "optimizer": {"lr": 0.05, "momentum": 0.9}}
    found = replayed({**DIGITS, "rounds": 1, "train": train}, tmp_path / "run")
    evidence = ArmEvidence(found, SMALL)

    def areas(shift: int) -> dict[str, float]:
        every = [audit_client(evidence, client, (client + shift) % 3).scored for client in range(3)]
        return {
            score: auc(
                np.concatenate([one["weights", score].members for one in every]),
                np.concatenate([one["weights", score].others for one in every]),
            )
            for score in ("loss", "lira")
        }

    own, swapped = areas(0), areas(1)
    for score in own:
        assert own[score] > 0.58, score
        assert abs(swapped[score] - 0.5) < 0.08, score


def test_each_kind_of_message_has_its_attacks_and_exact_counts_are_exact(tmp_path: Path) -> None:
    methods = ("dsfl", "voting", "fd", "fedproto", "gaussian", "bridge")
    raw = {**DIGITS, "rounds": 3, "arms": [{"method": name} for name in methods]}
    found = audited(raw, tmp_path / "run")
    asked = {arm["name"]: {one["asked"] for one in arm["membership"]} for arm in found["arms"]}
    assert asked == {
        "dsfl": {"labels, distilled", "labels, if asked"},
        "voting": {"votes, distilled", "votes, if asked"},
        "fd": {"class outputs"},
        "fedproto": {"prototypes"},
        "gaussian": {"statistics"},
        "bridge": {"votes, distilled", "votes, if asked"},
    }
    shares = {arm["name"]: arm["label_shares"] for arm in found["arms"]}
    (exact,) = shares["gaussian"]
    assert (exact["how"], exact["total_variation"], exact["clients"]) == ("counts", 0.0, 3)
    assert exact["uniform"]["total_variation"] > 0.2, "there is something to know"
    assert shares["bridge"][0]["how"] == "counts, rounded"
    assert 0 < shares["bridge"][0]["total_variation"] < 0.06
    assert {arm["name"] for arm in found["arms"] if arm["class_means"]} == {"fedproto", "gaussian"}
    (means,) = next(arm for arm in found["arms"] if arm["name"] == "gaussian")["class_means"]
    assert means["gain"] > 0.5
    assert attack(found, "trace", "statistics")["auc"]["low"] > 0.6
    assert read_audit(tmp_path / "run") == found
    assert found["settings"] == {"shadows": 2, "rounds": 2, "clients": 3, "candidates": 250, "seed": 0}


def test_word_counts_give_members_away(tmp_path: Path) -> None:
    raw = {
        **DIGITS,
        "rounds": 1,
        "task": {"name": "bbc-news", "clients": 3, "limit": 60, "public": 20},
        "models": {"clients": ["bag"], "server": "bag"},
        "arms": [{"method": "naive-bayes"}],
    }
    found = audited(raw, tmp_path / "run")
    assert attack(found, "words", "word counts")["auc"]["value"] > 0.99, "a member has no unknown word"
    assert found["arms"][0]["label_shares"][0]["total_variation"] == 0


def test_what_is_replayed_is_what_the_server_had(tmp_path: Path) -> None:
    """The mean of the weights that were heard, by samples, is the model that the run has saved."""
    found = replayed(DIGITS, tmp_path / "run")
    last = [exchanges[-1] for exchanges in found.exchanges.values()]
    assert [one.round for one in last] == [2, 2, 2]
    samples = torch.tensor(found.arm.task.samples(), dtype=torch.float64)
    heard = torch.stack([one.message.values for one in last]).double()  # type: ignore[union-attr]  # not None
    folder = RunFolder.open(tmp_path / "run")
    saved = folder.restore(found.arm).server.model.weights
    assert torch.allclose((samples[:, None] * heard).sum(dim=0) / samples.sum(), saved.double(), atol=1e-6)
    sent = last[0].received
    assert sent is not None
    assert len(sent.values) == len(saved)  # type: ignore[attr-defined]  # weights


def test_messages_are_kept_of_the_rounds_that_are_asked_for(tmp_path: Path) -> None:
    found = replayed({**DIGITS, "rounds": 4}, tmp_path / "run")
    for client in range(3):
        assert [one.round for one in found.exchanges[client]] == [1, 2, 3, 4]
        assert [one.round for one in found.kept(client)] == [1, 4]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda arm: arm["rounds"][1]["views"].update({"server@global": 0.5}), "views of results.json"),
        (lambda arm: arm["rounds"][0].update(bytes_up=1), "bytes_up of results.json"),
    ],
)
def test_a_replay_that_is_not_the_run_is_refused(change: Any, named: str, tmp_path: Path) -> None:
    compare(parse(DIGITS, "test"), tmp_path / "run", quiet=True)
    path = tmp_path / "run" / "results.json"
    content = json.loads(path.read_text())
    change(content["arms"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(ExperimentError, match=rf"the replay is not the run: it differs in {named}"):
        audit(tmp_path / "run", SMALL, [], "the command", Silent())
    assert not (tmp_path / "run" / "audit.json").exists()


def test_another_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    """An experiment edited after the run: frames differ from those in events.jsonl."""
    compare(parse(DIGITS, "test"), tmp_path / "run", quiet=True)
    path = tmp_path / "run" / "experiment.toml"
    path.write_text(path.read_text().replace("lr = 0.05", "lr = 0.051"))
    with pytest.raises(ExperimentError, match="the replay is not the run"):
        audit(tmp_path / "run", SMALL, [], "the command", Silent())


def test_candidates_are_balanced_by_class_and_no_shadow_knows_them(tmp_path: Path) -> None:
    task, _ = prepare(parse(DIGITS, "test"))
    half = halves(task, 0)
    counts = torch.stack([torch.bincount(task.test.labels[half == one], minlength=10) for one in (0, 1)])
    assert (counts[0] - counts[1]).abs().max() <= 1
    for client in range(3):
        found = draw_candidates(task, client, half, 250, 0)
        members, others = found.labels[found.is_member], found.labels[~found.is_member]
        assert torch.equal(torch.bincount(members), torch.bincount(others))
        assert torch.equal(members, task.clients[client].labels[found.members])
        assert torch.equal(others, task.test.labels[found.others])
        assert len({*found.members.tolist()}) == len(found.members)
        assert torch.equal(found.half[~found.is_member], half[found.others])
        inputs = found.inputs(task, "mlp-s")
        private = task.client_inputs(client, _plain())
        assert torch.equal(inputs[: len(found.members)], private[found.members])
        shares, generator = torch.full((10,), 0.1), np.random.default_rng(0)
        for taken in (0, 1):
            trained_on = draw_samples(task.test.labels, half, taken, shares, 30, generator)
            (usable,) = usable_shadows([taken], found)
            asked = {*found.others[usable[len(found.members) :]].tolist()}
            assert not asked & {*trained_on.tolist()}
    few = draw_candidates(task, 0, half, 5, 0)
    assert len(few) == 10


def test_shadows_have_the_mix_of_classes_that_is_asked_for() -> None:
    labels, half = torch.tensor([0] * 10 + [1] * 10 + [2] * 4), torch.tensor([0, 1] * 12)
    drawn = draw_samples(labels, half, 0, torch.tensor([0.5, 0.0, 0.5]), 12, np.random.default_rng(0))
    assert torch.bincount(labels[drawn], minlength=3).tolist() == [6, 0, 6]
    assert (half[drawn] == 0).all()
    assert len({*drawn[labels[drawn] == 0].tolist()}) == 5, "all of the class, before one comes twice"
    nothing = draw_samples(labels, half, 1, torch.tensor([0.0, 0.0, 0.0]), 6, np.random.default_rng(0))
    assert len(nothing) == 6


def test_samples_that_sites_hold_out_are_their_non_members(tmp_path: Path) -> None:
    raw = {**DIGITS, "task": {**DIGITS["task"], "own_test_share": 0.3, "limit": 200}}
    found = replayed(raw, tmp_path / "run")
    task: Task = found.arm.task
    assert task.own_tests
    candidates = draw_candidates(task, 1, halves(task, 0), 250, 0)
    others = candidates.inputs(task, "mlp-s")[len(candidates.members) :]
    assert torch.equal(others, task.own_test_inputs(1, _plain())[candidates.others])
    ids = [draw_candidates(task, client, halves(task, 0), 250, 0).ids(task)[1] for client in (0, 1)]
    assert not {*ids[0].tolist()} & {*ids[1].tolist()}, "samples of two sites are not the same"


def test_the_audit_is_the_same_each_time_and_another_seed_draws_others(tmp_path: Path) -> None:
    found = replayed(DIGITS, tmp_path / "run")
    first, again, other = (
        audit_client(ArmEvidence(found, Settings(shadows=2, seed=seed)), 0).scored["weights", "lira"]
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first.members, again.members)
    assert not np.array_equal(first.members, other.members)


def _plain() -> Any:
    from fedistill.models import registry as models

    return models.preprocessing("mlp-s")
