"""Defences: what liars can and cannot do to labels, weights and vectors of classes, by hand and by loops."""

import itertools
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import one_hot

from fedistill.aggregation.classwise import class_agreement, class_likeness, class_medians
from fedistill.aggregation.labels import Aggregated
from fedistill.aggregation.logits import median_logits, reliable_logits
from fedistill.aggregation.registry import AGGREGATIONS
from fedistill.aggregation.robust import agreement, geometric_median
from fedistill.aggregation.weights import Averaging, Merged, merge_weights
from fedistill.experiment.reliability import distrusted
from fedistill.methods.shared.moments import Moments, agreements
from fedistill.state import State

CLASSES = 4
SAMPLES = 60
TRUTH = torch.arange(SAMPLES) % CLASSES


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pooled(name: str, rows: list[Tensor], state: State | None = None, **settings: Any) -> Aggregated:
    chosen = AGGREGATIONS[name].model_validate({"name": name, **settings})
    found = chosen.aggregate(enumerate(rows), draws(), state=state)
    assert found is not None
    return found


def honest(client: int) -> Tensor:
    """Rows (n, C) of a client that errs on a seventh of the samples, of its own."""
    wrong = torch.rand(SAMPLES, generator=draws(client)) > 6 / 7
    named = torch.where(wrong, (TRUTH + 1 + client % (CLASSES - 1)) % CLASSES, TRUTH)
    return one_hot(named, CLASSES).float() * 0.9 + 0.1 / CLASSES


SHIFTED = one_hot((TRUTH + 1) % CLASSES, CLASSES).float()
ONE_CLASS = one_hot(torch.zeros(SAMPLES).long(), CLASSES).float()


def accuracy(labels: Tensor) -> float:
    return float((labels.argmax(dim=1) == TRUTH).float().mean())


# --- labels ---


@pytest.mark.parametrize("lie", [SHIFTED, ONE_CLASS], ids=["shifted", "one class"])
def test_reliability_finds_four_liars_of_ten_who_all_say_the_same(lie: Tensor) -> None:
    found = pooled("reliability", [*[honest(client) for client in range(6)], *[lie] * 4])
    assert accuracy(found.labels) > 0.95
    assert {client for client, share in found.trust.items() if share == 0} == {6, 7, 8, 9}
    assert (
        max(found.reliability[liar] for liar in range(6, 10))
        < min(found.reliability[one] for one in range(6)) / 2
    )


@pytest.mark.parametrize(("clients", "liars"), [(9, 4), (11, 5)])
@pytest.mark.parametrize("seed", range(5))
def test_liars_in_unison_are_found_where_they_are_nearly_half(clients: int, liars: int, seed: int) -> None:
    """Each honest client is right in four samples of five, and guesses the others."""
    generator = draws(seed)
    truth = torch.randint(10, (400,), generator=generator)
    rows = [one_hot(torch.randint(10, (400,), generator=generator), 10).float()] * liars
    for _ in range(clients - liars):
        guessed = torch.randint(10, (400,), generator=generator)
        knows = torch.rand(400, generator=generator) < 0.8
        rows.append(one_hot(torch.where(knows, truth, guessed), 10).float())
    found = pooled("reliability", rows)
    assert {client for client, share in found.trust.items() if share == 0} == set(range(liars))


@pytest.mark.parametrize("seed", range(5))
def test_liars_in_unison_do_not_outvote_more_clients_who_know_half_of_the_classes(seed: int) -> None:
    """Of ten classes, each of six honest clients knows five, and there four samples of five."""
    generator = draws(seed)
    truth = torch.randint(10, (400,), generator=generator)
    rows = [one_hot(torch.randint(10, (400,), generator=generator), 10).float()] * 4
    for _ in range(6):
        own = torch.randperm(10, generator=generator)[:5]
        knows = torch.isin(truth, own) & (torch.rand(400, generator=generator) < 0.8)
        guessed = own[torch.randint(5, (400,), generator=generator)]
        rows.append(one_hot(torch.where(knows, truth, guessed), 10).float())
    found = pooled("reliability", rows)
    assert {client for client, share in found.trust.items() if share == 0} == {0, 1, 2, 3}
    assert (found.labels.argmax(dim=1) == truth).double().mean() > 0.6


def test_reliability_counts_a_client_by_class() -> None:
    """A client that knows two of four classes counts in these, and hardly in the others."""
    half = torch.where((TRUTH < 2)[:, None], one_hot(TRUTH, CLASSES), ONE_CLASS).float()
    found = pooled("reliability", [*[honest(client) for client in range(4)], half])
    agreed, spoken = found.state["4"]
    figures = agreed / spoken.clamp(min=1e-9)
    assert figures[1] > 0.8
    assert figures[2:].max() < 0.1


def test_reliability_is_learned_over_rounds() -> None:
    """Who has lied before counts less in a round of few samples, in which nothing can be seen."""
    clients = [honest(0), honest(1), honest(2), SHIFTED]
    before = pooled("reliability", clients).state
    few = [rows[:2] for rows in clients]
    assert pooled("reliability", few, before).trust[3] == 0
    kept = pooled("reliability", few, before, memory=0.0).state
    assert float(kept["3"][1].sum()) == pytest.approx(2, abs=1e-6), "nothing but this exchange"


def test_reliability_of_one_client_is_what_it_says() -> None:
    assert torch.equal(pooled("reliability", [honest(0)]).labels.argmax(dim=1), honest(0).argmax(dim=1))


@pytest.mark.parametrize("name", ["median", "geometric-median", "cronus", "history-weighted", "reliability"])
def test_a_minority_cannot_turn_the_labels(name: str) -> None:
    settings = {"liars": 0.3} if name == "cronus" else {}
    found = pooled(name, [*[honest(client) for client in range(7)], *[SHIFTED] * 3], **settings)
    assert accuracy(found.labels) > 0.9
    assert max(found.reliability[liar] for liar in (7, 8, 9)) < min(
        found.reliability[one] for one in range(7)
    )


def test_cronus_leaves_out_those_who_stretch_the_spread() -> None:
    found = pooled("cronus", [honest(0), SHIFTED, honest(1), honest(2), honest(3)], liars=0.2)
    assert found.reliability == {0: 1, 1: 0, 2: 1, 3: 1, 4: 1}
    mean = torch.stack([honest(client) for client in range(4)]).mean(dim=0)
    torch.testing.assert_close(found.labels, mean)


def test_cronus_keeps_what_only_those_left_out_have_answered() -> None:
    alone = SHIFTED.clone()
    others = [honest(client) for client in range(4)]
    for rows in others:
        rows[0] = 0
    found = pooled("cronus", [alone, *others], liars=0.2)
    assert torch.equal(found.labels[0], alone[0])


def test_history_weights_by_hand() -> None:
    """Two agree, the third shares nothing: its weight is exp(-5), then exp(-10)."""
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    first = pooled("history-weighted", [one, one, other])
    assert first.reliability[2] == pytest.approx(float(torch.tensor(-5.0).exp()), rel=1e-3)
    second = pooled("history-weighted", [one, one, other], first.state)
    assert second.reliability[2] == pytest.approx(float(torch.tensor(-10.0).exp()), rel=1e-3)
    assert float(second.labels[0, 1]) == pytest.approx(second.reliability[2] / 2, rel=1e-3)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6))
def test_no_point_is_nearer_to_all_than_the_geometric_median(points: list[float]) -> None:
    rows = torch.tensor(points)[:, None, None]
    found = geometric_median(rows, torch.ones(len(points), 1, dtype=torch.bool), iterations=200)

    def away(at: float) -> float:
        return sum(abs(point - at) for point in points)

    assert away(float(found)) <= min(away(point) for point in points) + 0.02 * len(points)


def test_agreement_by_hand() -> None:
    rows = torch.tensor([[[0.7, 0.3], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    mask = torch.tensor([[True, False], [False, False]])
    assert agreement(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), rows, mask).tolist() == pytest.approx([0.8, 0])


NOBODY = torch.zeros(SAMPLES, CLASSES)


@pytest.mark.parametrize("name", ["median", "trimmed", "geometric-median", "reliability"])
def test_samples_that_nobody_answers_leave_the_figures_of_clients_alone(name: str) -> None:
    rows = [honest(client) for client in range(4)]
    for one in rows:
        one[:10] = 0
    found = pooled(name, rows)
    assert (found.labels[:10] == 0).all()
    assert all(0.7 < figure <= 1 for figure in found.reliability.values())


def test_who_comes_late_is_judged_by_as_much_as_the_others() -> None:
    """A liar of one exchange does not outweigh clients that were a little off in fifteen."""
    clients = [honest(client) for client in range(5)]
    state: State = {}
    for _ in range(15):
        state = pooled("history-weighted", clients, state).state
    found = pooled("history-weighted", [*clients, SHIFTED], state)
    assert accuracy(found.labels) > 0.9
    assert found.trust[5] < 0.01
    # Who answers nothing has told nothing of himself.
    silent = pooled("history-weighted", [*clients, NOBODY], state)
    assert "5" not in silent.state


def test_what_nobody_else_has_answered_neither_confirms_nor_contradicts() -> None:
    """Two clients answer samples of their own beside those that all answer, and all are right."""
    rows = [one_hot(TRUTH, CLASSES).float() for _ in range(4)]
    for client, alone in ((1, slice(10, 35)), (2, slice(35, 60))):
        mine = torch.zeros(SAMPLES, dtype=torch.bool)
        mine[:10] = mine[alone] = True
        rows[client][~mine] = 0
    for client in (0, 3):
        rows[client][10:] = 0
    found = pooled("reliability", rows)
    assert min(found.reliability.values()) == pytest.approx(1, abs=0.01)
    assert accuracy(found.labels) == 1


def test_reliability_remembers_beyond_an_exchange_without_answers() -> None:
    state = pooled("reliability", [honest(0), honest(1), SHIFTED]).state
    assert pooled("reliability", [NOBODY, NOBODY, NOBODY], state).state.keys() == state.keys()


# --- moments ---


def test_a_column_that_most_clients_lack_is_no_lie() -> None:
    """Five clients alike in four features; two have a fifth, a rare mark that is 0 elsewhere."""
    generator, by_client = draws(), {}
    for client in range(5):
        labels = torch.arange(200) % 2
        inputs = torch.randn(200, 5, generator=generator, dtype=torch.float64) + labels[:, None]
        inputs[:, 4] = (torch.arange(200) % 10 == 0).double() if client > 2 else 0
        marks = one_hot(labels, 2).double()
        by_client[client] = Moments(marks.sum(dim=0), marks.T @ inputs, inputs.T @ inputs)
    assert agreements(by_client) == pytest.approx(dict.fromkeys(range(5), 1.0))


# --- weights ---

BEFORE = torch.tensor([1.0, 1.0])
ALIKE = [
    torch.tensor([2.0, 1.0]),
    torch.tensor([2.0, 1.2]),
    torch.tensor([2.0, 0.8]),
    torch.tensor([2.2, 1.0]),
]
TURNED = torch.tensor([-9.0, 1.0])


def merged(
    averaging: Averaging, rows: list[Tensor], liars: float = 0.2, counts: list[float] | None = None
) -> Merged:
    sent = zip(rows, counts or [1.0] * len(rows), strict=True)
    found = merge_weights(sent, BEFORE, averaging, liars)
    assert found is not None
    return found


def test_the_mean_is_by_samples() -> None:
    assert merged("mean", [BEFORE, 3 * BEFORE], counts=[1.0, 3.0]).weights.tolist() == [2.5, 2.5]
    assert merged("mean", [BEFORE]).reliability is None


@pytest.mark.parametrize("averaging", get_args(Averaging))
def test_nobody_has_no_average(averaging: Averaging) -> None:
    assert merge_weights(iter(()), BEFORE, averaging, 0.2) is None


@pytest.mark.parametrize("averaging", get_args(Averaging))
def test_clients_that_agree_are_averaged_to_what_they_say(averaging: Averaging) -> None:
    for count in (1, 2, 5):
        found = merged(averaging, [ALIKE[0]] * count)
        torch.testing.assert_close(found.weights, ALIKE[0])
        assert found.reliability is None or found.reliability == pytest.approx([1] * count)


@pytest.mark.parametrize("averaging", [one for one in get_args(Averaging) if one != "mean"])
@pytest.mark.parametrize("place", [0, 4])
def test_a_boosted_and_turned_change_moves_little_and_is_named(averaging: Averaging, place: int) -> None:
    rows = [*ALIKE]
    rows.insert(place, TURNED)
    found = merged(averaging, rows)
    assert 1.3 < float(found.weights[0]) <= 2.2
    assert found.reliability is not None
    assert found.reliability[place] == 0
    assert sum(figure > 0.5 for figure in found.reliability) == 4


def test_clipping_by_hand() -> None:
    """Lengths 1, 1 and 3: the third change is cut to the median length."""
    found = merged("norm-clipping", [torch.tensor(row) for row in ([2.0, 1.0], [1.0, 2.0], [4.0, 1.0])])
    torch.testing.assert_close(found.weights, torch.tensor([1 + 2 / 3, 1 + 1 / 3]))


def test_median_and_trimmed_mean_by_hand() -> None:
    rows = [torch.tensor([float(value), 1.0]) for value in (9, 1, 2, 4, -50)]
    assert merged("median", rows).weights.tolist() == [2, 1]
    assert merged("median", rows[:4]).weights.tolist() == [3, 1]
    assert float(merged("trimmed-mean", rows, liars=0.2).weights[0]) == pytest.approx(7 / 3)
    assert float(merged("trimmed-mean", rows, liars=0.0).weights[0]) == pytest.approx(-34 / 5)


def test_multi_krum_is_the_mean_of_those_with_near_neighbours() -> None:
    """Against all pairs: with one liar of five, each score is of the two nearest others."""
    rows = [*ALIKE, TURNED]
    scores = [
        sum(sorted(float((one - other).square().sum()) for other in rows[:at] + rows[at + 1 :])[:2])
        for at, one in enumerate(rows)
    ]
    assert scores.index(max(scores)) == 4
    torch.testing.assert_close(merged("multi-krum", rows).weights, torch.stack(ALIKE).mean(dim=0))
    weighted = merged("multi-krum", rows, counts=[1, 1, 1, 5, 100])
    torch.testing.assert_close(weighted.weights, (sum(ALIKE[:3], torch.zeros(2)) + 5 * ALIKE[3]) / 8)


def test_screened_is_the_mean_of_those_who_go_along() -> None:
    turned = torch.tensor([0.0, 1.0])
    found = merged("screened", [*ALIKE[:3], turned])
    expected = torch.stack([BEFORE + (row - BEFORE) / (row - BEFORE).norm() for row in ALIKE[:3]])
    torch.testing.assert_close(found.weights, expected.mean(dim=0), atol=0.02, rtol=0)
    assert found.reliability is not None
    assert found.reliability[3] == 0


# --- vectors of classes ---


# --- logits ---


def logits(client: int) -> Tensor:
    return 4 * honest(client)


def test_the_median_of_logits_by_hand() -> None:
    found = median_logits({2: torch.tensor([[0.0, 3.0]]), 5: torch.tensor([[1.0, 2.0]]), 7: torch.ones(1, 2)})
    assert torch.equal(found.scores, torch.tensor([[1.0, 2.0]]))
    assert max(found.reliability, key=lambda client: found.reliability[client]) == 5


@pytest.mark.parametrize(
    "lie",
    [4 * SHIFTED, 4 * ONE_CLASS, torch.zeros_like(SHIFTED), -1000 * logits(8)],
    ids=["shifted", "one class", "zero", "negated"],
)
def test_liars_about_logits_count_nothing(lie: Tensor) -> None:
    alone = reliable_logits({client: logits(client) for client in range(6)}, {})
    found = reliable_logits({client: logits(client) if client < 6 else lie for client in range(10)}, {})
    assert accuracy(found.scores) > 0.95
    assert torch.allclose(found.scores, alone.scores, atol=0.3)
    assert max(found.reliability[liar] for liar in range(6, 10)) < min(alone.reliability.values()) / 2


def test_true_logits_a_thousand_times_as_large_move_the_mean_as_far_as_others() -> None:
    alone = reliable_logits({client: logits(client) for client in range(6)}, {})
    boosted = {client: logits(client) * (1000 if client == 3 else 1) for client in range(6)}
    found = reliable_logits(boosted, {})
    assert torch.allclose(found.scores, alone.scores, atol=0.2)
    assert found.reliability[3] < 0.01 < 0.5 < min(own for one, own in found.reliability.items() if one != 3)


def test_honest_clients_whose_models_have_larger_logits_are_not_distrusted() -> None:
    rows = {client: logits(client) * (1, 1, 1, 1, 2.5, 5)[client] for client in range(6)}
    found = reliable_logits(rows, {})
    assert distrusted({str(client): own for client, own in found.reliability.items()}) == []
    assert accuracy(found.scores) > 0.95
    tenfold = reliable_logits(rows | {5: 10 * logits(5)}, {}).reliability
    assert distrusted({str(client): own for client, own in tenfold.items()}) == [5]


@pytest.mark.parametrize("silent", [6, 8])
def test_silent_clients_do_not_silence_the_others(silent: int) -> None:
    alone = reliable_logits({client: logits(client) for client in range(6)}, {})
    nothing = {6 + place: torch.zeros(SAMPLES, CLASSES) for place in range(silent)}
    found = reliable_logits({client: logits(client) for client in range(6)} | nothing, {})
    assert torch.equal(found.scores, alone.scores)
    assert found.reliability == alone.reliability | dict.fromkeys(nothing, 0.0)
    liar = {20: -logits(9)}
    lied = reliable_logits({client: logits(client) for client in range(6)} | nothing | liar, {})
    assert accuracy(lied.scores) > 0.95
    assert lied.reliability[20] < 0.5 * min(lied.reliability[client] for client in range(6))


@pytest.mark.parametrize("rows", [(1,), (SAMPLES, 1)], ids=["one number", "a number per row"])
def test_what_all_classes_of_a_row_have_in_common_moves_nothing(rows: tuple[int, ...]) -> None:
    added = 1e5 * torch.randn(rows, generator=draws())
    lied = {client: logits(client) + added * (client == 3) for client in range(6)}
    found = reliable_logits(lied, {})
    plain = reliable_logits({client: logits(client) for client in range(6)}, {})
    assert torch.allclose(found.scores, plain.scores, atol=0.05)  # of 1e5, float32 keeps two decimals


def test_nobody_says_anything_in_logits() -> None:
    found = reliable_logits({client: torch.zeros(5, 3) for client in range(3)}, {})
    assert torch.equal(found.scores, torch.zeros(5, 3))


@given(scale=st.sampled_from([1e-6, 1.0, 1e3]))
def test_what_logits_are_followed_does_not_depend_on_their_size(scale: float) -> None:
    rows = {client: logits(client) if client < 6 else 4 * SHIFTED for client in range(8)}
    found = reliable_logits(rows, {})
    scaled = reliable_logits({client: scale * own for client, own in rows.items()}, {})
    assert torch.allclose(scaled.scores, scale * found.scores, rtol=1e-4, atol=1e-6 * scale)
    assert scaled.reliability == pytest.approx(found.reliability, abs=1e-4)


def test_who_lied_about_logits_is_remembered() -> None:
    once = reliable_logits(
        {client: 4 * SHIFTED if client == 3 else logits(client) for client in range(4)}, {}
    )
    again = {0: logits(0), 3: logits(3)}
    assert reliable_logits(again, once.state).reliability[3] < reliable_logits(again, {}).reliability[3]


def test_logits_of_clients_whom_nobody_confirms_are_their_mean() -> None:
    found = reliable_logits({0: torch.tensor([[1e4, 0.0]]), 1: torch.tensor([[0.0, 1e4]])}, {})
    assert torch.equal(found.scores, torch.zeros(1, 2))


@given(st.data())
def test_class_medians_against_a_plain_sort(data: st.DataObject) -> None:
    clients, width = data.draw(st.integers(1, 5)), 2
    generator = draws(data.draw(st.integers(0, 2**20)))
    vectors = torch.randn(clients, 3, width, generator=generator)
    present = torch.rand(clients, 3, generator=generator) < 0.6
    found, named = class_medians(vectors, present)
    for label, entry in itertools.product(range(3), range(width)):
        sent = sorted(float(vectors[one, label, entry]) for one in range(clients) if present[one, label])
        assert bool(named[label]) == bool(sent)
        middle = (sent[(len(sent) - 1) // 2] + sent[len(sent) // 2]) / 2 if sent else 0.0
        assert float(found[label, entry]) == pytest.approx(middle, rel=1e-5, abs=1e-6)


def test_class_agreement_by_hand() -> None:
    """The third swaps its classes; the fourth is far from all; the fifth has one class, with most weight."""
    right = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    vectors = torch.stack([right, right, right.flip(0), right * 50 + 50, right])
    present = torch.tensor([[True, True]] * 4 + [[True, False]])
    weights = torch.tensor([[1.0, 1.0]] * 4 + [[9.0, 0.0]])
    assert class_agreement(vectors, present, weights).tolist() == [1, 1, 0, 0, 1]
    half = torch.stack([right, right, right, torch.tensor([[0.0, 0.0], [0.1, 0.0]])])
    counts = torch.tensor([[1.0, 1.0]] * 3 + [[1.0, 3.0]])
    assert class_agreement(half, torch.ones(4, 2).bool(), counts).tolist() == [1, 1, 1, 0.25]


def test_class_likeness_by_hand() -> None:
    """The third is turned around, the fourth four times as long, and the fifth has one class, at an angle."""
    one = torch.tensor([[3.0, 0.0], [0.0, 5.0]])
    aslant = torch.tensor([[1.8, 2.4], [0.0, 0.0]])
    vectors = torch.stack([one, one, -one, 4 * one, aslant])
    present = torch.tensor([[True, True]] * 4 + [[True, False]])
    assert class_likeness(vectors, present).tolist() == pytest.approx([1, 1, 0, 0.25, 0.6])
