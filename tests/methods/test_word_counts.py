"""naive-bayes: what is refused, what is not sent at set-up, and replies that no client can have made."""

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedistill.communication.messages.statistics import StatisticsRequest, WordCounts
from fedistill.errors import ExperimentError, FrameError, Refusal
from fedistill.experiment.preflight import examine
from fedistill.federation.setup import start_run
from fedistill.methods.base import NoState, Reply
from fedistill.models import registry as models
from helpers.runs import finished, ready

NET = "count_nets:net"


def raw(task: dict[str, Any] | None = None, used: Any = None, **arm: Any) -> dict[str, Any]:
    news = {
        "name": "bbc-news",
        "clients": 3,
        "limit": 60,
        "public": 40,
        "text": {"length": 8, "vocabulary": 200},
    }
    return {
        "rounds": 1,
        "task": {**news, **(task or {})},
        "models": used or {"clients": ["bag"], "server": "bag"},
        "arms": [{"method": "naive-bayes", **arm}],
    }


def test_images_are_refused() -> None:
    images = {"name": "digits", "public": 40}
    wanted, arm = ready({**raw(used={"clients": ["mlp-s"], "server": "mlp-s"}), "task": images})
    said = "method naive-bayes needs texts, but the samples of this task are images: remove this arm"
    assert [one.what for one in examine(wanted, arm.task, [arm]) if one.level == "error"] == [said]
    with pytest.raises(Refusal, match="needs texts"):
        arm.method.check(arm.federation)


def test_hashed_words_need_no_vocabulary() -> None:
    _, hashed = ready(raw())
    _, tokens = ready(raw(words="tokens"))
    assert start_run(hashed).ledger.setup == 0
    assert start_run(tokens).ledger.setup == 3 * len(tokens.task.vocabulary_frame) > 0


def test_more_words_are_read_than_models_take() -> None:
    arm, run = finished(raw(length=20))
    assert arm.client(0, round=1).inputs(arm.method.inputs_of("bag")).shape[1] == 20
    _, short = finished(raw())
    assert 2 * short.server.words.sum() < run.server.words.sum() <= 60 * 20


def test_nothing_of_the_models_is_in_the_results() -> None:
    from fedistill.experiment.summary import arm_json

    arm, run = finished(raw())
    found = arm_json(arm, run, "done", None)
    assert (found["server_model"], found["client_models"]) == ("naive-bayes", [])
    assert found["parameters"] == {"server": 5 * 8192 + 5}


def test_unlike_tokenizers_are_refused_where_tokens_are_counted(tmp_path: Any, monkeypatch: Any) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "the": 2}, unk_token="[UNK]")).save(
        str(tmp_path / "own.json")
    )
    (tmp_path / "count_nets.py").write_text(
        "from fedistill.models.signature import Preprocessing\n"
        "from fedistill.models.text import Bag\n"
        "def net(signature): return Bag(signature)\n"
        "net.preprocessing = Preprocessing(tokenizer='own.json')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    unlike = {"clients": ["bag", NET], "server": "bag"}
    _, arm = ready(raw(used=unlike))
    arm.method.check(arm.federation)
    _, arm = ready(raw(used=unlike, words="tokens"))
    with pytest.raises(Refusal, match="all models need the same tokenizer, but bag, count_nets:net differ"):
        arm.method.check(arm.federation)
    arm, run = finished(raw(used={"clients": [NET], "server": NET}, words="tokens"))
    assert run.server.words.shape == (5, 2)
    assert run.ledger.setup == 0


@pytest.mark.parametrize(
    ("preprocessing", "said"),
    [
        ("tokenizer='own.json', buckets=8", "either a tokenizer or buckets"),
        ("buckets=0", "buckets, at least one"),
    ],
)
def test_preprocessing_has_one_kind_of_ids(
    preprocessing: str, said: str, tmp_path: Any, monkeypatch: Any
) -> None:
    (tmp_path / "wrong_nets.py").write_text(
        "from fedistill.models.signature import Preprocessing\n"
        f"def net(signature): ...\nnet.preprocessing = Preprocessing({preprocessing})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wrong_nets", raising=False)
    with pytest.raises(ExperimentError, match=said):
        models.preprocessing("wrong_nets:net")


def test_counts_that_a_client_cannot_have_are_refused() -> None:
    _, arm = ready(raw())
    server, client = arm.server(1), arm.client(0, round=1)
    _, sent = arm.method.client_step(NoState(), client, StatisticsRequest())
    assert isinstance(sent, WordCounts)
    start = arm.method.start_server(server)

    def refusal(state: Any, message: WordCounts) -> str:
        with pytest.raises(FrameError) as caught:
            arm.method.check_reply(state, server, Reply(0, message))
        return str(caught.value)

    arm.method.check_reply(start, server, Reply(0, sent))
    count = int(sent.texts.sum())
    said = f"it counts {count + 5} texts, but has {count}"
    assert refusal(start, replace(sent, texts=sent.texts + 1)) == said
    all_of_one = torch.tensor([0, 0, 0, 0, count])
    said = "it counts more words of class 0 than its texts can have"
    assert refusal(start, replace(sent, texts=all_of_one)) == said
    after = arm.method.server_step(start, server, [Reply(0, sent)])
    assert torch.equal(after.texts, sent.texts)
    assert refusal(after, sent) == "its counts came before, and it was not asked for them again"
