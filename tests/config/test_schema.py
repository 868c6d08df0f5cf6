"""The experiment file: what is accepted, what is refused, and whether the message says how to mend it."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from fedistill.config.link import PROFILES
from fedistill.config.schema import Experiment
from fedistill.config.toml import load, parse, to_toml
from fedistill.config.training import OptimizerConfig
from fedistill.errors import ExperimentError

FILE = """
rounds = 2
[task]
name = "digits"
public = 100
partition = { kind = "dirichlet", alpha = 0.3 }
[models]
clients = ["cnn-s", "mlp-s"]
server = "cnn-m"
[train]
epochs = 3
optimizer = { name = "sgd", lr = 0.1, momentum = 0.9 }
[[arms]]
method = "fedavg"
[[arms]]
method = "dsfl"
codec = "fp16"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "exp.toml"
    place.write_text(FILE)
    return place


def refusal(path: Path, *overrides: str) -> list[str]:
    """The lines of the message, without the name of the file."""
    with pytest.raises(ExperimentError) as caught:
        load(path, overrides)
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("round=3", "unknown key `round`. Did you mean 'rounds'?"),
        ("task.publc=3", "unknown key `task.publc`. Did you mean 'public'?"),
        ("task.partition.alpa=1", "unknown key `task.partition.alpa`. Did you mean 'alpha'?"),
        ("task.text.lenght=9", "unknown key `task.text.lenght`. Did you mean 'length'?"),
        (
            'task.public={name="mnist", samples=3, labl="x"}',
            "unknown key `task.public.labl`. Did you mean 'label'?",
        ),
        ("train.optimizer.lrr=1", "unknown key `train.optimizer.lrr`. Did you mean 'lr'?"),
        ("arms.1.train.epoch=3", "unknown key `arms.1.train.epoch`. Did you mean 'epochs'?"),
        ("arms.1.models.servr='a'", "unknown key `arms.1.models.servr`. Did you mean 'server'?"),
        ("link={up=1, down=1, latency=0, los=0.5}", "unknown key `link.los`. Did you mean 'loss'?"),
        # No key is near; so all are named.
        (
            "zzz=1",
            "unknown key `zzz`. Known: arms, attack, checkpoint, evaluate, flower, link, models, privacy,"
            " rounds, runtime, sampling, seed, seeds, task, train",
        ),
        # Named like one of the kinds that pydantic puts into the path of an error.
        ("task.dirichlet.alpha=1", "unknown key `task.dirichlet`."),
        # A key that TOML took for one of the table above it.
        (
            "task.seed=1",
            "unknown key `task.seed`. `seed` belongs above the first [table], or in its own table",
        ),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_one(path: Path, override: str, said: str) -> None:
    (line,) = refusal(path, override)
    assert line.startswith(said)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rounds=0", "`rounds` = 0: must be at least 1"),
        ("rounds=2.5", "`rounds` = 2.5: must be a whole number"),
        ("rounds=many", "`rounds` = 'many': must be a whole number"),
        ("seed=-1", "`seed` = -1: must be at least 0"),
        ("task.clients=0", "`task.clients` = 0: must be at least 1"),
        ("task.limit=0", "`task.limit` = 0: must be at least 1"),
        ("task.name=5", "`task.name` = 5: must be text in quotes"),
        ("task.test_share=1", "`task.test_share` = 1: must be less than 1"),
        ("task.image_size=[0, 8]", "`task.image_size.0` = 0: must be at least 1"),
        ("task.image_size=[8]", "`task.image_size` has too few values"),
        ("task.image_size=8", "`task.image_size` = 8: must be a list in [ ]"),
        ("task.partition=5", '`task.partition` = 5: must be a table, for example { kind = "iid" }'),
        ("task.partition.alpha=0", "`task.partition.alpha` = 0: must be greater than 0"),
        ("task.partition.alpha=inf", "`task.partition.alpha` = inf: must be a finite number"),
        ("task.partition.min_samples=0", "`task.partition.min_samples` = 0: must be at least 1"),
        ("task.partition={kind='dirichlet'}", "`task.partition.alpha` is missing"),
        (
            "task.partition={kind='dirichlett', alpha=1}",
            "`task.partition.kind` = 'dirichlett': must be one of iid, dirichlet, pathological, quantity,"
            " natural, indices. Did you mean 'dirichlet'?",
        ),
        (
            "task.partition={kind='indices'}",
            "`task.partition`: set either `clients`, the positions of each client's samples, or `file`",
        ),
        (
            "task.partition={kind='natural', file='s.csv'}",
            "`task.partition`: `file` needs `column`, the column of that file that names the clients",
        ),
        (
            "task.train=[1]",
            '`task.train`: [1] must be a path, or a list of paths such as ["a.csv", "b.csv"]',
        ),
        (
            "task.train=['a', 'b']",
            "`task`: lists of files need `format`; a data set by `name` has one split for each use",
        ),
        (
            "task.partition={alpha=1}",
            "`task.partition.kind` is missing: must be one of iid, dirichlet, pathological, quantity,"
            " natural, indices.",
        ),
        (
            "task.public=-1",
            "`task.public` = -1: must be at least 0, or a table { name = NAME, samples = NUMBER } for another"
            " data set",
        ),
        (
            "task.public=mnist",
            "`task.public` = 'mnist': must be a whole number, or a table { name = NAME, samples = NUMBER }"
            " for another data set",
        ),
        (
            "task.public=true",
            "`task.public` = True: must be a whole number, or a table { name = NAME, samples = NUMBER } for"
            " another data set",
        ),
        ("task.public={name='mnist'}", "`task.public.samples` is missing"),
        ("task.public={name='mnist', samples=0}", "`task.public.samples` = 0: must be at least 1"),
        ("task.public={images=3}", "`task.public.samples` is missing"),
        ("task.public={samples=3, images=-1}", "`task.public.images` = -1: must be at least 0"),
        ("task.public={samples=3, quality=101}", "`task.public.quality` = 101: must be at most 100"),
        (
            "task.public={samples=3, label='x'}",
            "`task.public`: `label` is for another data set, which needs a `name`, or `format` and `train`;"
            " without them, samples are held out of the training data",
        ),
        (
            "task.public={name='mnist', samples=3, images=0}",
            "`task.public`: `images` = 0 takes no image of a data set: leave the data set out",
        ),
        (
            "task.public={samples=3, images=0, quality=5}",
            "`task.public`: `quality` has no meaning with `images` = 0: no image is stored",
        ),
        (
            "task.public={format='csv', samples=3}",
            "`task.public`: `format` needs `train`, the path of the training data",
        ),
        (
            "task.format=csv",
            "`task`: `name` and `format` exclude each other: `format` is for your own files",
        ),
        ("train.optimizer.lr=-0.1", "`train.optimizer.lr` = -0.1: must be greater than 0"),
        ("train.optimizer.lr=nan", "`train.optimizer.lr` = nan: must be a finite number"),
        ("train.optimizer.momentum=1", "`train.optimizer.momentum` = 1: must be less than 1"),
        ("train.optimizer.weight_decay=inf", "`train.optimizer.weight_decay` = inf: must be a finite number"),
        (
            "train.optimizer.name=adam",
            "`train.optimizer`: `momentum` = 0.9 is for sgd, and adam has none: leave it out, set it to 0, or"
            ' choose name = "sgd"',
        ),
        (
            "arms.1.train.optimizer={name='adam', momentum=0.5}",
            "`arms.1.train.optimizer`: `momentum` = 0.5 is for sgd, and adam has none: leave it out, set it"
            ' to 0, or choose name = "sgd"',
        ),
        (
            "train.optimizer.name=sdg",
            "`train.optimizer.name`: 'sdg' must be one of sgd, adam, adamw, or module:function. Did you mean"
            " 'sgd'?",
        ),
        ("train=3", "`train` = 3: must be a table of keys and values"),
        ("arms.0.train.epochs=0", "`arms.0.train.epochs` = 0: must be at least 1"),
        ("sampling.fraction=0", "`sampling.fraction` = 0: must be greater than 0"),
        ("sampling.dropout=1", "`sampling.dropout` = 1: must be less than 1"),
        ("models.clients=cnn-s", "`models.clients` = 'cnn-s': must be a list in [ ]"),
        ("models.clients=[]", "`models.clients` = []: must not be empty"),
        ("arms.0.method=3", "`arms.0.method` = 3: must be text in quotes"),
        (
            "arms=[]",
            "`arms` = []: must not be empty: write each arm as its own table, [[arms]] with two brackets",
        ),
        ("arms=['fedavg']", "`arms.0` = 'fedavg': must be a table of keys and values"),
        (
            "link=3",
            "`link` = 3: must be text in quotes, or a table { up = NUMBER, down = NUMBER, latency = NUMBER }",
        ),
        ("link={up=1, down=1}", "`link.latency` is missing"),
        ("link={up=0, down=1, latency=0}", "`link.up` = 0: must be greater than 0"),
        (
            "link=office",
            "`link` = 'office': must be a table or one of lora, nb-iot, 3g, 4g, satellite, office-dsl,"
            " data-centre. Did you mean 'office-dsl'?",
        ),
    ],
)
def test_an_impossible_value_is_one_line_that_says_what_is_possible(
    path: Path, override: str, said: str
) -> None:
    assert refusal(path, override) == [said]


def test_what_arms_inherit_is_complained_of_once_and_what_they_add_beside_it(path: Path) -> None:
    assert refusal(path, "train.epochs=0", "arms.1.train.batch_size=0") == [
        "`train.epochs` = 0: must be at least 1",
        "`arms.1.train.batch_size` = 0: must be at least 1",
    ]


def test_all_that_an_empty_file_lacks_comes_with_an_example(path: Path) -> None:
    path.write_text("")
    assert refusal(path) == [
        "`rounds` is missing: write, for example, rounds = 20 above the first [table]",
        '`task` is missing: write [task] and, below it, for example name = "digits"',
        '`models` is missing: write [models] and, below it, for example clients = ["cnn-s"] and server ='
        ' "cnn-m"',
        '`arms` is missing: write [[arms]] and, below it, for example method = "fedavg"',
    ]


def test_an_arm_without_a_method_is_refused(path: Path) -> None:
    path.write_text(FILE.replace('method = "fedavg"', 'codec = "fp16"'))
    assert refusal(path) == ["`arms.0.method` is missing"]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (
            "clients = 3",
            '`task`: set `name`, for example "digits", or, for your own files, `format` and `train`',
        ),
        ('format = "csv"', "`task`: `format` needs `train`, the path of the training data"),
    ],
)
def test_a_task_without_data_is_refused(path: Path, task: str, said: str) -> None:
    path.write_text(FILE.replace('name = "digits"', task))
    assert refusal(path) == [said]


def test_two_arms_of_one_name_are_refused_whether_the_name_is_given_or_the_method(path: Path) -> None:
    said = ["two arms are called 'dsfl'; give one of them another `name`"]
    assert refusal(path, "arms.0.method=dsfl") == said
    assert refusal(path, "arms.0.name=dsfl") == said
    assert [arm.name for arm in load(path, ["arms.0.method=dsfl", "arms.0.name=first"]).arms] == [
        "first",
        "dsfl",
    ]


def test_two_arms_whose_names_differ_in_case_alone_are_refused(path: Path) -> None:
    assert refusal(path, "arms.0.name=DSFL") == [
        "the arms 'DSFL' and 'dsfl' would share a folder where file systems ignore case: give one of them"
        " another `name`"
    ]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing, folder, latin = tmp_path / "none.toml", tmp_path / "folder", tmp_path / "latin.toml"
    folder.mkdir()
    latin.write_bytes("# ä\n".encode("latin-1"))
    for path, said in [
        (missing, "there is no such file"),
        (folder, "cannot be read ("),
        (latin, "cannot be read ("),
    ]:
        with pytest.raises(ExperimentError) as caught:
            load(path)
        assert str(caught.value).startswith(f"{path}: {said}")


def test_broken_toml_is_shown_with_its_line(path: Path) -> None:
    path.write_text("rounds = 2\n[task\n")
    (line,) = refusal(path)
    assert line.startswith("not valid TOML: ")
    assert "line 2" in line


def test_a_byte_order_mark_is_no_part_of_the_file(path: Path) -> None:
    plain = load(path)
    path.write_text(FILE, encoding="utf-8-sig")
    assert load(path) == plain


def test_arms_inherit_tables_and_merge_what_they_say_themselves(path: Path) -> None:
    path.write_text(
        FILE
        + """
[[arms]]
name = "mine"
method = "fedavg"
seed = 7
models = { server = "resnet-8" }
train = { optimizer = { lr = 0.5 } }
mu = 0.25
"""
    )
    experiment = load(path)
    first, _, mine = experiment.arms
    assert first.train == experiment.train
    assert first.models == experiment.models
    assert (first.name, first.codec, first.seed, first.settings) == ("fedavg", None, None, {})
    assert mine.models.clients == ["cnn-s", "mlp-s"]
    assert mine.models.server == "resnet-8"
    assert mine.train.epochs == 3
    assert mine.train.optimizer.model_dump() == {
        "name": "sgd",
        "lr": 0.5,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": None,
        "decay": "all",
        "clip_norm": None,
        "schedule": None,
    }
    assert (mine.seed, mine.settings) == (7, {"mu": 0.25})


@pytest.mark.parametrize(
    ("given", "arm", "found"),
    [
        ("name = 'sgd', lr = 0.1, momentum = 0.9", "name = 'adam'", ("adam", None, 0.0)),
        ("name = 'sgd', lr = 0.1, momentum = 0.9", "name = 'adam', lr = 0.002", ("adam", 0.002, 0.0)),
        ("name = 'adam', lr = 0.001", "name = 'sgd', momentum = 0.5", ("sgd", None, 0.5)),
        # Momentum makes it sgd, whatever the data.
        ("lr = 0.1, momentum = 0.9", "name = 'adam'", ("adam", None, 0.0)),
        ("name = 'sgd', lr = 0.1, momentum = 0.9", "name = 'sgd'", ("sgd", 0.1, 0.9)),
        # A rate for whichever optimizer suits the data.
        ("lr = 0.1", "name = 'adam'", ("adam", 0.1, 0.0)),
    ],
)
def test_an_arm_with_another_optimizer_inherits_nothing_of_the_first(
    path: Path, given: str, arm: str, found: tuple[str, float | None, float]
) -> None:
    text = FILE.replace('name = "sgd", lr = 0.1, momentum = 0.9', given)
    path.write_text(text + f"train = {{ optimizer = {{ {arm} }} }}\n")
    first, second = load(path).arms
    assert (second.train.epochs, first.train.optimizer) == (3, load(path).train.optimizer)
    chosen = second.train.optimizer
    assert (chosen.name, chosen.lr, chosen.momentum) == found


def test_without_a_train_table_all_arms_train_by_default(path: Path) -> None:
    start, end = FILE.index("[train]"), FILE.index("[[arms]]")
    path.write_text(FILE[:start] + FILE[end:])
    experiment = load(path)
    assert experiment.arms[0].train == experiment.train
    # What suits the data is chosen once the data are known.
    assert "optimizer" in experiment.train.model_dump(exclude_none=True)
    assert experiment.train.model_dump(exclude_unset=True) == {}
    images, texts = experiment.train.resolved("image"), experiment.train.resolved("text")
    assert (images.epochs, images.batch_size, images.optimizer.name, images.optimizer.lr) == (
        1,
        32,
        "sgd",
        0.05,
    )
    assert (texts.epochs, texts.batch_size, texts.optimizer.name, texts.optimizer.lr) == (4, 16, "adam", 0.01)


@pytest.mark.parametrize("data", ["image", "text"])
@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({"name": "adam"}, ("adam", 0.01)),
        ({"name": "sgd"}, ("sgd", 0.05)),
        ({"name": "sgd", "lr": 0.5}, ("sgd", 0.5)),
        ({"momentum": 0.9}, ("sgd", 0.05)),
        ({"lr": 0.25}, (None, 0.25)),
    ],
)
def test_what_is_left_open_of_an_optimizer_follows_from_the_rest(
    data: Literal["image", "text"], given: dict[str, Any], chosen: tuple[str | None, float]
) -> None:
    found = OptimizerConfig(**given).resolved(data)
    by_data = {"image": "sgd", "text": "adam"}[data]
    assert (found.name, found.lr) == (chosen[0] or by_data, chosen[1])
    assert found.resolved("image") == found


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("rounds=5", lambda e: e.rounds, 5),
        ("seed = 4", lambda e: e.seed, 4),
        ("train.optimizer.lr=1e-3", lambda e: e.train.optimizer.lr, 0.001),
        ("train.optimizer.lr=1e-3", lambda e: e.arms[1].train.optimizer.lr, 0.001),
        ("task.name=bbc-news", lambda e: e.task.name, "bbc-news"),
        ('task.name="bbc-news"', lambda e: e.task.name, "bbc-news"),
        ("task.name=hf:a/b=c", lambda e: e.task.name, "hf:a/b=c"),
        ("task.partition={kind='iid'}", lambda e: e.task.partition.kind, "iid"),
        ("task.public={name='mnist', samples=9}", lambda e: e.task.public_size, 9),
        ("task.public={samples=9, images=2}", lambda e: e.task.public_size, 9),
        ("models.clients=['mlp-s']", lambda e: e.arms[0].models.clients, ["mlp-s"]),
        ("sampling.fraction=0.5", lambda e: e.sampling.fraction, 0.5),
        ("arms.1.codec=fp32", lambda e: [a.codec for a in e.arms], [None, "fp32"]),
        ("arms.fedavg.codec=fp16", lambda e: [a.codec for a in e.arms], ["fp16", "fp16"]),
        ("arms.dsfl.train.epochs=9", lambda e: [a.train.epochs for a in e.arms], [3, 9]),
        ("arms.dsfl.aggregation=mean", lambda e: e.arms[1].settings, {"aggregation": "mean"}),
    ],
)
def test_set_changes_one_setting(
    path: Path, override: str, read: Callable[[Experiment], Any], value: Any
) -> None:
    assert read(load(path, [override])) == value


def test_of_two_overrides_the_later_one_counts(path: Path) -> None:
    assert load(path, ["rounds=5", "rounds=6"]).rounds == 6


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rounds", "--set rounds: write section.key=value, for example rounds=5"),
        ("=3", "--set =3: write section.key=value, for example rounds=5"),
        (
            "rounds.x=3",
            "--set rounds.x=3: `rounds` is a value, not a table: set it as a whole, rounds={ x = 3 }",
        ),
        (
            "task.public.samples=3",
            "--set task.public.samples=3: `task.public` is a value, not a table: set it as a whole,"
            " task.public={ samples = 3 }",
        ),
        (
            "arms.2.codec=fp16",
            "--set arms.2.codec=fp16: there is no arm '2'; the arms are 0 (fedavg), 1 (dsfl).",
        ),
        (
            "arms.dsf.codec=fp16",
            "--set arms.dsf.codec=fp16: there is no arm 'dsf'; the arms are 0 (fedavg), 1 (dsfl). Did you"
            " mean 'dsfl'?",
        ),
        (
            "arms.codec=fp16",
            "--set arms.codec=fp16: `arms` is a list: name a key of one of its tables, or set it as a whole,"
            " for example arms.0.codec=fp16",
        ),
        (
            "models.clients.0=mlp-s",
            "--set models.clients.0=mlp-s: `models.clients` is a list: name a key of one of its tables, or"
            ' set it as a whole, for example models.clients=["a", "b"]',
        ),
    ],
)
def test_an_override_that_fits_nowhere_shows_one_that_does(path: Path, override: str, said: str) -> None:
    assert refusal(path, override) == [said]


def test_local_files_are_found_from_the_experiment_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = path.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    path.write_text(
        FILE.replace(
            'name = "digits"\npublic = 100',
            'format = "csv"\ntrain = "data/a.csv"\ntest = "/far/b.csv"\n'
            'public = { format = "csv", train = "../c.csv", samples = 3 }\ntext = { tokenizer = "t.json" }',
        )
    )
    task = load(path).task
    here = path.parent
    assert (task.train, task.test) == (str(here / "data/a.csv"), "/far/b.csv")
    assert not isinstance(task.public, int)
    assert task.public.train == str(here.parent / "c.csv")
    assert task.text.tokenizer == str(here / "t.json")


def test_lists_of_files_and_files_of_a_partition_are_found_from_the_experiment_file(path: Path) -> None:
    path.write_text(
        FILE.replace(
            'name = "digits"',
            'format = "csv"\ntrain = ["a.csv", "/far/b.csv"]\ntest = "t/*.csv"\n',
        ).replace('{ kind = "dirichlet", alpha = 0.3 }', '{ kind = "indices", file = "p.json" }')
    )
    task, here = load(path).task, path.parent
    assert (task.train, task.test) == ([str(here / "a.csv"), "/far/b.csv"], str(here / "t/*.csv"))
    assert task.partition is not None
    assert task.partition.model_dump()["file"] == str(here / "p.json")


def test_the_splits_of_a_hub_data_set_are_no_paths(path: Path) -> None:
    path.write_text(FILE.replace('name = "digits"', 'name = "hf:a/b"\ntrain = "training"\ntest = "held"'))
    assert (load(path).task.train, load(path).task.test) == ("training", "held")


positive = st.floats(min_value=1e-6, max_value=1e6)
share = st.floats(min_value=0, max_value=0.99)
count = st.integers(min_value=1, max_value=10**6)
word = st.text(max_size=8)
models = st.fixed_dictionaries({"clients": st.lists(word, min_size=1, max_size=3), "server": word})
optimizer = st.one_of(
    st.fixed_dictionaries({"name": st.just("sgd")}, optional={"lr": positive, "momentum": share}),
    st.fixed_dictionaries({}, optional={"name": st.just("adam"), "lr": positive}),
)
train = st.fixed_dictionaries({}, optional={"epochs": count, "batch_size": count, "optimizer": optimizer})
partitions = st.one_of(
    st.just({"kind": "iid"}),
    st.fixed_dictionaries({"kind": st.just("dirichlet"), "alpha": positive}, optional={"min_samples": count}),
    st.fixed_dictionaries({"kind": st.just("pathological"), "classes_per_client": count}),
    st.fixed_dictionaries({"kind": st.just("quantity"), "alpha": positive}),
    st.fixed_dictionaries({"kind": st.just("natural")}, optional={"column": word}),
    st.fixed_dictionaries({"kind": st.just("natural"), "column": word, "file": st.just("s.csv")}),
    st.fixed_dictionaries({"kind": st.just("indices"), "clients": st.just([[0, 2], [1]])}),
    st.fixed_dictionaries({"kind": st.just("indices"), "clients": st.just({"a": [0]})}),
)
publics = st.one_of(
    st.integers(min_value=0, max_value=99),
    st.fixed_dictionaries({"name": word, "samples": count}, optional={"input": word, "subset": word}),
    st.fixed_dictionaries({"format": st.just("csv"), "train": st.just("p.csv"), "samples": count}),
    st.fixed_dictionaries({"samples": count}, optional={"images": count, "quality": st.integers(0, 100)}),
    st.fixed_dictionaries({"samples": count, "images": st.just(0)}),
)
tasks = st.fixed_dictionaries(
    {"name": word},
    optional={
        "clients": st.integers(min_value=1, max_value=99),
        "limit": count,
        "partition": partitions,
        "public": publics,
        "image_size": st.lists(st.integers(min_value=1, max_value=99), min_size=2, max_size=2),
        "text": st.fixed_dictionaries({}, optional={"length": st.integers(4, 99), "tokenizer": st.just("t")}),
    },
)
settings_of_methods = st.dictionaries(
    st.sampled_from(["mu", "temperature", "table"]),
    st.one_of(st.integers(), st.booleans(), word, positive, st.lists(share, max_size=2)),
)
arms = st.lists(
    st.tuples(
        st.fixed_dictionaries(
            {"name": word, "method": word},
            optional={"codec": word, "seed": count, "models": models, "train": train},
        ),
        settings_of_methods,
    ).map(lambda pair: pair[1] | pair[0]),
    min_size=1,
    max_size=3,
    unique_by=lambda arm: arm["name"],
)
links = st.one_of(
    st.sampled_from(sorted(PROFILES)),
    st.fixed_dictionaries({"up": positive, "down": positive, "latency": share}, optional={"title": word}),
)
experiments = st.fixed_dictionaries(
    {"rounds": count, "task": tasks, "models": models, "arms": arms},
    optional={"seed": count, "train": train, "link": links, "sampling": st.just({"fraction": 0.5})},
)


@given(experiments)
def test_what_is_written_out_is_the_experiment_that_was_read(raw: dict[str, Any]) -> None:
    experiment = parse(raw, "first", base=Path("/base"))
    again = parse(tomllib.loads(to_toml(experiment)), "second", base=Path("/elsewhere"))
    assert again == experiment
    assert to_toml(again) == to_toml(experiment)


@given(experiments)
def test_a_file_says_the_same_as_a_dictionary(raw: dict[str, Any]) -> None:
    assert parse(tomllib.loads(tomli_w.dumps(raw)), "file") == Experiment.model_validate(raw)


@pytest.mark.parametrize(
    ("overrides", "seeds"),
    [
        ([], [0]),
        (["seed=4"], [4]),
        (["seeds=3"], [0, 1, 2]),
        (["seed=4", "seeds=2"], [4, 5]),
        (["seeds=[7, 3]"], [7, 3]),
        (["seed=7", "seeds=[7, 3]"], [7, 3]),
    ],
)
def test_seeds_are_a_number_from_seed_on_or_a_list(
    path: Path, overrides: list[str], seeds: list[int]
) -> None:
    found = load(path, overrides)
    assert found.all_seeds == seeds
    alone = found.with_seed(seeds[-1])
    assert alone == load(path, [f"seed={seeds[-1]}"])
    assert parse(tomllib.loads(to_toml(found)), "again") == found


@pytest.mark.parametrize(
    "value", ["0", "-1", "1001", "1.5", "true", "'3'", "[]", "[1, 1]", "[-1]", "[0, true]"]
)
def test_wrong_seeds_are_refused_with_an_example(path: Path, value: str) -> None:
    (line,) = refusal(path, f"seeds={value}")
    given = tomllib.loads(f"value = {value}")["value"]
    assert line == (
        f"`seeds`: {given!r} must be a number of seeds from 1 to 1000, or a list of different seeds such as"
        " [0, 1, 2]"
    )


def test_seeds_take_the_place_of_other_seeds(path: Path) -> None:
    assert refusal(path, "seed=5", "seeds=[0, 1]") == [
        "`seed` = 5 is not the first of `seeds`, which takes its place: take `seed` out"
    ]
    assert refusal(path, "seeds=2", "arms.1.seed=5") == [
        "arm 'dsfl' has a `seed` of its own, but `seeds` gives all arms the same: take one of the two out"
    ]
