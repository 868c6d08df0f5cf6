"""The checks before a run: each finding, and that its fix mends it."""

import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from fedistill import parse
from fedistill.config.toml import load
from fedistill.config.units import format_bytes
from fedistill.data.task import Labelled
from fedistill.errors import ExperimentError
from fedistill.experiment.at_scale import at_scale
from fedistill.experiment.findings import Finding, raise_errors
from fedistill.experiment.preflight import STRONG_SKEW, examine
from fedistill.experiment.runner import prepare
from fedistill.experiment.task_checks import label_skew
from fedistill.federation.arm import ReadyArm
from fedistill.federation.expected_bytes import expected_bytes
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.round import play_round
from fedistill.federation.setup import public_bytes, start_run
from helpers.files import Files

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits.toml"
MODULE = """
from torch import nn


def small(signature, norm, more=0):
    pixels = signature.shape[1] * signature.shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 8), norm, nn.Linear(8, signature.classes + more))


def with_batch_norm(signature):
    return small(signature, nn.BatchNorm1d(8))


def with_group_norm(signature):
    return small(signature, nn.GroupNorm(2, 8))


def too_wide(signature):
    return small(signature, nn.ReLU(), more=1)


def fails(signature):
    return nn.Linear(3, 3)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "normed.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("normed", None)


def raw(*arms: dict[str, Any], models: Any = ("mlp-s", "mlp-s"), **task: Any) -> dict[str, Any]:
    clients, server = models[:-1], models[-1]
    return {
        "rounds": 3,
        # 80 private samples, 20 at each client
        "task": {"name": "digits", "clients": 4, "limit": 80, "public": 40, **task},
        "models": {"clients": list(clients), "server": server},
        "train": {"batch_size": 16},
        "runtime": {"kind": "serial"},
        "arms": list(arms),
    }


def examined(content: dict[str, Any]) -> list[Finding]:
    wanted = parse(content, "test")
    task, arms = prepare(wanted)
    return examine(wanted, task, arms)


def bad(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level != "fact"]


def test_a_sound_experiment_has_facts_only() -> None:
    findings = examined(raw({"method": "fedavg"}, {"method": "dsfl"}))
    assert [(finding.level, finding.where) for finding in findings] == [
        ("fact", "arm 'fedavg'"),
        ("fact", "arm 'dsfl'"),
        ("fact", "memory"),
    ]
    raise_errors(findings)


def test_the_example_is_sound() -> None:
    wanted = load(EXAMPLE)
    task, arms = prepare(wanted)
    assert bad(examine(wanted, task, arms)) == []


def test_batch_norm_is_warned_of(own: None) -> None:
    arm = {"method": "local", "name": "mine"}
    (finding,) = bad(examined(raw(arm, models=("normed:with_batch_norm", "mlp-s"))))
    assert finding.level == "warning"
    assert str(finding) == (
        "arm 'mine': model 'normed:with_batch_norm' has batch norm, whose statistics of one client mislead"
        " the others: use nn.GroupNorm or nn.LayerNorm"
    )
    assert bad(examined(raw(arm, models=("normed:with_group_norm", "mlp-s")))) == []


def test_batch_norm_at_the_server_is_warned_of(own: None) -> None:
    (finding,) = bad(examined(raw({"method": "dsfl"}, models=("mlp-s", "normed:with_batch_norm"))))
    assert (finding.level, finding.where) == ("warning", "arm 'dsfl'")


@pytest.mark.parametrize(("batch", "level"), [(1, "error"), (19, "warning"), (20, "warning")])
def test_batch_norm_and_batches_of_one_sample(own: None, batch: int, level: str) -> None:
    """A last batch of one, as client 1 has it with 19, joins the batch before."""
    content = raw({"method": "local"}, models=("mlp-s", "normed:with_batch_norm", "mlp-s"))
    content["train"]["batch_size"] = batch
    findings = bad(examined(content))
    assert findings[-1].level == level
    if level == "error":
        assert str(findings[-1]) == (
            "arm 'local': model 'normed:with_batch_norm' has batch norm, but its clients train on batches of"
            " one sample: use nn.GroupNorm or nn.LayerNorm, or raise train.batch_size"
        )
        with pytest.raises(ExperimentError, match="batches of one sample"):
            raise_errors(findings)


@pytest.mark.parametrize(("batch", "level"), [(1, "error"), (33, "warning"), (100, "warning")])
def test_batch_norm_and_batches_of_one_public_sample(own: None, batch: int, level: str) -> None:
    arm = {"method": "dsfl", "distill_batch_size": batch, "samples": 34}
    findings = bad(examined(raw(arm, models=("mlp-s", "normed:with_batch_norm"))))
    assert findings[-1].level == level
    if level == "error":
        assert str(findings[-1]) == (
            "arm 'dsfl': model 'normed:with_batch_norm' has batch norm, but it is distilled on batches of one"
            " sample: use nn.GroupNorm or nn.LayerNorm, or raise distill_batch_size"
        )


def test_a_last_batch_of_one_without_batch_norm_is_fine() -> None:
    content = raw({"method": "local"})
    content["train"]["batch_size"] = 19
    assert bad(examined(content)) == []


@pytest.mark.parametrize("method", ["dsfl", "fedmd", "feddf", "server-alone"])
def test_a_method_that_needs_a_public_set(method: str) -> None:
    content = raw({"method": method}, public=0)
    (finding,) = bad(examined(content))
    assert (finding.level, finding.where) == ("error", f"arm '{method}'")
    assert finding.what == (
        f"method {method} needs a public set: set task.public to a number of samples, or to another data set"
    )
    content["task"]["public"] = 40
    assert bad(examined(content)) == []


@pytest.mark.parametrize("method", ["local", "fedavg", "fedprox", "fd"])
def test_methods_that_need_no_public_set(method: str) -> None:
    assert bad(examined(raw({"method": method}, public=0))) == []


@pytest.mark.parametrize("models", [("cnn-s", "mlp-s", "cnn-s"), ("cnn-s", "mlp-s")])
def test_averaging_of_different_architectures(models: tuple[str, ...]) -> None:
    arm = {"method": "fedavg"}
    (finding,) = bad(examined(raw(arm, models=models)))
    assert (finding.level, finding.where) == ("error", "arm 'fedavg'")
    fix = 'models = { clients = ["cnn-s"], server = "cnn-s" }'
    assert finding.what == (
        "method fedavg averages weights, so all clients and the server need the same architecture, but they"
        f" have cnn-s, mlp-s: for this arm, set {fix}"
    )
    # The fix can be copied as it stands.
    mended = {**arm, "models": {"clients": ["cnn-s"], "server": "cnn-s"}}
    assert bad(examined(raw(mended, models=models))) == []


def test_classes_that_no_client_holds() -> None:
    wanted = {"kind": "pathological", "classes_per_client": 2}
    task, _ = prepare(parse(raw({"method": "local"}, partition=wanted, clients=4), "test"))
    held = {int(label) for data in task.clients for label in data.labels}
    missing = [repr(str(label)) for label in range(10) if label not in held]
    assert missing
    (finding,) = bad(examined(raw({"method": "local"}, partition=wanted, clients=4)))
    assert (finding.level, finding.where) == ("warning", "task")
    assert finding.what == (f"no client holds any sample of {', '.join(missing)}, but the test set does")
    names = ", ".join(name.replace("'", '"') for name in missing)
    left_out = f"task.exclude_classes = [{names}]"
    fix = f"make task.partition more even, or raise task.limit, or leave them out: {left_out}"
    assert finding.fix == fix
    raise_errors([finding])


def test_a_class_with_one_sample_is_reported_with_a_fix_that_works(tmp_path: Path) -> None:
    rows = [f"the word{place % 7} text{place},{'ab'[place % 2]}" for place in range(60)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows, "rare words,r"]))
    content = raw({"method": "local"}, models=("bag", "bag"))
    content["task"] = {"format": "csv", "train": str(tmp_path / "train.csv"), "clients": 2, "public": 20}
    findings = [finding for finding in bad(examined(content)) if "'r'" in finding.what]
    (finding,) = findings
    assert finding.what.endswith("; one sample cannot be on both sides")
    assert finding.fix == 'add samples, or leave them out: task.exclude_classes = ["r"]'
    content["task"]["exclude_classes"] = ["r"]
    assert [finding for finding in bad(examined(content)) if "'r'" in finding.what] == []


def sites_task(tmp_path: Path, **task: Any) -> dict[str, Any]:
    """Sites of 40, 30, 20 and 1 samples."""
    sites = ["north"] * 40 + ["south"] * 30 + ["west"] * 20 + ["tiny"]
    rows = [f"the word{place},{'ab'[place % 2]},{site}" for place, site in enumerate(sites)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label,site", *rows]))
    (tmp_path / "test.csv").write_text("text,label\nthe word1,a\nthe word2,b\n")
    content = raw({"method": "local"}, models=("bag", "bag"))
    paths = {name: str(tmp_path / f"{name}.csv") for name in ("train", "test")}
    content["task"] = {
        "format": "csv",
        **paths,
        "public": 0,
        "partition": {"kind": "natural", "column": "site"},
        **task,
    }
    Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "the": 2}, unk_token="[UNK]")).save(str(tmp_path / "t.json"))
    content["task"]["text"] = {"tokenizer": str(tmp_path / "t.json")}
    return content


def test_sites_are_named_and_those_that_stay_out_too(tmp_path: Path) -> None:
    whole = sites_task(tmp_path, own_test_share=0)
    found = [finding for finding in examined(whole) if finding.where.startswith("task.p")]
    assert [(one.level, one.what) for one in found] == [
        ("fact", "4 clients: 'north' (40), 'south' (30), 'west' (20), 'tiny' (1)")
    ]
    content = sites_task(tmp_path, clients=2)
    (finding,) = [one for one in examined(content) if one.where == "task.clients"]
    assert (finding.level, finding.what, finding.fix) == (
        "warning",
        "these sites take no part: 'west' (20 samples), 'tiny' (1 samples)",
        "raise task.clients to 4, or leave it out",
    )
    content["task"]["clients"] = 4
    assert not [one for one in examined(content) if one.where == "task.clients"]


def test_a_site_that_was_held_out_is_named(tmp_path: Path) -> None:
    content = sites_task(tmp_path, public=88)
    found = [one for one in bad(examined(content)) if one.where == "task.partition"]
    assert found
    assert found[0].what.startswith("these sites take no part, since no sample of theirs is private: ")
    assert "'tiny' (1 samples)" in found[0].what


def test_private_samples_that_no_client_has_are_counted(tmp_path: Path) -> None:
    lists = {"kind": "indices", "clients": [[0, 1, 2], [3, 4]]}
    found = [one.what for one in examined(sites_task(tmp_path, partition=lists))]
    assert "86 private samples belong to no client" in found


def test_the_share_of_unknown_words_is_said(tmp_path: Path) -> None:
    rows = ["the cat,a", "the dog,b", "a cat,a", "a dog,b"]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]))
    content = raw({"method": "local"}, models=("bag", "bag"))
    tokenizer = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "the": 2, "cat": 3, "a": 4}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "t.json"))
    path = str(tmp_path / "train.csv")
    content["task"] = {
        "format": "csv",
        "train": path,
        "test": path,
        "public": 0,
        "clients": 2,
        "text": {"tokenizer": str(tmp_path / "t.json")},
    }
    (finding,) = [one for one in examined(content) if one.where == "task.text"]
    # Two of eight words are "dog".
    assert (finding.level, finding.what) == (
        "fact",
        "25.0% of the words in private texts are unknown to the tokenizer",
    )
    Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(tmp_path / "t.json"))
    (finding,) = [one for one in examined(content) if one.where == "task.text"]
    assert finding.level == "warning"
    assert finding.what.startswith("100.0% of the words")


def test_classes_that_are_not_tested() -> None:
    wanted = parse(raw({"method": "local"}), "test")
    task, _ = prepare(wanted)
    keep = task.test.labels < 8
    task = replace(task, test=Labelled(task.test.samples[keep], task.test.labels[keep]))
    arms = [ReadyArm.of(arm, wanted, task) for arm in wanted.arms]
    (finding,) = bad(examine(wanted, task, arms))
    assert finding.level == "warning"
    assert finding.what == "clients hold samples of '8', '9', but the test set has none"


def test_clients_without_samples() -> None:
    wanted = parse(raw({"method": "local"}, clients=10), "test")
    task, _ = prepare(wanted)
    empty = Labelled(task.clients[0].samples[:0], task.clients[0].labels[:0])
    clients = (task.clients[0], *[empty] * 6, *task.clients[7:])
    task = replace(task, clients=clients)
    arms = [ReadyArm.of(arm, wanted, task) for arm in wanted.arms]
    (finding,) = [finding for finding in examine(wanted, task, arms) if finding.level == "error"]
    assert finding.what == "clients without samples: 1, 2, 3, 4, 5 …"


def test_the_control_with_labels_refuses_another_data_set(tmp_path: Path) -> None:
    for name in ("train", "other"):
        rows = [f"the word{place % 7} {name}{place},{'ab'[place % 2]}" for place in range(60)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows]))
    other = {"format": "csv", "train": str(tmp_path / "other.csv"), "samples": 20}
    content = raw({"method": "server-alone"}, {"method": "dsfl"}, models=("bag", "bag"))
    content["task"] = {
        "format": "csv",
        "train": str(tmp_path / "train.csv"),
        "clients": 2,
        "public": other,
        "text": {"length": 8},
    }
    (finding,) = [one for one in examined(content) if one.level == "error"]
    assert finding.where == "arm 'server-alone'"
    assert finding.what == (
        "method server-alone needs a public set with labels of the task: set task.public to a number of"
        " samples, which are held out of the training data"
    )
    content["task"]["public"] = 20
    assert not [one for one in examined(content) if one.level == "error"]


@pytest.mark.parametrize(
    ("length", "share"), [(4, "200 of 200 samples (100.0%)"), (8, "2 of 200 samples (1.0%)")]
)
def test_equal_inputs_with_different_labels(tmp_path: Path, length: int, share: str) -> None:
    # The first four words are the same everywhere; behind them, two samples of 200 are equal and contradict.
    rows = [f"a b c d {'ab'[place % 2]} w{place // 2},{'xy'[place % 2]}" for place in range(198)]
    rows += ["a b c d e f,x", "a b c d e f,y"]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]))
    words = [chr(97 + n) for n in range(6)] + [f"w{n}" for n in range(99)]
    (tmp_path / "public.csv").write_text("\n".join(["text", " ".join(words), "other words"]))
    content = raw({"method": "local"}, models=("bag", "bag"))
    content["task"] = {
        "format": "csv",
        "train": str(tmp_path / "train.csv"),
        "clients": 2,
        "public": {"format": "csv", "train": str(tmp_path / "public.csv"), "samples": 2},
        "text": {"length": length},
    }
    (finding,) = [one for one in examined(content) if "same input" in one.what]
    assert finding.what == f"{share} have the same input as one with another label"
    assert finding.level == "warning"


def test_classes_whose_names_hardly_differ(tmp_path: Path) -> None:
    files = Files(tmp_path)
    labels = ["sport", " Sport", "caf\u00e9", "cafe\u0301", "cafe", "7", "07"] * 20
    content = raw({"method": "local"})
    content["task"] = {
        "format": "parquet",
        "train": files.images("train.parquet", files.pixels(140), labels),
        "clients": 2,
    }
    (finding,) = [one for one in examined(content) if "hardly differ" in one.what]
    assert finding.level == "warning"
    assert finding.what.startswith("' Sport' and 'sport', 'cafe\u0301' and 'caf\u00e9' are different classes")
    content["task"]["relabel"] = {" Sport": "sport", "cafe\u0301": "caf\u00e9"}
    assert not [one for one in examined(content) if "hardly differ" in one.what]


def test_equal_images_with_different_labels(tmp_path: Path) -> None:
    files = Files(tmp_path)
    pictures = files.pixels(300)
    pictures[7] = pictures[4]
    content = raw({"method": "local"})
    content["task"] = {
        "format": "parquet",
        "train": files.images("train.parquet", pictures, ["a", "b"] * 150),
        "clients": 2,
    }
    (finding,) = [one for one in examined(content) if "same input" in one.what]
    assert (finding.level, finding.where) == ("fact", "task")
    assert finding.what == "2 of 300 samples (0.7%) have the same input as one with another label"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("cnn-z", "model 'cnn-z' is not one of mlp-s, cnn-s, cnn-m, resnet-8, resnet-20 or module:function."),
        ("bag", "model 'bag' is for text tasks; this is a task of images: mlp-s, cnn-s"),
        ("normed:too_wide", "it must return (2, 10)"),
        ("normed:fails", "model 'normed:fails' fails on an input of shape (2, 1, 8, 8): RuntimeError"),
        ("normed:withbatchnorm", "normed has no function 'withbatchnorm'. Did you mean 'with_batch_norm'?"),
        ("nowhere:model", "module 'nowhere' cannot be imported (ModuleNotFoundError"),
    ],
)
def test_models_that_do_not_fit(own: None, model: str, said: str) -> None:
    findings = bad(examined(raw({"method": "local"}, models=(model, "mlp-s"))))
    assert [finding.level for finding in findings] == ["error"]
    assert said in findings[0].what


def test_all_errors_are_said_at_once() -> None:
    findings = examined(raw({"method": "dsfl"}, {"method": "fedavg"}, models=("cnn-s", "mlp-s"), public=0))
    with pytest.raises(ExperimentError) as caught:
        raise_errors(findings)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["arm 'dsfl'", "arm 'fedavg'"]


@pytest.mark.parametrize("codec", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("method", "by_hand"),
    [
        # A frame: 11 bytes; a section: length of its content (1 to 3 bytes), and the content.
        # mlp-s on 8x8 pixels has 64 * 64 + 64 + 64 * 10 + 10 = 4810 weights.
        ("fedavg", (11 + 3 + 4810 * 4 + (1 + 1), 11 + 3 + 4810 * 4)),
        ("dsfl", (11 + 2 + 40 * 10 * 4 + (1 + 1),) * 2),
        ("fd", (11 + 2 + 10 * 10 * 4,) * 2),
        ("fedmd", (11 + 2 + 40 * 10 * 4 + (1 + 1),) * 2),
        ("feddf", (11 + 3 + 4810 * 4 + (1 + 1), 11 + 3 + 4810 * 4)),
        ("local", (0, 0)),
        ("server-alone", (0, 0)),
    ],
)
def test_expected_bytes_are_those_of_a_real_round(method: str, codec: str, by_hand: tuple[int, int]) -> None:
    wanted = parse(raw({"method": method, "codec": codec}), "test")
    task, (arm,) = prepare(wanted)
    expected = expected_bytes(arm)
    run = start_run(arm)
    with SerialExecutor(wanted, task) as executor:
        play_round(run, arm, executor)
        play_round(run, arm, executor)
    assert expected == tuple(sum(run.ledger.kinds(2, way).values()) for way in ("up", "down"))
    if codec == "fp32":
        assert expected == (4 * by_hand[0], 4 * by_hand[1])
    (fact,) = [found for found in examine(wanted, task, [arm]) if found.where == f"arm '{method}'"]
    up, down = expected
    whole = format_bytes(3 * (up + down))
    said = f"about {format_bytes(up)} up and {format_bytes(down)} down per round, {whole} in 3 rounds"
    if up == down == 0:
        said = "exchanges nothing"
    assert fact.what.startswith(said)
    public = 4 * task.public.bytes if task.public and method in ("dsfl", "fedmd") else 0
    assert public_bytes(arm) == run.ledger.public == public
    assert fact.what.removeprefix(said) == (f"; public data {format_bytes(public)} once" if public else "")


def test_expected_bytes_of_a_part_of_the_clients() -> None:
    content = raw({"method": "fedavg"})
    content["sampling"] = {"fraction": 0.5}
    wanted = parse(content, "test")
    _, (arm,) = prepare(wanted)
    assert expected_bytes(arm) == (2 * 19_256, 2 * 19_254)


def test_the_cost_of_many_more_clients_than_the_task_has() -> None:
    """A tenth of 1,000,000 clients in each of three rounds, of whom .271 will then have worked."""
    content = raw({"method": "dsfl"})
    content["sampling"] = {"fraction": 0.1}
    _, (arm,) = prepare(parse(content, "test"))
    assert arm.task.public is not None
    label, public, model = 40 * 10 * 4 + 15, arm.task.public.bytes, 4 * 4810
    (found,) = at_scale([arm], 1_000_000)
    once = format_bytes(100_000 * label)
    assert found.what == (
        "with 1,000,000 clients like these, of which 100,000 work in a round:"
        f" about {once} up and {once} down or less, {format_bytes(600_000 * label)} in 3 exchanges;"
        f" public data of {format_bytes(271_000 * public)} for the 271,000 who will have worked;"
        f" their models take {format_bytes(271_000 * model)} on the disk of a simulation"
    )
    content["arms"] = [{"method": "dsfl", "accumulate": 2}]
    (fewer,) = at_scale([prepare(parse(content, "test"))[1][0]], 1_000_000)
    assert f"{format_bytes(400_000 * label)} in 2 exchanges" in fewer.what
    assert "190,000 who will have worked" in fewer.what
    content["arms"] = [{"method": "gaussian"}]
    once_each = prepare(parse(content, "test"))[1][0]
    (up, down), count = expected_bytes(once_each, 1_000_000), 271_000 / 100_000
    (said,) = at_scale([once_each], 1_000_000)
    assert (
        f"about {format_bytes(up * count)} up and {format_bytes(down * count)} down or less, once"
        in said.what
    )
    (alone,) = at_scale([prepare(parse(raw({"method": "server-alone"}), "test"))[1][0]], 7)
    assert alone.what == "with 7 clients like these, of which 7 work in a round: nothing is exchanged"


def test_expected_bytes_of_models_of_two_sizes() -> None:
    _, (arm,) = prepare(parse(raw({"method": "feddf"}, models=("mlp-s", "cnn-s", "mlp-s")), "test"))
    sizes = [peer.parameters for peer in arm.federation.clients]
    assert sizes[0] == sizes[2] == 4810
    assert sizes[1] == sizes[3] != 4810
    assert expected_bytes(arm) == (
        sum(4 * format_bytes + 16 for format_bytes in sizes),
        sum(4 * format_bytes + 14 for format_bytes in sizes),
    )


def test_memory_grows_with_processes() -> None:
    content = raw({"method": "fedavg"})
    said = {}
    for kind, workers in (("serial", 4), ("auto", 1), ("processes", 1), ("auto", 2), ("processes", 4)):
        content["runtime"] = {"kind": kind, "workers": workers}
        said[kind, workers] = examined(content)[-1].what
    assert said == {
        ("serial", 4): "about 250 MB in one process",
        ("auto", 1): "about 250 MB in one process",
        # Besides the workers there is always the process that runs the server.
        ("processes", 1): "about 500 MB in 2 processes",
        ("auto", 2): "about 750 MB in 3 processes",
        ("processes", 4): "about 1.25 GB in 5 processes",
    }


def test_examining_draws_from_no_global_generator() -> None:
    before = torch.get_rng_state()
    examined(raw({"method": "dsfl"}))
    assert torch.equal(torch.get_rng_state(), before)


# --- label skew ---

STRONG = {"kind": "dirichlet", "alpha": 0.05}


def skew_of(**task: Any) -> float:
    return label_skew(prepare(parse(raw({"method": "local"}, **task), "test"))[0])


def test_label_skew_by_hand() -> None:
    """Clients with one, the other, and half of each of two classes: distances 0.5, 0.5 and 0."""
    task, _ = prepare(parse(raw({"method": "local"}, clients=3), "test"))
    inputs = task.clients[0].samples[:4]
    labels = ([0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1])
    clients = tuple(Labelled(inputs, torch.tensor(one)) for one in labels)
    assert label_skew(replace(task, clients=clients)) == pytest.approx(1 / 3)
    assert label_skew(replace(task, clients=clients[2:] * 2)) == 0


def test_label_skew_of_partitions() -> None:
    """Those that the threshold's reason names."""
    sizes: dict[str, Any] = {"clients": 10, "limit": None, "public": 100}
    iid = skew_of(**sizes, partition={"kind": "iid"})
    mild = skew_of(**sizes, partition={"kind": "dirichlet", "alpha": 0.3})
    strong = skew_of(**sizes, partition={"kind": "dirichlet", "alpha": 0.1})
    two = skew_of(**sizes, partition={"kind": "pathological", "classes_per_client": 2})
    assert iid < 0.15 < mild < STRONG_SKEW < strong < two < 1


def warned(arm: dict[str, Any], partition: dict[str, Any] = STRONG) -> list[Finding]:
    content = raw(arm, clients=10, limit=None, public=100, partition=partition)
    return [finding for finding in bad(examined(content)) if "skewed" in finding.what]


BALANCED = 'train = { loss = "balanced-softmax" }'
CORRECTED = 'aggregation = "prior-corrected"'


@pytest.mark.parametrize(
    ("arm", "fix"),
    [
        ({"method": "dsfl"}, f"give this arm {BALANCED} and {CORRECTED}"),
        ({"method": "voting"}, f"give this arm {BALANCED} and {CORRECTED}"),
        ({"method": "comet", "train": {"loss": "balanced-softmax"}}, f"give this arm {CORRECTED}"),
        ({"method": "scarlet"}, f"give this arm {BALANCED}"),
        ({"method": "cfd", "train": {"not_true": {}}}, f"give this arm {CORRECTED}"),
        ({"method": "cfd", "aggregation": "prior-corrected"}, f"give this arm {BALANCED}"),
        (
            {"method": "dsfl", "train": {"not_true": {"beta": 0}}},
            f"give this arm {BALANCED} and {CORRECTED}",
        ),
    ],
)
def test_strong_skew_without_a_remedy_is_warned_of(arm: dict[str, Any], fix: str) -> None:
    (finding,) = warned(arm)
    assert (finding.level, finding.where) == ("warning", f"arm '{arm['method']}'")
    assert finding.what.startswith("the clients' labels are strongly skewed (0.")
    assert finding.fix == fix
    assert warned(arm, {"kind": "dirichlet", "alpha": 0.3}) == []
    # The fix can be copied as it stands.
    written = "\n".join(finding.fix.removeprefix("give this arm ").split(" and "))
    assert warned({**arm, **tomllib.loads(written)}) == []


@pytest.mark.parametrize(
    "arm",
    [
        {"method": "local"},
        {"method": "server-alone"},
        {"method": "fedavg"},
        {"method": "fd"},
        {"method": "edge-fd"},
        {"method": "dsfl", "aggregation": "prior-corrected", "train": {"loss": "balanced-softmax"}},
        {"method": "dsfl", "aggregation": "prior-corrected", "train": {"not_true": {}}},
    ],
)
def test_arms_that_pool_no_labels_or_have_a_remedy_are_not_warned_of(arm: dict[str, Any]) -> None:
    assert warned(arm) == []
