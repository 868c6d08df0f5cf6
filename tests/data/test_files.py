"""Local files of every format: what is read from them, and what is said of files that will not do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fedistill.data.task import Task
from fedistill.models.signature import Preprocessing
from helpers.files import Files

Make = Callable[..., Task]
Refused = Callable[..., str]

LABELS = ["no", "yes"] * 6
MISSING = (
    "values are missing in {} of 12 rows (no {!r} in {}: {}; the first row is 0): fill them in, or leave"
    " those rows out with task.drop_missing = true"
)
WORDS = [f"word{number} common" for number in range(12)]


def samples(task: Task) -> set[tuple[bytes, str]]:
    """All private and test samples with the names of their classes."""
    return {
        (image.numpy().tobytes(), task.classes[label])
        for part in (*task.clients, task.test)
        for image, label in zip(part.samples, part.labels.tolist(), strict=True)
    }


def test_images_of_a_parquet_file(make: Make, files: Files) -> None:
    pictures = files.pixels(12, height=5, width=7)
    train = files.images("train.parquet", pictures, LABELS)
    task = make(format="parquet", train=train)
    assert task.signature.shape == (1, 5, 7)
    assert task.classes == ("no", "yes")
    assert len(task.test) == 2  # a fifth of 12
    expected = {(one.tobytes(), label) for one, label in zip(pictures, LABELS, strict=True)}
    assert samples(task) == expected
    assert task.name == "train.parquet"
    assert make(format="parquet", train=train, title="Two kinds").name == "Two kinds"


def test_a_test_file_is_all_that_is_tested_on(make: Make, files: Files) -> None:
    pictures = files.pixels(16)
    task = make(
        format="parquet",
        train=files.images("train.parquet", pictures[:12], LABELS),
        test=files.images("test.parquet", pictures[12:], ["yes", "no", "no", "no"]),
    )
    assert task.test.samples.numpy().tobytes() == np.stack(pictures[12:]).tobytes()
    assert task.test.labels.tolist() == [1, 0, 0, 0]
    assert sum(map(len, task.clients)) == 12


@pytest.mark.parametrize("form", ["parquet", "csv", "json"])
def test_texts(make: Make, files: Files, form: str) -> None:
    write = {"parquet": files.parquet, "csv": files.csv, "json": files.json}[form]
    task = make(format=form, train=write(f"train.{form}", text=WORDS, label=LABELS), public=4)
    assert task.signature.kind == "text"
    assert task.classes == ("no", "yes")
    assert task.public is not None
    assert (len(task.test), len(task.public), sum(map(len, task.clients))) == (2, 4, 6)
    # Class counts of all parts together: none was lost or renamed.
    assert task.public_labels is not None
    everything = torch.cat([*(part.labels for part in (*task.clients, task.test)), task.public_labels])
    assert torch.bincount(everything).tolist() == [6, 6]


@pytest.mark.parametrize("named_test", [False, True])
def test_an_image_folder(make: Make, files: Files, named_test: bool) -> None:
    cats, dogs = files.pixels(8, seed=1), files.pixels(6, seed=2)
    train = files.tree("train", cat=cats[:6], dog=dogs)
    # Only one of the classes is tested: its folder must not become class 0.
    test = {"test": files.tree("test", dog=files.pixels(3, seed=3))} if named_test else {}
    task = make(format="imagefolder", train=train, **test)
    assert task.classes == ("cat", "dog")
    found = samples(task)
    expected = {(one.tobytes(), "cat") for one in cats[:6]} | {(one.tobytes(), "dog") for one in dogs}
    expected |= {(one.tobytes(), "dog") for one in files.pixels(3, seed=3)} if named_test else set()
    assert found == expected
    assert len(task.test) == (3 if named_test else 2)


def test_names_of_files_do_not_make_them_test_data(make: Make, files: Files) -> None:
    # A reader left to itself takes the files called test_* for the test split, and drops the rest.
    train = Path(files.tree("data [1]", a=files.pixels(6, seed=1), b=files.pixels(6, seed=2)))
    for path in sorted(train.glob("*/[135].png")):
        path.rename(path.with_name(f"test_{path.name}"))
    task = make(format="imagefolder", train=str(train))
    assert sum(map(len, task.clients)) + len(task.test) == 12


def test_an_image_folder_with_a_table_of_labels(make: Make, files: Files) -> None:
    pictures = files.pixels(10)
    folder = files.folder / "train"
    folder.mkdir()
    for number, picture in enumerate(pictures):
        (folder / f"{number}.png").write_bytes(files.png(picture))
    rows = "".join(f"{number}.png,{'xy'[number % 2]}\n" for number in range(10))
    (folder / "metadata.csv").write_text("file_name,label\n" + rows)
    task = make(format="imagefolder", train=str(folder))
    assert samples(task) == {(one.tobytes(), "xy"[number % 2]) for number, one in enumerate(pictures)}


def test_signs_that_readers_take_for_patterns_are_part_of_a_path(make: Make, files: Files) -> None:
    strange = files.images("a[1]*?.parquet", files.pixels(12), LABELS)
    files.images("a1x.parquet", files.pixels(30), [*LABELS, *LABELS, *LABELS[:6]])
    task = make(format="parquet", train=strange)
    assert sum(map(len, task.clients)) + len(task.test) == 12


def test_a_file_that_changed_is_read_anew(make: Make, files: Files) -> None:
    first = make(format="csv", train=files.csv("t.csv", text=WORDS, label=LABELS), public=4)
    again = make(format="csv", train=files.csv("t.csv", text=WORDS * 2, label=[3, 4, 5] * 8), public=4)
    assert first.classes == ("no", "yes")
    assert again.classes == ("3", "4", "5")


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["b", "a", "c", "a"], ("a", "b", "c"), [1, 0, 2, 0]),
        # Numbers in their own order, not that of texts; what they are does not matter.
        ([10, 9, 100, 9], ("9", "10", "100"), [1, 0, 2, 0]),
        ([1.0, 0.0, 1.0, 0.0], ("0", "1"), [1, 0, 1, 0]),
        ([True, False, True, True], ("False", "True"), [1, 0, 1, 1]),
    ],
)
def test_labels_of_any_type_become_classes_in_order(
    make: Make, files: Files, labels: list[Any], classes: tuple[str, ...], numbers: list[int]
) -> None:
    test = files.images("test.parquet", files.pixels(4), labels)
    task = make(format="parquet", train=files.images("train.parquet", files.pixels(8), labels * 2), test=test)
    assert task.classes == classes
    assert task.test.labels.tolist() == numbers


def class_labels(path: str, labels: list[int], names: list[str]) -> str:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    texts = [f"word{number} common" for number in range(len(labels))]
    datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features).to_parquet(path)
    return path


def test_named_labels_keep_their_names_and_order(make: Make, files: Files, tmp_path: Path) -> None:
    train = class_labels(str(tmp_path / "train.parquet"), [0, 1, 2] * 4, ["z", "y", "x"])
    # The same names in another order: a number alone says nothing.
    test = class_labels(str(tmp_path / "test.parquet"), [0, 1, 1], ["x", "z"])
    plain = files.parquet("plain.parquet", text=WORDS[:3], label=[2, 0, 0])
    words = files.parquet("words.parquet", text=WORDS[:3], label=["x", "z", "z"])
    for path in (test, plain, words):
        task = make(format="parquet", train=train, test=path, public=4)
        assert task.classes == ("z", "y", "x")
        assert task.test.labels.tolist() == [2, 0, 0]


def test_columns_are_guessed_by_their_usual_names_and_taken_as_given(make: Make, files: Files) -> None:
    # Two columns of each sort, with other content: which one was read shows in the classes.
    path = files.csv(
        "train.csv", sentence=WORDS, body=[f"x{one}" for one in WORDS], category=LABELS, size=[1, 2, 3] * 4
    )
    assert make(format="csv", train=path, public=4).classes == ("no", "yes")
    given = make(format="csv", train=path, public=4, label="size", input="body")
    assert given.classes == ("1", "2", "3")
    guessed = make(format="csv", train=path, public=4, label="size")
    assert given.vocabulary_frame != guessed.vocabulary_frame


def test_columns_that_cannot_be_guessed_are_listed(refused: Refused, files: Files) -> None:
    path = files.csv("train.csv", body=WORDS, verdict=LABELS)
    assert refused(format="csv", train=path) == (
        f"{path}: cannot tell which column is the label; set task.label to one of body, verdict"
    )
    assert refused(format="csv", train=path, label="verdict") == (
        f"{path}: cannot tell which column is the input; set task.input to one of body, or, if each row is a"
        " sample and its columns are the inputs, write [task.table]"
    )


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"label": "labl"},
            "task.label = 'labl' is not a column; there are text, label. Did you mean 'label'?",
        ),
        ({"input": "txt"}, "task.input = 'txt' is not a column; there are text. Did you mean 'text'?"),
        (
            {"label": "text", "input": "label"},
            "column 'label' holds numbers, neither images nor texts; set task.input",
        ),
        (
            {"partition": {"kind": "natural", "column": "lable"}},
            "task.partition.column = 'lable' is not a column; there are text, label. Did you mean 'label'?",
        ),
    ],
)
def test_columns_that_are_not_there_offer_the_nearest(
    refused: Refused, files: Files, keys: dict[str, Any], said: str
) -> None:
    path = files.csv("train.csv", text=WORDS, label=[0, 1] * 6)
    assert refused(format="csv", train=path, public=4, **keys).removeprefix(f"{path}: ") == said


def test_natural_clients_are_the_values_of_a_column(make: Make, refused: Refused, files: Files) -> None:
    place = ["north", "south", "north", "east"] * 5
    texts = [f"{one} common" for one in place]
    path = files.csv("train.csv", text=texts, label=[0, 1, 1, 0] * 5, hospital=place)
    test = files.csv("test.csv", text=texts[:4], label=[0, 1, 1, 0])
    public = files.csv("public.csv", text=["north", "south", "east"])
    keys = {
        "format": "csv",
        "train": path,
        "test": test,
        "public": {"format": "csv", "train": public, "samples": 3},
        "text": {"length": 4},
    }
    task = make(**keys, clients=3, partition={"kind": "natural", "column": "hospital"})
    # The first word of each text is its hospital: one a client, the largest first.
    firsts = [task.client_inputs(client, Preprocessing())[:, 0].unique().tolist() for client in range(3)]
    assert [len(one) for one in firsts] == [1, 1, 1]
    assert len({one[0] for one in firsts}) == 3
    assert [len(client) for client in task.clients] == [10, 5, 5]
    assert refused(**keys, clients=4, partition={"kind": "natural", "column": "hospital"}) == (
        "task.partition: column 'hospital' has 3 sites among the private samples, but task.clients = 4: set"
        " task.clients to at most 3, or leave it out"
    )


def test_a_sample_without_an_owner_is_refused(refused: Refused, files: Files) -> None:
    owners = ["a", "b", None] * 4
    path = files.parquet("train.parquet", text=WORDS, label=LABELS, owner=owners)
    said = refused(format="parquet", train=path, public=4, partition={"kind": "natural", "column": "owner"})
    assert said == f"{path}: {MISSING.format(4, 'owner', 4, 'rows 2, 5, 8, 11')}"


def test_embedded_tasks_have_no_columns_for_natural_clients(refused: Refused) -> None:
    assert refused(name="digits", partition={"kind": "natural", "column": "writer"}) == (
        "task.partition.column = 'writer': this task has no columns besides inputs and labels; choose another"
        " partition kind"
    )


@pytest.mark.parametrize("form", ["parquet", "csv", "json", "imagefolder"])
def test_a_path_to_nothing_is_named_with_its_setting(refused: Refused, files: Files, form: str) -> None:
    nothing = str(files.folder / "nothing")
    what = "folder" if form == "imagefolder" else "file"
    assert refused(format=form, train=nothing) == f"task.train = {nothing}: there is no such {what}"
    good = files.csv("train.csv", text=WORDS, label=LABELS)
    if form == "csv":
        assert refused(format=form, train=good, test=nothing) == (
            f"task.test = {nothing}: there is no such {what}"
        )


def test_a_folder_for_a_file_and_a_file_for_a_folder(refused: Refused, files: Files) -> None:
    path = files.csv("train.csv", text=WORDS, label=LABELS)
    (files.folder / "bare").mkdir()
    folder = str(files.folder / "bare")
    assert refused(format="imagefolder", train=path) == (
        f"task.train = {path}: format 'imagefolder' needs a folder with one subfolder of images for each"
        " class"
    )
    assert refused(format="csv", train=folder) == (f"task.train = {folder}: there are no csv files in it")


def test_a_corrupt_file_is_named_with_what_the_reader_says(
    refused: Refused, files: Files, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = Path(files.images("whole.parquet", files.pixels(12), LABELS)).read_bytes()
    cut = files.folder / "cut.parquet"
    cut.write_bytes(whole[:-20])
    broken = files.text("broken.jsonl", '{"text": "a", "label": 0}\n{"text": \n')
    binary = files.images("binary.parquet", files.pixels(12), LABELS)
    for form, path in [("parquet", str(cut)), ("json", broken), ("csv", binary)]:
        said = refused(format=form, train=path)
        assert said.startswith(f"task.train = {path}: cannot be read as {form} (")
        assert "\n" not in said
    assert capfd.readouterr().err == ""


def test_a_table_without_rows_is_refused(refused: Refused, files: Files) -> None:
    parquet = files.images("e.parquet", [], pa.array([], pa.int64()))
    header, nothing = files.text("h.csv", "text,label\n"), files.text("e.csv", "")
    for form, path in [("parquet", parquet), ("csv", header), ("csv", nothing)]:
        assert refused(format=form, train=path) == f"task.train = {path}: has no rows"
    good = files.csv("train.csv", text=WORDS, label=LABELS)
    assert refused(format="csv", train=good, test=header) == f"task.test = {header}: has no rows"
    bare = files.folder / "bare"
    (bare / "cat").mkdir(parents=True)
    assert refused(format="imagefolder", train=str(bare)) == (
        f"task.train = {bare}: there are no images in it"
    )


def test_broken_images_in_a_good_file_are_found_by_their_row(refused: Refused, files: Files) -> None:
    good = files.pixels(12)
    cut = files.png(good[0])[:-30]
    told = "the image of row 7 (the first is 0) cannot be decoded"
    cases: list[tuple[bytes | None, str]] = [
        (cut, f"{told} (image file is truncated)"),
        (b"no picture", f"{told} (not a format that Pillow knows)"),
        (None, MISSING.format(1, "image", 1, "row 7")),
    ]
    whole = files.images("whole.parquet", good, LABELS)
    for number, (bad, said) in enumerate(cases):
        path = files.images(f"{number}.parquet", [*good[:7], bad, *good[8:]], LABELS)
        assert refused(format="parquet", train=path) == f"{path}: {said}"
        assert refused(format="parquet", train=whole, test=path) == f"{path}: {said}"


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            [*LABELS[:11], None],
            MISSING.format(1, "label", 1, "row 11"),
        ),
        (["same"] * 12, "column 'label' has only one value, so there is nothing to learn"),
        (
            [[0], [1]] * 6,
            "column 'label' holds lists, as for multi-label classification; fedistill learns to classify,"
            " with one label for each sample: keep the samples with one label, or make a column with one",
        ),
        (
            [0.5, 1.0] * 6,
            "column 'label' holds fractional numbers such as 0.5, but labels must be classes (regression is"
            " not supported)",
        ),
    ],
    ids=["null", "one class", "lists", "fractions"],
)
def test_labels_that_are_no_classes_are_refused(
    refused: Refused, files: Files, labels: list[Any], said: str
) -> None:
    path = files.parquet("train.parquet", text=WORDS, label=labels)
    assert refused(format="parquet", train=path, public=4) == f"{path}: {said}"


def test_a_missing_value_in_a_csv_is_no_class_of_its_own(refused: Refused, files: Files) -> None:
    path = files.csv("train.csv", text=WORDS, label=[0, 1] * 5 + [0, ""])
    assert refused(format="csv", train=path, public=4) == (
        f"{path}: {MISSING.format(1, 'label', 1, 'row 11')}"
    )
    path = files.parquet("train.parquet", text=[*WORDS[:11], None], label=LABELS)
    assert refused(format="parquet", train=path, public=4) == (
        f"{path}: {MISSING.format(1, 'text', 1, 'row 11')}"
    )


def test_named_labels_may_be_missing_or_beyond_the_names(refused: Refused, tmp_path: Path) -> None:
    path = class_labels(str(tmp_path / "m.parquet"), [0, 1, -1] * 4, ["a", "b"])
    assert refused(format="parquet", train=path, public=4) == (
        f"{path}: {MISSING.format(4, 'label', 4, 'rows 2, 5, 8, 11')}"
    )
    only = class_labels(str(tmp_path / "o.parquet"), [1] * 12, ["a", "b"])
    assert "has only one value" in refused(format="parquet", train=only, public=4)
    table = pq.read_table(class_labels(str(tmp_path / "b.parquet"), [0, 1, 1] * 4, ["a", "b"]))
    table = table.set_column(1, table.schema.field("label"), pa.array([0, 1, 5] * 4))
    pq.write_table(table, tmp_path / "b.parquet")
    assert refused(format="parquet", train=str(tmp_path / "b.parquet"), public=4) == (
        f"{tmp_path / 'b.parquet'}: labels [5] in column 'label' have no class name"
    )


def test_an_image_folder_of_one_class_says_how_folders_are_read(refused: Refused, files: Files) -> None:
    path = files.tree("train", only=files.pixels(6))
    assert refused(format="imagefolder", train=path) == (
        f"{path}: column 'label' has only one value, so there is nothing to learn (put the images of each"
        " class into a folder of their own)"
    )


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (
            ["a", "b"] * 6,
            ["a", "c", "d"],
            "labels ['c', 'd'] do not occur in the training data, which have 'a', 'b'",
        ),
        # The quotes show what is wrong.
        ([0, 1] * 6, ["0", "1", "1"], "labels ['0', '1'] do not occur in the training data, which have 0, 1"),
    ],
)
def test_a_test_label_that_training_lacks_is_refused(
    refused: Refused, files: Files, train: list[Any], test: list[Any], said: str
) -> None:
    first = files.parquet("train.parquet", text=WORDS, label=train)
    second = files.parquet("test.parquet", text=WORDS[:3], label=test)
    assert refused(format="parquet", train=first, test=second, public=4) == (
        f"{second}: {said}; both parts need the same classes: drop those rows or map their labels"
    )


def test_test_data_of_another_make_are_refused(refused: Refused, files: Files) -> None:
    train = files.parquet("train.parquet", text=WORDS, label=LABELS)
    other = files.parquet("other.parquet", body=WORDS, label=LABELS)
    assert refused(format="parquet", train=train, test=other, public=4) == (
        f"{other}: the test data need the columns 'label' and 'text' of the training data; they have body,"
        " label"
    )
    numbers = files.parquet("numbers.parquet", text=[1] * 12, label=LABELS)
    assert refused(format="parquet", train=train, test=numbers, public=4) == (
        f"{numbers}: column 'text' holds values of type int64, neither images nor texts; set task.input"
    )


def test_images_of_different_sizes_need_one_to_be_scaled_to(
    make: Make, refused: Refused, files: Files
) -> None:
    mixed = files.images("train.parquet", [*files.pixels(10), *files.pixels(2, 9, 6)], LABELS)
    assert refused(format="parquet", train=mixed) == (
        f"{mixed}: images differ in size, 8x8 pixels and, in row 10, 9x6; set task.image_size ="
        " [height, width]"
    )
    task = make(format="parquet", train=mixed, image_size=[4, 6])
    assert task.signature.shape == (1, 4, 6)
    assert task.test.samples.shape[1:] == (1, 4, 6)


def test_a_test_set_of_another_size_is_refused_before_a_model_fails_on_it(
    make: Make, refused: Refused, files: Files
) -> None:
    train = files.images("train.parquet", files.pixels(12), LABELS)
    test = files.images("test.parquet", files.pixels(4, 9, 6), LABELS[:4])
    assert refused(format="parquet", train=train, test=test) == (
        "task: test images are 9x6 pixels, private ones are 8x8; set task.image_size = [height, width]"
    )
    assert make(format="parquet", train=train, test=test, image_size=[8, 8]).test.samples.shape[2:] == (8, 8)


def test_grey_and_colour_are_brought_to_what_the_private_images_are(make: Make, files: Files) -> None:
    grey, colour = files.pixels(12), files.pixels(12, channels=3)
    mixed = make(format="parquet", train=files.images("m.parquet", [*grey[:6], *colour[:6]], LABELS))
    assert mixed.signature.shape == (3, 8, 8)
    assert samples(mixed) == {
        (pixels.tobytes(), label)
        for pixels, label in zip(
            [*(np.stack([one] * 3) for one in grey[:6]), *(one.transpose(2, 0, 1) for one in colour[:6])],
            LABELS,
            strict=True,
        )
    }
    first, second = files.images("g.parquet", grey, LABELS), files.images("c.parquet", colour, LABELS)
    assert make(format="parquet", train=first, test=second).test.samples.shape == (12, 1, 8, 8)
    brought = make(format="parquet", train=second, test=first).test.samples
    assert torch.equal(brought, torch.from_numpy(np.stack(grey))[:, None].expand(-1, 3, -1, -1))


def test_copies_of_one_image_are_on_one_side(make: Make, files: Files) -> None:
    # Ten images, six copies each: without care each would be everywhere.
    pictures = [one for one in files.pixels(10) for _ in range(6)]
    path = files.images("train.parquet", pictures, ["a", "b"] * 30)
    task = make(format="parquet", train=path, public=8)
    assert task.public is not None
    sides = [
        {image.numpy().tobytes() for image in inputs}
        for inputs in (task.test.samples, task.public.samples, torch.cat([c.samples for c in task.clients]))
    ]
    test, public, private = sides
    assert not test & public
    assert not test & private
    assert not public & private
    assert len(task.test) == 12
    assert len(task.public) == 8


def test_a_public_set_of_which_all_others_are_copies_is_refused(refused: Refused, files: Files) -> None:
    # Two images; the one that is not tested on is public, and nobody has another.
    path = files.images("train.parquet", [one for one in files.pixels(2) for _ in range(6)], LABELS)
    assert refused(format="parquet", train=path, public=2, test_share=0.4) == (
        "task.public = 2: all other training samples are copies of public ones; nothing would be left for the"
        " clients"
    )


def test_a_test_share_that_takes_everything_is_refused(refused: Refused, files: Files) -> None:
    path = files.images("train.parquet", files.pixels(1) * 12, LABELS)
    assert refused(format="parquet", train=path) == "task.test_share = 0.2 leaves nothing to train on"


def test_images_that_lie_in_files_of_their_own(make: Make, refused: Refused, files: Files) -> None:
    pictures = files.pixels(12)
    cells = []
    for number, picture in enumerate(pictures):
        (files.folder / f"{number}.png").write_bytes(files.png(picture))
        cells.append({"bytes": None, "path": str(files.folder / f"{number}.png")})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path = files.parquet("train.parquet", image=pa.array(cells, type=kind), label=LABELS)
    assert {image for image, _ in samples(make(format="parquet", train=path))} == {
        one.tobytes() for one in pictures
    }
    (files.folder / "3.png").unlink()
    said = refused(format="parquet", train=path)
    assert said.startswith(f"{path}: the image of row 3 (the first is 0) cannot be read ([Errno 2]")
