"""Models with unlike tokenizers in one run: each is trained, asked and measured on inputs of its own."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor

from fedistill import parse
from fedistill.config.schema import Experiment
from fedistill.errors import ExperimentError
from fedistill.experiment.preflight import examine
from fedistill.experiment.runner import prepare
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client import client_state
from fedistill.federation.local_executor import ProcessExecutor, SerialExecutor
from fedistill.federation.setup import start_run
from fedistill.methods.registry import METHODS
from fedistill.models.registry import build_model
from fedistill.models.signature import Preprocessing
from fedistill.testing.runs import bits, finish
from helpers.files import Files
from helpers.method_rows import ROWS
from helpers.runs import finished

WORDS_KEPT, LETTERS_KEPT, SHORT_KEPT = 6, 12, 4
MODULE = f'''
from torch import nn

from fedistill.models.signature import Preprocessing


class Net(nn.Module):
    """Refuses what was not made for it."""

    def __init__(self, signature, length):
        super().__init__()
        assert signature.shape == (length,)
        self.shape, self.vocabulary = signature.shape, signature.vocabulary
        self.features = nn.EmbeddingBag(signature.vocabulary, 16, mode="mean", padding_idx=0)
        self.head = nn.Linear(16, signature.classes)

    def forward(self, ids):
        assert ids.shape[1:] == self.shape
        assert 0 <= ids.min() and ids.max() < self.vocabulary
        return self.head(self.features(ids))


def words(signature):
    return Net(signature, {WORDS_KEPT})


def net(signature):
    return Net(signature, {LETTERS_KEPT})


net.preprocessing = Preprocessing(tokenizer="letters.json", length={LETTERS_KEPT})


def twin(signature):
    return Net(signature, {LETTERS_KEPT})


twin.preprocessing = Preprocessing(tokenizer="twin.json", length={LETTERS_KEPT})


def short(signature):
    return Net(signature, {SHORT_KEPT})


short.preprocessing = Preprocessing(length={SHORT_KEPT})


def lost(signature):
    return Net(signature, 4)


lost.preprocessing = Preprocessing(tokenizer="nowhere.json")
'''
NET = "my_models:net"
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module `my_models`, for this process and its workers, beside tokenizers whose tokens are letters."""
    for name, order in (("letters", LETTERS), ("twin", LETTERS[::-1])):
        tokenizer = Tokenizer(BPE(vocab={letter: place for place, letter in enumerate(order)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.save(str(tmp_path / f"{name}.json"))
    (tmp_path / "my_models.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_models", None)


@pytest.fixture
def path(files: Files) -> str:
    """Texts of three classes, each with words and letters of its own."""
    starts = ("alpha", "bravo", "xylem")
    texts = [f"{starts[number % 3]} {number} of {number // 3}" for number in range(120)]
    return files.csv("texts.csv", text=texts, label=[number % 3 for number in range(120)])


def raw(path: str, method: str, clients: list[str], server: str, **changes: Any) -> dict[str, Any]:
    text = {"length": WORDS_KEPT, "vocabulary": 60}
    task = {"format": "csv", "train": path, "clients": 3, "public": 30, "text": text}
    return {
        "rounds": 2,
        "task": task | changes.pop("task", {}),
        "models": {"clients": clients, "server": server},
        "train": {"epochs": 3, "batch_size": 8, "optimizer": {"name": "adam", "lr": 0.05}},
        "arms": [{"method": method, **changes}],
    }


def ready(wanted: dict[str, Any]) -> tuple[Experiment, ReadyArm]:
    experiment = parse(wanted, "test")
    _, (arm,) = prepare(experiment)
    return experiment, arm


def letters(texts: Any) -> Tensor:
    """Ids of the first letters, one more than their place: 0 is padding."""
    rows = []
    for text in texts:
        ids = [LETTERS.index("Ġ" if letter == " " else letter) + 1 for letter in text[:LETTERS_KEPT]]
        rows.append(ids + [0] * (LETTERS_KEPT - len(ids)))
    return torch.tensor(rows, dtype=torch.int32)


def test_each_side_is_handed_inputs_of_the_model_that_it_names(path: str) -> None:
    _, arm = ready(raw(path, "dsfl", ["bag", NET], "bag"))
    client, server, task = arm.client(1, 1), arm.server(1), arm.task
    assert task.public is not None
    assert torch.equal(client.inputs(), letters(task.clients[1].samples))
    assert torch.equal(client.public_inputs(), letters(task.public.samples))
    assert torch.equal(server.public_inputs(NET), client.public_inputs())
    as_the_task = Preprocessing()
    assert torch.equal(client.inputs("bag"), task.client_inputs(1, as_the_task))
    assert torch.equal(server.public_inputs(), task.public_inputs(as_the_task))
    assert server.public_inputs().shape == (30, WORDS_KEPT)
    # The same samples are drawn, whoever reads them.
    drawn = [list(one.sampled_public(9, 2, NET)) for one in (client, server)]
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
    found = client.sampled_public(9, 2, "bag")
    places = [int((server.public_inputs(NET) == row).all(dim=1).nonzero()[0]) for row in drawn[0]]
    assert torch.equal(found, server.public_inputs()[places])
    assert client.signature.vocabulary == len(LETTERS) + 1
    assert client.signature_of("bag") == task.signature


def test_serial_or_processes_and_again(path: str) -> None:
    wanted, arm = ready(raw(path, "dsfl", ["bag", NET], "bag"))
    with SerialExecutor(wanted, arm.task) as executor:
        once = bits(finish(arm, executor))
    with ProcessExecutor(2, wanted, arm.task) as executor:
        assert bits(finish(arm, executor)) == once


MIXING = [
    row
    for row in ROWS
    if row.mixes
    and row.method not in ("fml", "fedkd", "fedekd-like")
    and METHODS[row.method].needs.takes("text")
]


@pytest.mark.parametrize("row", MIXING, ids=lambda row: row.name)
def test_every_method_that_mixes_models_mixes_tokenizers(row: Any, path: str) -> None:
    """The nets refuse ids of another length than their own; one reads the task's own words, shorter."""
    settings = {name: value for name, value in row.settings_for_texts.items() if name != "samples"}
    clients = ["my_models:words", NET, "my_models:short"]
    arm, run = finished(raw(path, row.method, clients, NET, **settings))
    assert arm.federation.signatures["my_models:short"].shape == (SHORT_KEPT,)
    assert run.records[-1].views


@pytest.mark.parametrize("method", ["fml", "fedkd", "fedekd-like"])
@pytest.mark.parametrize(("client", "errors"), [(NET, 0), ("bag", 1), ("my_models:twin", 1)])
def test_models_that_train_on_the_same_batches_need_one_tokenizer(
    method: str, client: str, errors: int, path: str
) -> None:
    """That of ``twin`` has as many tokens in another order: its ids would fit, and mean other words."""
    wanted, arm = ready(raw(path, method, [client], NET))
    assert arm.signature("my_models:twin") == arm.signature(NET) != arm.signature("bag")
    found = [str(one) for one in examine(wanted, arm.task, [arm]) if one.level == "error"]
    assert len(found) == errors
    assert all(f"{client!r} and {NET!r} use different tokenizers: give" in one for one in found)


def test_each_model_is_measured_on_inputs_of_its_own(path: str) -> None:
    arm, run = finished(raw(path, "dsfl", ["bag", NET], NET, distill_epochs=3))
    task = arm.task
    inputs = {"bag": task.test_inputs(Preprocessing()), NET: letters(task.test.samples)}

    def right(name: str, weights: Tensor) -> Tensor:
        model = build_model(name, arm.signature(name), seed=7, client=0)
        torch.nn.utils.vector_to_parameters(weights, model.parameters())
        with torch.no_grad():
            answers: Tensor = model.eval()(inputs[name].long()).argmax(dim=1)
        return task.test.labels[answers == task.test.labels]

    accuracies = []
    for client, name in enumerate(["bag", NET, "bag"]):
        found = right(name, client_state(arm, client, run.clients[client]).model.weights)
        assert run.scores[client].correct == torch.bincount(found, minlength=3).tolist()
        accuracies.append(len(found) / len(task.test))
    views = run.records[-1].views
    assert views["client@global"] == pytest.approx(sum(accuracies) / 3)
    assert views["server@global"] == pytest.approx(len(right(NET, run.server.model.weights)) / len(task.test))
    # Letters and words tell the classes apart, so models that read theirs have learned.
    assert min(*accuracies, views["server@global"]) > 0.6


@pytest.mark.parametrize(
    ("method", "clients", "server", "charged"),
    [
        ("feddf", ["bag", NET], "bag", [0, 2]),
        ("feddf", ["bag", NET], NET, [0, 2]),
        ("feddf", [NET, "my_models:short"], NET, [1]),  # short reads the task's words
        ("fedavg", [NET], NET, []),
        ("fml", ["bag", NET], "bag", [0, 1, 2]),  # the server's model works at clients
        ("fml", ["bag", NET], NET, [0, 2]),
        ("dsfl", ["bag", NET], "bag", []),  # clients build the vocabulary from the public set
    ],
)
def test_who_pays_for_the_vocabulary(
    method: str, clients: list[str], server: str, charged: list[int], path: str
) -> None:
    _, arm = ready(raw(path, method, clients, server))
    ledger = start_run(arm).ledger
    assert [entry.client for entry in ledger.entries] == charged
    assert ledger.setup == ledger.total == len(charged) * len(arm.task.vocabulary_frame)


def test_a_tokenizer_of_the_task_is_not_sent_to_models_that_bring_theirs(path: str, tmp_path: Path) -> None:
    text = {"length": WORDS_KEPT, "tokenizer": str(tmp_path / "letters.json")}
    _, arm = ready(raw(path, "dsfl", ["bag", NET], "bag", task={"text": text}))
    assert [entry.client for entry in start_run(arm).ledger.entries] == [0, 2]


def test_a_tokenizer_that_is_not_there_is_missed_by_its_path(path: str, tmp_path: Path) -> None:
    _, arm = ready(raw(path, "dsfl", ["bag", "my_models:lost"], "bag"))
    with pytest.raises(ExperimentError) as caught:
        _ = arm.federation
    assert str(caught.value) == (
        f"model: preprocessing.tokenizer = {tmp_path / 'nowhere.json'}: there is no such file"
    )
