"""Sites: their names, who takes part, several files of one split, and lists of positions."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError
from torch import Tensor

from fedistill.config.task import TaskConfig
from fedistill.data.build import build_task
from fedistill.data.samples import Texts
from fedistill.data.task import AbsentSite, Task
from fedistill.errors import ExperimentError
from helpers.files import Files

TEST = {"text": ["t0", "t1"], "label": ["a", "b"]}


def build(**keys: object) -> Task:
    """A task without a set number of clients, of whom none holds out anything."""
    return build_task(TaskConfig.model_validate({"public": 0, "own_test_share": 0, **keys}), 0)


def refused(**keys: object) -> str:
    with pytest.raises(ExperimentError) as caught:
        build(**keys)
    return str(caught.value)


def held(task: Task) -> list[set[str]]:
    """The texts of each client."""
    texts = [data.samples for data in task.clients]
    assert all(isinstance(one, Texts) for one in texts)
    return [set(one) for one in texts]


@pytest.fixture
def tokens(files: Files) -> dict[str, str]:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    path = files.folder / "t.json"
    Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(path))
    return {"tokenizer": str(path)}


@pytest.fixture
def hospitals(files: Files, tokens: dict[str, str]) -> dict[str, object]:
    """Site b has 4 samples, c has 2, a and d have 1."""
    sites = ["b", "c", "b", "a", "b", "c", "b", "d"]
    train = files.csv("train.csv", text=[f"x{row}" for row in range(8)], label=["a", "b"] * 4, hospital=sites)
    return {"format": "csv", "train": train, "test": files.csv("test.csv", **TEST), "text": tokens}


COLUMN = {"kind": "natural", "column": "hospital"}


def test_all_sites_of_a_column_take_part_the_largest_first(hospitals: dict[str, object]) -> None:
    task = build(**hospitals, partition=COLUMN)
    assert task.client_names == ("b", "c", "a", "d")
    assert held(task) == [{"x0", "x2", "x4", "x6"}, {"x1", "x5"}, {"x3"}, {"x7"}]
    assert (task.absent, task.unused) == ((), 0)


def test_fewer_clients_than_sites_leave_out_the_smallest_by_name(hospitals: dict[str, object]) -> None:
    task = build(**hospitals, partition=COLUMN, clients=2)
    assert task.client_names == ("b", "c")
    assert task.absent == (AbsentSite("a", 1, 1), AbsentSite("d", 1, 1))
    assert held(task) == held(build(**hospitals, partition=COLUMN))[:2]
    assert refused(**hospitals, partition=COLUMN, clients=5) == (
        "task.partition: column 'hospital' has 4 sites among the private samples, but task.clients = 5: set"
        " task.clients to at most 4, or leave it out"
    )


def test_a_site_whose_samples_were_all_held_out_is_named(hospitals: dict[str, object]) -> None:
    task = build(**hospitals | {"public": 5}, partition=COLUMN)
    assert task.public is not None
    assert isinstance(task.public.samples, Texts)
    public = set(task.public.samples)
    sizes = {"b": {"x0", "x2", "x4", "x6"}, "c": {"x1", "x5"}, "a": {"x3"}, "d": {"x7"}}
    gone = {name for name, texts in sizes.items() if texts <= public}
    assert gone, "five of eight samples are public: the seed has to be another one"
    assert {site.name for site in task.absent} == gone
    assert all((site.samples, site.private) == (len(sizes[site.name]), 0) for site in task.absent)
    assert set(task.client_names) == set(sizes) - gone


def test_names_of_sites_are_saved_and_seen_by_the_fingerprint(
    hospitals: dict[str, object], tmp_path: Path
) -> None:
    task = build(**hospitals, partition=COLUMN)
    task.save(tmp_path / "task")
    assert Task.open(tmp_path / "task").client_names == task.client_names
    assert Task.open(tmp_path / "task").fingerprint() == task.fingerprint()


@pytest.mark.parametrize("pattern", [False, True])
def test_one_file_per_site_is_a_natural_partition(
    files: Files, tokens: dict[str, str], pattern: bool
) -> None:
    paths = [
        files.csv("north.csv", text=["n0", "n1"], label=["a", "b"]),
        files.csv("south.csv", text=["s0", "s1", "s2"], label=["b", "c", "b"]),
        files.csv("west.csv", text=["w0"], label=["a"]),
    ]
    test = [files.csv("t-1.csv", **TEST), files.csv("t-2.csv", text=["t2"], label=["c"])]
    train: object = str(files.folder / "*th.csv") if pattern else paths
    task = build(format="csv", train=train, test=test, text=tokens)
    assert task.classes == ("a", "b", "c")
    assert task.client_names == (("south", "north") if pattern else ("south", "north", "west"))
    assert held(task) == [{"s0", "s1", "s2"}, {"n0", "n1"}, {"w0"}][: 2 if pattern else 3]
    assert [data.labels.tolist() for data in task.clients[:2]] == [[1, 2, 1], [0, 1]]
    assert set(task.test.samples) == {"t0", "t1", "t2"}
    assert task.partition == "natural(one file per client)"
    # Another partition takes all files as one.
    drawn = build(format="csv", train=train, test=test, text=tokens, clients=2, partition={"kind": "iid"})
    assert drawn.client_names == ()
    assert set.union(*held(drawn)) == set.union(*held(task))


def test_folders_of_images_that_number_their_classes_otherwise(files: Files) -> None:
    """Each folder numbers the classes that it has from 0: names count, not numbers."""
    pixels = iter(files.pixels(6))
    for site, classes in (("a", ["cat", "dog"]), ("b", ["dog", "emu"]), ("test", ["cat", "emu"])):
        for name in classes:
            folder = files.folder / site / name
            folder.mkdir(parents=True)
            (folder / "x.png").write_bytes(files.png(next(pixels)))
    task = build(
        format="imagefolder",
        train=[str(files.folder / "a"), str(files.folder / "b")],
        test=str(files.folder / "test"),
    )
    assert task.classes == ("cat", "dog", "emu")
    assert task.client_names == ("a", "b")
    assert task.class_counts().tolist() == [[1, 1, 0], [0, 1, 1]]
    assert task.test.labels.tolist() == [0, 2]


def test_files_of_one_name_in_folders_of_sites_are_called_by_their_folders(
    files: Files, tokens: dict[str, str]
) -> None:
    for site in ("rome", "oslo"):
        (files.folder / site).mkdir()
        files.csv(f"{site}/train.csv", text=[f"{site}0", f"{site}1"], label=["a", "b"])
    pattern = str(files.folder / "*" / "train.csv")
    task = build(format="csv", train=pattern, test=files.csv("t.csv", **TEST), text=tokens)
    assert task.client_names == ("oslo/train", "rome/train")


def test_files_that_do_not_fit_together_are_refused(files: Files, tokens: dict[str, str]) -> None:
    one = files.parquet("one.parquet", text=["x"], label=[1])
    other = files.parquet("other.parquet", text=["y"], label=["b"])
    third = files.parquet("third.parquet", words=["y"], kind=["b"])

    def said(*train: str) -> str:
        return refused(format="parquet", train=list(train), text=tokens)

    assert said(one, other) == (
        "task.train: column 'label' is int64 in one, string in other; write it alike in all files"
    )
    assert said(one, third) == "task.train: one, third have no column in common"
    assert said(one, one) == f"task.train: {one} is named twice; take one of them away"
    missing = str(files.folder / "none")
    assert said(one, missing) == f"task.train = {missing}: there is no such file"
    assert refused(format="parquet", train=f"{missing}*.csv") == (
        f"task.train = {missing}*.csv: no file matches this pattern"
    )
    whole = files.parquet("whole.parquet", text=["x", "y"], label=["a", "b"])
    assert refused(format="parquet", train=whole, partition={"kind": "natural"}, text=tokens) == (
        "task.partition: a natural partition needs the column that names each sample's client: set"
        " task.partition.column, or list one file for each client in task.train"
    )


def test_one_of_several_files_as_public_data_is_refused(files: Files) -> None:
    paths = [files.csv(f"{name}.csv", text=[f"{name}0", f"{name}1"], label=["a", "b"]) for name in "xy"]
    public = {"format": "csv", "train": paths[1], "samples": 1}
    assert "task.public names the task's own data" in refused(format="csv", train=paths, public=public)


LISTS = [[0, 5, 7], [1, 2]]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("in_file", [False, True])
def test_lists_of_positions_are_a_partition(
    files: Files, hospitals: dict[str, object], named: bool, in_file: bool
) -> None:
    lists = dict(zip(("west", "east"), LISTS, strict=True)) if named else LISTS
    given = {"file": files.text("parts.json", json.dumps(lists))} if in_file else {"clients": lists}
    task = build(**hospitals, partition={"kind": "indices", **given})
    assert task.client_names == (("west", "east") if named else ("0", "1"))
    assert held(task) == [{"x0", "x5", "x7"}, {"x1", "x2"}]
    assert task.unused == 3


def test_lists_of_positions_on_a_named_data_set() -> None:
    """Positions are those of the source, whatever is held out for the test and public sets before."""
    from sklearn.datasets import load_digits

    lists = [list(range(900)), list(range(900, 1797))]
    task = build(name="digits", public=100, partition={"kind": "indices", "clients": lists})
    pixels = (load_digits().images * (255 / 16)).round().astype("uint8")
    for data, rows in zip(task.clients, lists, strict=True):
        own = {pixels[row].tobytes() for row in rows}
        assert all(picture.numpy().tobytes() in own for picture in data.samples)
    assert sum(task.samples()) + len(task.test) + 100 == 1797


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ([[0], [8]], "client '1' lists position 8, but the training data have 8 samples, 0 to 7"),
        (
            {"a": [3], "b": [1, 3]},
            "position 3 is listed twice, for client 'a' and for client 'b'; a sample belongs to one client",
        ),
        (
            [[2, 2], [1]],
            "position 2 is listed twice, for client '0' and for client '0'; a sample belongs to one client",
        ),
        ([[0, 1], []], "client '1' lists no samples; take it away"),
    ],
)
def test_lists_that_cannot_be_are_refused(hospitals: dict[str, object], lists: object, said: str) -> None:
    partition = {"kind": "indices", "clients": lists}
    assert refused(**hospitals, partition=partition) == f"task.partition.clients: {said}"


@pytest.mark.parametrize("content", ["no json", '{"a": 3}', "[[0.5]]", "[[-1]]", '[["0"]]'])
def test_a_file_that_holds_no_lists_is_refused(
    files: Files, hospitals: dict[str, object], content: str
) -> None:
    path = files.text("parts.json", content)
    said = refused(**hospitals, partition={"kind": "indices", "file": path})
    assert said.startswith(f"task.partition.file = {path}: must be JSON with the positions of each client's")
    missing = str(files.folder / "none.json")
    assert refused(**hospitals, partition={"kind": "indices", "file": missing}) == (
        f"task.partition.file = {missing}: there is no such file"
    )


def test_a_column_in_a_file_of_its_own_divides_any_data_set(files: Files) -> None:
    path = files.csv("sites.csv", site=["east"] * 1000 + ["west"] * 797)
    partition = {"kind": "natural", "column": "site", "file": path}
    task = build(name="digits", partition=partition)
    lists = {"east": list(range(1000)), "west": list(range(1000, 1797))}
    same = build(name="digits", partition={"kind": "indices", "clients": lists})
    assert task.client_names == same.client_names == ("east", "west")
    for one, other in zip(task.clients, same.clients, strict=True):
        assert isinstance(one.samples, Tensor)
        assert isinstance(other.samples, Tensor)
        assert one.samples.equal(other.samples)
    short = files.csv("short.csv", site=["east"] * 5)
    assert refused(name="digits", partition=partition | {"file": short}) == (
        f"task.partition.file = {short} has 5 rows, but the training data have 1797: it needs one row for"
        " each training sample, in their order"
    )
    assert refused(name="digits", partition=partition | {"column": "sitte"}) == (
        f"{path}: task.partition.column = 'sitte' is not a column; there are site. Did you mean 'site'?"
    )


def test_a_class_is_left_out_on_both_sides(files: Files, tokens: dict[str, str]) -> None:
    train = files.csv("train.csv", text=[f"x{n}" for n in range(6)], label=["a", "r", "b", "a", "b", "r"])
    test = files.csv("test.csv", text=["t0", "t1", "t2"], label=["a", "r", "b"])
    keys = {"format": "csv", "train": train, "test": test, "text": tokens, "clients": 2}
    task = build(**keys, exclude_classes=["r"])
    assert task.classes == ("a", "b")
    assert set.union(*held(task)) == {"x0", "x2", "x3", "x4"}
    assert (list(task.test.samples), task.test.labels.tolist()) == (["t0", "t2"], [0, 1])
    # Positions are those of the file.
    listed = build(**keys, exclude_classes=["r"], partition={"kind": "indices", "clients": [[0, 1, 2], [4]]})
    assert held(listed) == [{"x0", "x2"}, {"x4"}]
    held_out = build(**keys | {"test": None}, exclude_classes=["r"], test_share=0.5)
    assert len(held_out.test) + sum(held_out.samples()) == 4
    assert refused(**keys, exclude_classes=["rr"]) == (
        "task.exclude_classes: 'rr' is not a class of the data; they have a, b, r."
    )
    assert refused(**keys, exclude_classes=["r", "a"]) == (
        "task.exclude_classes leaves fewer than two classes, so there is nothing to learn"
    )


def test_the_advice_for_rare_classes_works(make: Callable[..., Task], files: Files) -> None:
    labels = [*"abcde"] * 5 + ["f", "g", "g"]
    pixels = files.images("train.parquet", files.pixels(28), labels)
    keys = {
        "format": "parquet",
        "train": pixels,
        "test": files.images("test.parquet", files.pixels(5, seed=1), [*"abcde"]),
        "clients": 5,
        "partition": {"kind": "pathological", "classes_per_client": 2},
    }
    said = refused(**keys)
    assert said.endswith(
        'lower task.clients to 1, or leave out the rare classes: task.exclude_classes = ["f", "g"]'
    )
    assert len(build(**keys | {"clients": 1}).clients) == 1
    assert len(build(**keys, exclude_classes=["f", "g"]).clients) == 5


@pytest.mark.parametrize(
    "partition",
    [{"kind": "indices", "clients": [[0], [1]]}, {"kind": "natural", "column": "site", "file": "sites.csv"}],
)
def test_positions_and_rows_that_are_left_out_exclude_each_other(partition: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="`drop_missing` would change the positions"):
        TaskConfig.model_validate({"name": "digits", "partition": partition, "drop_missing": True})
