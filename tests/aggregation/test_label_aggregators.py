"""Aggregations of soft labels: against plain Python, by hand, and what holds for all of them."""

import math
import tomllib
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import one_hot

from fedistill import parse
from fedistill.aggregation.functional import Answers, confidences, dawid_skene
from fedistill.aggregation.labels import Aggregation, Combined, ExchangeInfo
from fedistill.aggregation.registry import AGGREGATIONS, AnyAggregation
from fedistill.config.schema import Sampling, Section
from fedistill.config.spelling import spell
from fedistill.config.toml import to_toml
from fedistill.errors import ExperimentError, TrainingError
from fedistill.experiment.runner import prepare
from fedistill.federation.arm import resolve_arm
from fedistill.methods.registry import create_method
from helpers.runs import run_serially

CLASSES = 4
every = pytest.mark.parametrize("name", AGGREGATIONS)


class Holder(Section):
    aggregation: AnyAggregation


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pooled(wanted: Any, rows: list[Tensor] | Tensor, before: Tensor | None = None) -> Tensor:
    found = Holder(aggregation=wanted).aggregation.aggregate(enumerate(rows), draws(), before)
    assert found is not None
    return found.labels


@st.composite
def replies(draw: st.DrawFn, hard: bool | None = None) -> Tensor:
    """Rows (k, n, C) of k clients, soft or one-hot; all answer everything."""
    clients, samples = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    generator = draws(draw(st.integers(0, 2**30)))
    logits = torch.randn(clients, samples, CLASSES, generator=generator) * draw(st.floats(0.1, 5))
    if draw(st.booleans()) if hard is None else hard:
        return one_hot(logits.argmax(dim=2), CLASSES).float()
    return logits.softmax(dim=2)


@st.composite
def partial(draw: st.DrawFn) -> Tensor:
    """Rows (k, n, C) of k clients who may have no answer, rows of zeros."""
    rows = draw(replies())
    generator = draws(draw(st.integers(0, 2**30)))
    return rows * (torch.rand(rows.shape[:2], generator=generator) < 0.7)[..., None]


# --- what holds for all ---


@every
@settings(max_examples=25)
@given(rows=replies())
def test_rows_are_probabilities(name: str, rows: Tensor) -> None:
    found = pooled(name, rows)
    assert found.shape == rows.shape[1:]
    assert found.dtype == torch.float32
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(len(found)))


# Of clients that are equally far out, cronus leaves out the first.
@pytest.mark.parametrize("name", [name for name in AGGREGATIONS if name != "cronus"])
@settings(max_examples=25)
@given(rows=replies(), order=st.randoms(use_true_random=False))
def test_the_order_of_clients_does_not_matter(name: str, rows: Tensor, order: Any) -> None:
    other = list(range(len(rows)))
    order.shuffle(other)
    torch.testing.assert_close(pooled(name, rows[other]), pooled(name, rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mean", "confidence", "median", "trimmed"])
@given(rows=replies())
def test_clients_that_agree_are_what_they_say(name: str, rows: Tensor) -> None:
    torch.testing.assert_close(pooled(name, rows[:1]), rows[0])
    torch.testing.assert_close(pooled(name, rows[:1].expand(5, -1, -1)), rows[0])


@pytest.mark.parametrize("name", ["mean", "enhanced-era", "confidence", "median", "trimmed", "majority"])
@given(rows=replies(hard=True))
def test_one_client_with_one_hot_rows_is_itself(name: str, rows: Tensor) -> None:
    torch.testing.assert_close(pooled(name, rows[:1]), rows[0])


@pytest.mark.parametrize("name", ["mean", "confidence", "trimmed"])
@given(rows=replies(hard=True))
def test_of_one_hot_rows_it_is_the_shares_of_votes(name: str, rows: Tensor) -> None:
    torch.testing.assert_close(pooled(name, rows), rows.mean(dim=0))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_labels_that_are_no_numbers_are_refused(value: float) -> None:
    class Broken(Aggregation):
        name: Literal["broken"] = "broken"

        def combine(self, answers: Answers, exchange: ExchangeInfo) -> Combined | None:
            rows = [row for row, _ in answers]
            return Combined(rows[0].masked_fill(rows[0] > 0.6, value))

    rows = torch.tensor([[[0.7, 0.3], [0.5, 0.5]]])
    with pytest.raises(TrainingError, match="aggregation 'broken' returned labels that are NaN or infinite"):
        Broken().aggregate(enumerate(rows), draws())
    fine = Broken().aggregate(enumerate(rows[:, 1:]), draws())
    assert fine is not None
    assert fine.labels.tolist() == [[0.5, 0.5]]


@every
def test_no_replies_have_no_labels(name: str) -> None:
    assert Holder(aggregation=name).aggregation.aggregate(iter(()), draws()) is None


@every
def test_replies_without_samples_are_no_error(name: str) -> None:
    """SCARLET's clients may have nothing to say."""
    assert pooled(name, [torch.zeros(0, CLASSES)] * 3).shape == (0, CLASSES)


@every
def test_replies_may_come_one_at_a_time(name: str) -> None:
    rows = torch.rand(5, 3, CLASSES, generator=draws(1)).softmax(dim=2)
    lazily = Holder(aggregation=name).aggregation.aggregate(enumerate(iter(rows)), draws())
    assert lazily is not None
    assert torch.equal(lazily.labels, pooled(name, rows))


# --- who is trusted, and what is kept ---


@every
def test_trust_is_shared_out_among_the_clients_that_replied(name: str) -> None:
    rows = torch.rand(3, 5, CLASSES, generator=draws(2)).softmax(dim=2)
    found = Holder(aggregation=name).aggregation.aggregate(zip((2, 5, 9), rows, strict=True), draws())
    assert found is not None
    assert list(found.trust) == [2, 5, 9]
    assert sum(found.trust.values()) == pytest.approx(1)
    assert min(found.trust.values()) >= 0


def test_who_answers_more_samples_is_trusted_with_more_of_the_mean() -> None:
    """Client 4 answers one sample of three, client 7 all of them: 1/4 and 3/4."""
    sure = torch.eye(3)
    rows = [(4, sure * torch.tensor([[1.0], [0.0], [0.0]])), (7, sure)]
    found = Holder(aggregation="mean").aggregation.aggregate(rows, draws())
    assert found is not None
    assert found.trust == {4: 0.25, 7: 0.75}


def test_confidence_trusts_by_how_sure_a_client_is() -> None:
    """By the greatest probability of two classes: 0.75 is half sure, 1 is sure, so 1/3 and 2/3."""
    rows = [(0, torch.tensor([[0.75, 0.25]])), (1, torch.tensor([[0.0, 1.0]]))]
    wanted = {"name": "confidence", "measure": "max"}
    found = Holder(aggregation=wanted).aggregation.aggregate(rows, draws())
    assert found is not None
    assert found.trust[0] == pytest.approx(1 / 3, abs=1e-5)


def test_dawid_skene_trusts_a_client_that_disagrees_with_all_least() -> None:
    classes = torch.randint(CLASSES, (60,), generator=draws(3))
    honest = one_hot(classes, CLASSES).float()
    liar = one_hot((classes + 1) % CLASSES, CLASSES).float()
    rows = [(0, honest), (1, honest), (2, honest), (3, liar)]
    found = Holder(aggregation="dawid-skene").aggregation.aggregate(rows, draws())
    assert found is not None
    assert found.trust[3] < 0.01
    assert found.trust[0] == pytest.approx(1 / 3, abs=0.01)


class Smoothed(Aggregation):
    """The mean over clients, averaged with what it was before: a state over rounds."""

    name: str = "smoothed"

    def combine(self, answers: Answers, exchange: ExchangeInfo) -> Combined | None:
        rows = [one for one, _ in answers]
        if not rows:
            return None
        now = torch.stack(rows).mean(dim=0)
        held = exchange.state.get("mean")
        labels = now if held is None else (now + held) / 2
        return Combined(labels, state={"mean": labels, "clients": list(exchange.clients)})


def test_what_an_aggregator_keeps_comes_back_to_it() -> None:
    smoothed = Smoothed()
    first = smoothed.aggregate([(3, torch.tensor([[1.0, 0.0]]))], draws())
    assert first is not None
    assert first.state["clients"] == [3]
    again = smoothed.aggregate([(1, torch.tensor([[0.0, 1.0]]))], draws(), state=first.state)
    assert again is not None
    assert again.labels.tolist() == [[0.5, 0.5]]
    assert again.state["clients"] == [1]


# --- samples without an answer ---


@pytest.mark.parametrize("name", ["mean", "era", "enhanced-era", "confidence", "median", "trimmed"])
@given(rows=partial())
def test_a_sample_is_pooled_of_those_who_answer_it(name: str, rows: Tensor) -> None:
    wanted = {"name": name, "share": 0.3} if name == "trimmed" else name
    found = pooled(wanted, rows)
    for sample in range(rows.shape[1]):
        said = rows[:, sample][rows[:, sample].sum(dim=1) > 0]
        alone = pooled(wanted, said[:, None])[0] if len(said) else torch.zeros(CLASSES)
        torch.testing.assert_close(found[sample], alone)


@every
@settings(max_examples=25)
@given(rows=partial())
def test_who_answers_nothing_and_what_nobody_answers_changes_nothing(name: str, rows: Tensor) -> None:
    found = pooled(name, rows)
    said = (rows.sum(dim=2) > 0).any(dim=0)
    torch.testing.assert_close(found.sum(dim=1), said.float())
    silent = torch.cat([rows, torch.zeros(1, *rows.shape[1:])])
    torch.testing.assert_close(pooled(name, silent), found)
    if name != "majority":  # whose draws depend on how many samples there are
        torch.testing.assert_close(pooled(name, rows[:, said]), found[said])


def test_majority_of_those_who_answer() -> None:
    rows = torch.zeros(3, 2, 2)
    rows[:2, 0, 0], rows[2, 0, 1], rows[2, 1, 1] = 1, 1, 1
    assert pooled("majority", rows).tolist() == [[1, 0], [0, 1]]


# --- each by plain Python ---


def normalised(values: list[float]) -> list[float]:
    return [value / math.fsum(values) for value in values]


def column(rows: Tensor, sample: int, label: int) -> list[float]:
    return [float(row[sample, label]) for row in rows]


def close(found: Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-3, atol=1e-5)


@given(replies())
def test_confidence_against_a_plain_loop(rows: Tensor) -> None:
    expected = []
    for sample in range(rows.shape[1]):
        weights = []
        for client in rows:
            entropy = -sum(p * math.log(p) for p in client[sample].tolist() if p > 0)
            weights.append(1 - entropy / math.log(CLASSES) + 1e-6)
        sums = [
            math.fsum(w * p for w, p in zip(weights, column(rows, sample, label), strict=True))
            for label in range(CLASSES)
        ]
        expected.append(normalised(sums))
    close(pooled("confidence", rows), expected)


def test_confidence_by_hand() -> None:
    rows = torch.tensor([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0]])
    assert confidences(rows, "entropy").tolist() == pytest.approx([1, 0, 0.5], abs=1e-6)
    assert confidences(rows, "max").tolist() == pytest.approx([1, 0, 1 / 3])
    sure_and_half = pooled({"name": "confidence", "measure": "max"}, [rows[:1], rows[2:]])
    # (3 * (1, 0) + 1 * (.5, .5)) / 4
    assert sure_and_half[0].tolist() == pytest.approx([3.5 / 4, 0.5 / 4, 0, 0], abs=1e-5)


def test_rows_of_which_nobody_is_sure_are_their_mean() -> None:
    assert pooled("confidence", torch.full((3, 2, 4), 0.25)).flatten().tolist() == pytest.approx([0.25] * 8)


@given(partial(), st.floats(0.001, 0.5), st.floats(0.5, 10))
def test_prior_corrected_against_a_plain_loop(rows: Tensor, floor: float, sharpness: float) -> None:
    spread = [
        {
            sample: [p * (1 - floor) + floor / CLASSES for p in row]
            for sample, row in enumerate(client)
            if sum(row)
        }
        for client in rows.tolist()
    ]
    expected = []
    for sample in range(rows.shape[1]):
        logs = []
        for label in range(CLASSES):
            ratios = []
            for client in spread:
                if sample in client:
                    prior = math.fsum(row[label] for row in client.values()) / len(client)
                    ratios.append(math.log(client[sample][label] / prior))
            logs.append(sharpness * math.fsum(ratios) / max(1, len(ratios)))
        said = any(sample in client for client in spread)
        expected.append(normalised([math.exp(log - max(logs)) for log in logs]) if said else [0.0] * CLASSES)
    close(pooled({"name": "prior-corrected", "floor": floor, "sharpness": sharpness}, rows), expected)


def test_prior_corrected_by_hand() -> None:
    """Of two samples the client says 3:1 and 1:1; its prior is 5:3, so it means 9:5 and 3:5."""
    rows = torch.tensor([[[0.75, 0.25], [0.5, 0.5]]])
    found = pooled({"name": "prior-corrected", "sharpness": 1.0, "floor": 1e-9}, rows)
    assert found.flatten().tolist() == pytest.approx([9 / 14, 5 / 14, 3 / 8, 5 / 8])


def test_prior_corrected_undoes_the_skew_of_each_client() -> None:
    """Two clients whose answers are the truth times priors of their own."""
    truth = torch.rand(500, 3, generator=draws(2)).softmax(dim=1) ** 3
    truth /= truth.sum(dim=1, keepdim=True)
    skewed = [truth * torch.tensor(prior) for prior in ((0.9, 0.09, 0.01), (0.05, 0.15, 0.8))]
    rows = [client / client.sum(dim=1, keepdim=True) for client in skewed]
    right = truth.argmax(dim=1)
    agrees = [
        (pooled(name, rows).argmax(dim=1) == right).float().mean().item()
        for name in ("mean", "prior-corrected")
    ]
    assert agrees[0] < 0.6
    assert agrees[1] > 0.85


def test_a_client_has_no_say_in_a_class_that_it_never_names() -> None:
    """Client 0 knows classes 0 and 1 alone, client 1 knows 2: at every sample, 0 says nothing of 2."""
    knows = one_hot(torch.tensor([0, 1, 0, 1]), 3).float()
    other = one_hot(torch.tensor([2, 2, 0, 0]), 3).float()
    found = pooled("prior-corrected", [knows, other])
    # Sample 1 is 1 to one client and 2 to the other, and each knows nothing of the other's class.
    assert found[1, 1].item() == pytest.approx(found[1, 2].item())
    assert found[[0, 2, 3]].argmax(dim=1).tolist() == [2, 0, 1]


@given(replies())
def test_median_against_a_plain_sort(rows: Tensor) -> None:
    expected = []
    for sample in range(rows.shape[1]):
        middles = []
        for label in range(CLASSES):
            values = sorted(column(rows, sample, label))
            middles.append((values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2)
        if sum(middles) == 0:
            middles = [sum(column(rows, sample, label)) for label in range(CLASSES)]
        expected.append(normalised(middles))
    close(pooled("median", rows), expected)


@given(replies(), st.floats(0, 0.49))
def test_trimmed_against_a_plain_sort(rows: Tensor, share: float) -> None:
    cut = math.floor(share * len(rows))
    expected = []
    for sample in range(rows.shape[1]):
        sums = []
        for label in range(CLASSES):
            values = sorted(column(rows, sample, label))
            sums.append(math.fsum(values[cut : len(values) - cut]))
        if sum(sums) == 0:
            sums = [math.fsum(column(rows, sample, label)) for label in range(CLASSES)]
        expected.append(normalised(sums))
    close(pooled({"name": "trimmed", "share": share}, rows), expected)


def test_two_liars_of_seven_do_not_move_median_or_trimmed_mean_out_of_the_range() -> None:
    honest = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.65, 0.25, 0.1], [0.7, 0.25, 0.05]])
    liars = torch.tensor([[0.0, 0.0, 1.0]] * 2)
    rows = torch.cat([honest, honest[:1], liars])[:, None]
    assert pooled("mean", rows)[0, 2] > 0.3
    assert pooled("median", rows)[0, 2] < 0.11
    assert pooled({"name": "trimmed", "share": 0.3}, rows)[0, 2] < 0.11


def test_majority_counts_likeliest_classes() -> None:
    rows = torch.tensor([[[0.4, 0.35, 0.25]], [[0.4, 0.3, 0.3]], [[0.0, 1.0, 0.0]]])
    assert pooled("mean", rows).argmax().item() == 1
    assert pooled("majority", rows).tolist() == [[1, 0, 0]]
    assert pooled("majority", rows[1:], torch.tensor([[1.0, 0, 0]])).tolist() == [[1, 0, 0]]


# --- Dawid and Skene ---


@given(partial())
def test_dawid_skene_against_plain_loops(rows: Tensor) -> None:
    rows = rows[:, (rows.sum(dim=2) > 0).any(dim=0)]
    votes = [[row.index(max(row)) if sum(row) else None for row in client] for client in rows.tolist()]
    clients, samples, smoothing = len(rows), rows.shape[1], 0.05
    posterior = [
        normalised([sum(vote[sample] == label for vote in votes) for label in range(CLASSES)])
        for sample in range(samples)
    ]
    for _ in range(3):
        prior = normalised([sum(row[label] for row in posterior) + smoothing for label in range(CLASSES)])
        confusion = []
        for vote in votes:
            table = [[smoothing] * CLASSES for _ in range(CLASSES)]
            for sample in range(samples):
                if vote[sample] is not None:
                    for label in range(CLASSES):
                        table[label][vote[sample]] += posterior[sample][label]
            confusion.append([normalised(row) for row in table])
        posterior = [
            normalised(
                [
                    prior[label]
                    * math.prod(
                        confusion[k][label][votes[k][sample]]
                        for k in range(clients)
                        if votes[k][sample] is not None
                    )
                    for label in range(CLASSES)
                ]
            )
            for sample in range(samples)
        ]
    wanted = {"name": "dawid-skene", "iterations": 3, "smoothing": smoothing}
    expected = torch.tensor(posterior).reshape(samples, CLASSES)
    torch.testing.assert_close(pooled(wanted, rows), expected, rtol=1e-3, atol=1e-4)


def test_dawid_skene_recovers_the_confusion_of_each_client() -> None:
    generator = draws(3)
    truth = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), 4000, replacement=True, generator=generator)
    known = torch.tensor(
        [
            [[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8]],
            [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]],
            [[0.7, 0.3, 0.0], [0.05, 0.9, 0.05], [0.4, 0.0, 0.6]],
            # Never names class 2: what is of class 2 it takes for class 0.
            [[0.95, 0.05, 0.0], [0.05, 0.95, 0.0], [0.9, 0.1, 0.0]],
            [[0.85, 0.05, 0.1], [0.1, 0.85, 0.05], [0.1, 0.2, 0.7]],
        ]
    )
    votes = torch.stack(
        [torch.multinomial(table[truth], 1, generator=generator).flatten() for table in known]
    )
    posterior, confusion = dawid_skene(votes, 3, iterations=100, smoothing=0.01)
    assert (confusion - known).abs().max() < 0.05
    right = (posterior.argmax(dim=1) == truth).float().mean().item()
    counted = one_hot(votes, 3).sum(dim=0).argmax(dim=1)
    assert right > (counted == truth).float().mean().item() + 0.01


# --- as a setting ---


def experiment(method: str, **settings: Any) -> Any:
    return parse(
        {
            "rounds": 1,
            "task": {"name": "digits", "clients": 3, "limit": 90, "public": 40},
            "models": {"clients": ["mlp-s"], "server": "mlp-s"},
            "arms": [{"method": method, **settings}],
        },
        "test",
    )


@pytest.mark.parametrize(
    ("method", "default"),
    [
        ("dsfl", {"name": "era", "temperature": 0.1}),
        ("cfd", {"name": "mean"}),
        ("scarlet", {"name": "enhanced-era", "beta": 2.0}),
        ("voting", {"name": "majority"}),
        ("fedgems", {"name": "era", "temperature": 0.1}),
        ("comet", {"name": "mean"}),
        ("selective-fd", {"name": "mean"}),
        ("edge-fd", {"name": "mean"}),
    ],
)
def test_each_method_has_its_papers_default(method: str, default: dict[str, Any]) -> None:
    (arm,) = experiment(method).arms
    assert resolve_arm(arm).settings["aggregation"] == default


@pytest.mark.parametrize(
    "wanted", [*AGGREGATIONS, {"name": "era", "temperature": 0.3}, {"name": "confidence", "measure": "max"}]
)
def test_a_name_and_a_table_are_written_out_and_read_again(wanted: Any) -> None:
    found = experiment("dsfl", aggregation=wanted)
    whole = found.model_copy(update={"arms": [resolve_arm(arm) for arm in found.arms]})
    again = parse(tomllib.loads(to_toml(whole)), "again")
    assert again == whole
    assert create_method(again.arms[0]).settings == create_method(found.arms[0]).settings
    (arm,) = prepare(again)[1]
    assert arm.config.settings["aggregation"] == whole.arms[0].settings["aggregation"]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("meen", "`aggregation`: 'meen' is not one of mean, era, "),
        ("meen", "Did you mean 'mean'?"),
        ({"name": "era", "temprature": 1}, "unknown key `temprature`. Did you mean 'temperature'?"),
        ({"name": "era", "temperature": 0}, "`temperature` = 0: must be greater than 0"),
        ({"name": "trimmed", "share": 0.5}, "`share` = 0.5: must be less than 0.5"),
        ({"temperature": 1}, "or a table { name = NAME, SETTINGS }"),
        (3, "must be one of mean, era, "),
        (["mean"], "must be one of mean, era, "),
        ({"name": 3}, "'3' is not one of mean, era, "),
        ({"name": ["era"]}, "is not one of mean, era, "),
    ],
)
def test_what_is_wrong_is_said_in_words(wanted: Any, said: str) -> None:
    with pytest.raises(ExperimentError) as raised:
        create_method(experiment("dsfl", aggregation=wanted).arms[0])
    assert said in str(raised.value)
    assert str(raised.value).startswith("arm 'dsfl': ")


# --- in methods ---


@pytest.mark.parametrize(
    ("method", "name"),
    [
        pytest.param(
            *(method, name),
            marks=[] if method == "dsfl" or name in ("mean", "reliability") else [pytest.mark.long],
        )
        for method in ("dsfl", "cfd", "scarlet", "voting", "fedgems", "selective-fd", "edge-fd")
        for name in AGGREGATIONS
    ],
)
def test_every_method_pools_by_it_with_one_hot_rows_and_lost_replies(method: str, name: str) -> None:
    codec = {} if method in ("cfd", "voting") else {"codec": "onehot"}
    wanted = experiment(method, aggregation=name, **codec).model_copy(
        update={"rounds": 3, "sampling": Sampling(fraction=0.67, dropout=0.4)}
    )
    _, (arm,) = prepare(wanted)
    run = run_serially(wanted, arm)
    assert any(record.dropped for record in run.records)
    if method == "fedgems":  # keeps no labels, but what it has learned from them
        assert run.server.taught
        assert run.server.model.weights.isfinite().all()
        return
    labels = run.server.cache if method == "scarlet" else run.server.labels
    held = labels[labels.sum(dim=1) > 0]
    torch.testing.assert_close(held.sum(dim=1), torch.ones(len(held)))
    if method == "voting":
        assert set(labels.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("name", [name for name, kind in AGGREGATIONS.items() if len(kind.model_fields) > 1])
def test_settings_may_be_in_brackets(name: str) -> None:
    kind = AGGREGATIONS[name]
    own = {key: field.default for key, field in kind.model_fields.items() if key != "name"}
    spelled, table = Holder(aggregation=spell(name, own)), Holder(aggregation={"name": name, **own})
    assert spelled == table
    with pytest.raises(ValidationError, match="brackets do not enclose the settings"):
        Holder(aggregation=f"{name}(")
