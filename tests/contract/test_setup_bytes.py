"""Set-up traffic: who is sent the vocabulary of a text task, and what it costs."""

from typing import Any

import pytest

from fedistill import parse
from fedistill.communication.kinds import Kind
from fedistill.communication.protocol.frame import decode
from fedistill.experiment.runner import prepare
from fedistill.federation.setup import start_run

TEXT: dict[str, Any] = {"length": 8, "vocabulary": 200}


def ledger_of(method: str, text: dict[str, Any]) -> Any:
    wanted = parse(
        {
            "rounds": 1,
            "task": {"name": "bbc-news", "clients": 3, "limit": 30, "public": 20, "text": text},
            "models": {"clients": ["bag"], "server": "bag"},
            "arms": [{"method": method}],
        },
        "test",
    )
    task, (arm,) = prepare(wanted)
    return task, start_run(arm).ledger


@pytest.mark.parametrize(
    ("method", "copies"), [("fedavg", 3), ("fd", 3), ("feddf", 3), ("dsfl", 0), ("fedmd", 0), ("local", 0)]
)
def test_vocabulary_is_sent_to_clients_that_cannot_build_it(method: str, copies: int) -> None:
    task, ledger = ledger_of(method, TEXT)
    assert decode(task.vocabulary_frame).kind is Kind.VOCABULARY
    assert ledger.setup == ledger.total == copies * len(task.vocabulary_frame)


def test_a_tokenizer_of_the_users_own_is_sent_to_all(tmp_path: Any) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    path = tmp_path / "tokenizer.json"
    Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "the": 2}, unk_token="[UNK]")).save(str(path))
    task, ledger = ledger_of("dsfl", {**TEXT, "tokenizer": str(path)})
    assert ledger.setup == 3 * len(task.vocabulary_frame) > 0
