"""Who gets which samples: properties of every kind, and what cannot be is refused at once."""

from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from flwr_datasets import partitioner as flwr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter

from fedistill.config.partitions import Partition
from fedistill.data.partition import partition, partition_title
from fedistill.errors import ExperimentError
from fedistill.rng import numpy_stream

Kind = dict[str, Any]
Rows = NDArray[np.int64]


def deal(kind: Kind, labels: list[int], clients: int, seed: int = 0) -> list[Rows]:
    setting = TypeAdapter(Partition).validate_python(kind)
    return partition(setting, np.array(labels, dtype=np.int64), clients, seed, "abcdefghij")


def check_disjoint(parts: list[Rows], total: int, whole: bool = True) -> None:
    rows = [int(row) for part in parts for row in part]
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(range(total))
    if whole:
        assert len(rows) == total


labels = st.lists(st.integers(0, 4), min_size=1, max_size=120)
seeds = st.integers(0, 2**63)
alphas = st.floats(min_value=1e-3, max_value=1e3) | st.sampled_from([5e-324, 1e-300, 1e300])


@st.composite
def enough(draw: st.DrawFn, most: int = 3) -> tuple[list[int], int, int]:
    """Labels, a number of clients, and at most so many samples that each of them can have."""
    drawn = draw(labels)
    least = draw(st.integers(1, min(most, len(drawn))))
    return drawn, draw(st.integers(1, min(10, len(drawn) // least))), least


@st.composite
def classes_for_all(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Labels with a sample of each class for each client, a number of clients, and of classes for each."""
    clients = draw(st.integers(1, 10))
    counts = draw(st.lists(st.integers(clients, 25), min_size=1, max_size=5))
    drawn = draw(st.permutations([label for label, count in enumerate(counts) for _ in range(count)]))
    return drawn, clients, draw(st.integers(1, len(counts)))


@given(enough(1), seeds)
def test_iid_gives_everyone_the_same_number(asked: tuple[list[int], int, int], seed: int) -> None:
    labels, clients, _ = asked
    parts = deal({"kind": "iid"}, labels, clients, seed)
    check_disjoint(parts, len(labels))
    assert len(parts) == clients
    assert {len(part) for part in parts} <= {len(labels) // clients, -(-len(labels) // clients)}


def dealt(dealer: flwr.Partitioner, order: Rows) -> list[list[int]]:
    """What a partitioner of flwr-datasets makes of samples in this order."""
    dealer.dataset = Dataset.from_dict({"row": order})
    return [list(dealer.load_partition(client)["row"]) for client in range(dealer.num_partitions)]


@given(enough(1), seeds)
@example(([0] * 10, 4, 1), 1)
@settings(max_examples=20)
def test_iid_is_that_of_flwr_datasets(asked: tuple[list[int], int, int], seed: int) -> None:
    total, clients = len(asked[0]), asked[1]
    order = numpy_stream(seed, "partition").permutation(total)
    ours = [part.tolist() for part in deal({"kind": "iid"}, [0] * total, clients, seed)]
    assert ours == dealt(flwr.IidPartitioner(clients), order)


@given(enough(), seeds, st.floats(min_value=0.01, max_value=100))
@settings(max_examples=20)
def test_quantity_is_that_of_flwr_datasets_for_the_drawn_sizes(
    asked: tuple[list[int], int, int], seed: int, alpha: float
) -> None:
    total, (_, clients, minimum) = len(asked[0]), asked
    rng = numpy_stream(seed, "partition")
    order = rng.permutation(total)
    spare = total - clients * minimum
    ends = [int(end) for end in np.cumsum(rng.dirichlet([alpha] * clients)) * spare]
    ends[-1] = spare
    sizes = [minimum + end - start for start, end in zip([0, *ends], ends, strict=False)]
    kind = {"kind": "quantity", "alpha": alpha, "min_samples": minimum}
    ours = [part.tolist() for part in deal(kind, [0] * total, clients, seed)]
    assert ours == dealt(flwr.SizePartitioner(sizes), order)


def test_iid_takes_no_heed_of_the_order_of_the_data() -> None:
    parts = deal({"kind": "iid"}, [0] * 500 + [1] * 500, 2)
    # 250 of each class in each half, give or take four standard deviations (of about 8).
    assert 218 <= int((parts[0] < 500).sum()) <= 282


@given(enough(), seeds, alphas)
@example(([0] * 6, 3, 2), 0, 1e-300)
def test_dirichlet_deals_out_all_and_at_least_so_many(
    asked: tuple[list[int], int, int], seed: int, alpha: float
) -> None:
    labels, clients, minimum = asked
    kind = {"kind": "dirichlet", "alpha": alpha, "min_samples": minimum}
    try:
        parts = deal(kind, labels, clients, seed)
    except ExperimentError as error:  # drawn shares may be too unequal, as often as it is tried
        refused = str(error)
    else:
        assert len(parts) == clients
        check_disjoint(parts, len(labels))
        assert min(map(len, parts)) >= minimum
        return
    assert refused.startswith("task.partition: no draw of dirichlet")
    assert clients > 1


def test_dirichlet_is_the_more_skewed_the_smaller_alpha_is() -> None:
    labels = [row % 10 for row in range(2000)]

    def largest_share(alpha: float) -> float:
        parts = deal({"kind": "dirichlet", "alpha": alpha}, labels, 10)
        counts = [np.bincount(np.array(labels)[part], minlength=10) for part in parts]
        return float(np.mean([count.max() / count.sum() for count in counts]))

    skewed, middle, even = largest_share(0.05), largest_share(0.5), largest_share(1000)
    assert skewed > middle > even
    assert even < 0.2
    assert skewed > 0.5


@given(classes_for_all(), seeds)
def test_pathological_gives_everyone_exactly_so_many_classes(
    asked: tuple[list[int], int, int], seed: int
) -> None:
    labels, clients, classes = asked
    parts = deal({"kind": "pathological", "classes_per_client": classes}, labels, clients, seed)
    assert len(parts) == clients
    check_disjoint(parts, len(labels), whole=False)
    held = [{labels[row] for row in part} for part in parts]
    assert {len(one) for one in held} == {classes}
    # Of a class that anyone holds, all samples are dealt out.
    for label in set.union(*held):
        assert sum(labels[row] == label for part in parts for row in part) == labels.count(label)
    if clients >= len(set(labels)):
        assert set.union(*held) == set(labels)


@given(enough(), seeds, alphas)
def test_quantity_deals_out_all_in_unequal_sizes(
    asked: tuple[list[int], int, int], seed: int, alpha: float
) -> None:
    labels, clients, minimum = asked
    parts = deal({"kind": "quantity", "alpha": alpha, "min_samples": minimum}, labels, clients, seed)
    assert len(parts) == clients
    check_disjoint(parts, len(labels))
    assert min(map(len, parts)) >= minimum


def test_quantity_is_the_more_skewed_the_smaller_alpha_is() -> None:
    def largest(alpha: float) -> int:
        return max(map(len, deal({"kind": "quantity", "alpha": alpha}, [0] * 1000, 10)))

    assert largest(0.01) > 900
    assert 100 <= largest(1e6) <= 102


KINDS: list[Kind] = [
    {"kind": "iid"},
    {"kind": "dirichlet", "alpha": 0.5},
    {"kind": "pathological", "classes_per_client": 2},
    {"kind": "quantity", "alpha": 0.5},
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["kind"])
def test_the_seed_decides_who_gets_what(kind: Kind) -> None:
    labels = [row % 5 for row in range(100)]

    def dealt(seed: int) -> list[list[int]]:
        return [part.tolist() for part in deal(kind, labels, 5, seed)]

    assert dealt(3) == dealt(3)
    assert dealt(3) != dealt(4)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["kind"])
def test_more_clients_than_samples_are_refused(kind: Kind) -> None:
    with pytest.raises(ExperimentError) as caught:
        deal(kind, [0, 1, 2], 4)
    assert str(caught.value) == (
        "task.clients = 4, but there are 3 private samples: lower task.clients or task.public, or raise"
        " task.limit"
    )


@pytest.mark.parametrize(
    ("kind", "labels", "clients", "said"),
    [
        (
            {"kind": "pathological", "classes_per_client": 3},
            [0, 1] * 5,
            2,
            "task.partition.classes_per_client = 3, but the private samples have 2 classes: set it to at"
            " most 2",
        ),
        (
            # All three clients would need the one sample of class 1.
            {"kind": "pathological", "classes_per_client": 2},
            [0, 0, 0, 1],
            3,
            "task.partition: with 3 clients of 2 classes, one class would go to more clients than it has"
            " samples (the rarest, 'b', has 1): lower task.clients to 1",
        ),
        (
            {"kind": "pathological", "classes_per_client": 2},
            [0, 1, 2, 3, 4] * 5 + [5, 6, 6],
            5,
            "task.partition: with 5 clients of 2 classes, one class would go to more clients than it has"
            " samples (the rarest, 'f', has 1): lower task.clients to 1, or leave out the rare classes:"
            ' task.exclude_classes = ["f", "g"]',
        ),
        (
            {"kind": "dirichlet", "alpha": 1, "min_samples": 4},
            [0, 1] * 5,
            3,
            "task.partition: 3 clients of at least 4 samples need 12, but there are 10: lower task.clients or"
            " task.partition.min_samples",
        ),
        (
            # One class and a tiny alpha: one client gets everything, whatever is drawn.
            {"kind": "dirichlet", "alpha": 1e-6},
            [0] * 20,
            3,
            "task.partition: no draw of dirichlet(alpha=1e-06) gave each of 3 clients 2 samples of 20: raise"
            " alpha, lower task.clients or task.partition.min_samples",
        ),
        (
            {"kind": "quantity", "alpha": 1, "min_samples": 4},
            [0, 1] * 5,
            3,
            "task.partition: 3 clients of at least 4 samples need 12, but there are 10: lower task.clients or"
            " task.partition.min_samples",
        ),
    ],
    ids=["more classes than there are", "rare class", "rare classes", "minimum", "no draw", "quantity"],
)
def test_an_impossible_partition_says_why_and_what_would_go(
    kind: Kind, labels: list[int], clients: int, said: str
) -> None:
    with pytest.raises(ExperimentError) as caught:
        deal(kind, labels, clients)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ({"kind": "iid"}, "iid"),
        ({"kind": "dirichlet", "alpha": 0.3}, "dirichlet(alpha=0.3)"),
        ({"kind": "dirichlet", "alpha": 0.3, "min_samples": 5}, "dirichlet(alpha=0.3, min_samples=5)"),
        ({"kind": "natural", "column": "who"}, "natural(column=who)"),
        ({"kind": "natural", "column": "who", "file": "s.csv"}, "natural(column=who)"),
        ({"kind": "natural"}, "natural(one file per client)"),
        ({"kind": "indices", "clients": [[0, 2], [1]]}, "indices"),
    ],
)
def test_a_partition_in_words(kind: Kind, words: str) -> None:
    assert partition_title(TypeAdapter(Partition).validate_python(kind)) == words
