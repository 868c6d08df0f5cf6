"""The codecs of labels against slow, plain twins in pure Python: the quantiser, the predictor's chances."""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedistill.communication.codecs.base import Sender
from fedistill.communication.codecs.label_predictor import Predictor
from fedistill.communication.codecs.label_rounding import quantize, quantize_top
from fedistill.communication.codecs.labels import Simplex, SimplexSettings, TopClasses, TopClassesSettings
from fedistill.communication.entropy_coding.adaptive_model import Counts, _tables
from fedistill.communication.entropy_coding.range_coder import Integers
from fedistill.communication.entropy_coding.symbol_io import SymbolIO
from fedistill.communication.tensor_specs import Content, Floats, SharedKnowledge, TensorSpec

# The quantiser


def exact(row: Sequence[float]) -> list[Fraction]:
    """The row that is meant: what is negative counts as 0, and it adds up to 1."""
    positive = [Fraction(max(value, 0)) for value in row]
    total = sum(positive)
    return [value / total for value in positive] if total else [Fraction(1, len(row))] * len(row)


def largest_remainder(row: Sequence[Fraction], levels: int) -> list[int]:
    shares = [value * levels for value in row]
    found = [math.floor(share) for share in shares]
    order = sorted(range(len(row)), key=lambda place: (found[place] - shares[place], place))
    for place in order[: levels - sum(found)]:
        found[place] += 1
    return found


def distance(found: Sequence[int], row: Sequence[Fraction], levels: int) -> Fraction:
    return sum((abs(Fraction(n, levels) - value) for n, value in zip(found, row, strict=True)), Fraction(0))


# Sixteenths and their sums are exact in binary, so that ties are ties on both sides.
grid_rows = st.lists(st.integers(0, 16), min_size=1, max_size=3).map(
    lambda cuts: [stop - start for start, stop in pairwise([0, *sorted(cuts), 16])]
)


@given(grid_rows, st.integers(1, 3))
@settings(max_examples=150)
def test_quantize_finds_a_nearest_row(row: list[int], bits: int) -> None:
    levels = 2**bits - 1
    wanted = exact([float(value) for value in row])
    (found,) = quantize(np.array([row], np.float32), levels, drawn()).tolist()
    possible = [each for each in product(range(levels + 1), repeat=len(row)) if sum(each) == levels]
    assert distance(found, wanted, levels) == min(distance(each, wanted, levels) for each in possible)
    if len({value * levels % 1 for value in wanted}) == len(row):
        assert found == largest_remainder(wanted, levels)


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3, 4]), st.integers(1, 3))
@settings(max_examples=60)
def test_quantize_is_nearest_for_any_probabilities(seed: int, classes: int, bits: int) -> None:
    levels = 2**bits - 1
    row = np.random.default_rng(seed).dirichlet([0.4] * classes).astype(np.float32)
    wanted = exact(row.tolist())
    (found,) = quantize(row[None], levels, drawn()).tolist()
    possible = [each for each in product(range(levels + 1), repeat=classes) if sum(each) == levels]
    assert sum(found) == levels
    # The quantiser divides in floats: a tie that they break is one to the fifteenth digit.
    nearest = min(distance(each, wanted, levels) for each in possible)
    assert distance(found, wanted, levels) - nearest < Fraction(1, 10**12)


def drawn(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_ties_by_hand() -> None:
    """Shares of three: 1.5, 1.5; 0.75 four times; 0.375, 0.375, 0.75, 1.5, which has no tie that counts."""
    rows = np.array([[0.5, 0.5, 0, 0], [0.25] * 4, [0.125, 0.125, 0.25, 0.5]], np.float32)
    possible: list[set[tuple[int, ...]]] = [
        {(2, 1, 0, 0), (1, 2, 0, 0)},
        {(0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0)},
        {(0, 0, 1, 2)},
    ]
    found = [quantize(rows, 3, drawn(seed)).tolist() for seed in range(40)]
    assert [{tuple(each[place]) for each in found} for place in range(3)] == possible
    assert quantize(rows, 3, drawn(7)).tolist() == found[7]


@pytest.mark.parametrize("levels", [1, 3, 15, 255])
@pytest.mark.parametrize("classes", [2, 4, 10])
def test_even_rows_are_even_on_average(classes: int, levels: int) -> None:
    """The standard deviation of an entry is half a step at most, and so 0.0035 steps of a mean of 20,000."""
    rows = np.full((20_000, classes), 1 / classes, np.float32)
    mean = quantize(rows, levels, drawn()).mean(axis=0) / levels
    np.testing.assert_allclose(mean, 1 / classes, atol=0.02 / levels)


def test_clients_break_ties_apart_and_one_alike() -> None:
    """The codec draws from the stream of the message, so that the mean over clients heals what one rounds."""
    rows, spec = np.full((500, 2), 0.5, np.float32), TensorSpec(Content.PROBS, (500, 2))
    for codec in (
        Simplex(SimplexSettings(bits=1)),
        Simplex(SimplexSettings(bits=2)),
        TopClasses(TopClassesSettings(k=2, bits=2)),
    ):
        seeds = (1, 1, *range(40))
        sent = [
            codec.encode(rows, spec, SharedKnowledge(), Sender(stream=partial(drawn, seed))) for seed in seeds
        ]
        assert sent[0].payload == sent[1].payload != sent[2].payload
        read = [codec.decode(each.payload, spec, SharedKnowledge()).values for each in sent[2:]]
        np.testing.assert_allclose(np.mean(read, axis=(0, 1)), 0.5, atol=0.01)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 8))
@settings(max_examples=60)
def test_top_classes_are_the_likeliest_with_rounded_masses(seed: int, k: int, bits: int) -> None:
    levels = 2**bits - 1
    parts = np.random.default_rng(seed).multinomial(64, [0.25] * 4)
    found = quantize_top(parts[None].astype(np.float32), k, levels, drawn(seed))[0].tolist()
    row = [Fraction(int(part), 64) for part in parts]
    # The classes that were found come first among equally likely ones.
    places = {place: found.index(place) for place in found[:k]}
    order = sorted(range(4), key=lambda place: (-row[place], places.get(place, 4), place))[:k]
    best = [row[place] for place in order]
    rounded = largest_remainder([*best, 1 - sum(best)] if k < 4 else best, levels)[:k]
    other_labels = [place if rounded[at] or at == 0 else 0 for at, place in enumerate(order)]
    assert found == other_labels + rounded


# The models, symbol by symbol


class Tape(SymbolIO):
    """Keeps each symbol with the frequencies that it was coded under."""

    def __init__(self) -> None:
        self.coded: list[tuple[int, list[int]]] = []

    def code(self, symbols: Integers, frequencies: Integers) -> Integers:
        each = frequencies if frequencies.ndim == 2 else np.tile(frequencies, (len(symbols), 1))
        self.coded += zip(np.asarray(symbols).astype(int).tolist(), each.tolist(), strict=True)
        return symbols


def cut(count: int) -> Iterator[range]:
    start = 0
    while start < count:
        size = max(16, start // 3)
        yield range(start, min(count, start + size))
        start += size


def log2(value: int) -> int:
    """In parts of 256, rounded down."""
    return (value**256).bit_length() - 1


def log_odds(chance: int) -> int:
    return log2(max(chance, 1)) - log2(65536 - chance)


class Twin:
    """One client's predictor, with dictionaries and loops."""

    EXPERTS = ((1361, 100), (1361, 8), (512, 100))

    def __init__(self, classes: int, population: int) -> None:
        self.classes = classes
        self.last = [-1] * population
        self.previous = [-1] * population
        self.told_then = [-1] * population
        self.changes = [[0, 0, 0, 0] for _ in range(population)]
        self.differences = [[0, 0, 0, 0] for _ in range(population)]
        self.questions: list[dict[tuple[int, int], list[int]]] = [{}, {}, {}]
        self.weights = [[6553] * 3 for _ in range(3)]
        self.by_last = [[0] * classes for _ in range(classes + 1)]
        self.by_told = [[0] * classes for _ in range(classes + 1)]

    def message(
        self, labels: list[int], rows: list[int], other_labels: list[int]
    ) -> list[tuple[int, list[int]]]:
        coded: list[tuple[int, list[int]]] = []
        rest = list(range(len(rows)))
        for question in range(3):
            asked = [n for n in rest if self.candidate(question, rows[n], other_labels[n]) >= 0]
            for block in cut(len(asked)):
                coded += self.ask(question, [asked[n] for n in block], labels, rows, other_labels)
            rest = [
                n
                for n in rest
                if n not in asked or labels[n] != self.candidate(question, rows[n], other_labels[n])
            ]
        for block in cut(len(rest)):
            coded += self.spell([rest[n] for n in block], labels, rows, other_labels)
        for n, row in enumerate(rows):
            self.note(row, labels[n], other_labels[n])
        return coded

    def candidate(self, question: int, row: int, other_labels: int) -> int:
        last, previous = self.last[row], self.previous[row]
        if question == 0:
            return last
        if question == 1:
            return other_labels if other_labels != last else -1
        return previous if previous not in (last, other_labels) else -1

    def contexts(self, row: int, other_labels: int) -> list[int]:
        base = self.classes + 1
        pair = (self.last[row] + 1) * base + other_labels + 1
        flags = [*self.differences[row], *self.changes[row], int(self.last[row] == other_labels)]
        return [
            (pair * base + self.told_then[row] + 1) % 1361,
            (pair * base + self.previous[row] + 1) % 1361,
            int("".join(map(str, flags)), 2),
        ]

    def ask(
        self, question: int, block: list[int], labels: list[int], rows: list[int], other_labels: list[int]
    ) -> list[tuple[int, list[int]]]:
        counts, weights = self.questions[question], self.weights[question]
        coded, slopes, answers = [], [0, 0, 0], []
        for n in block:
            places = list(enumerate(self.contexts(rows[n], other_labels[n])))
            seen = [counts.setdefault(place, [16, (12, 8, 4)[question]]) for place in places]
            opinions = [log_odds(yes * 65536 // asked) for asked, yes in seen]
            mixed = sum(w * opinion for w, opinion in zip(weights, opinions, strict=True)) // 16384
            chance = int(_tables()[1][max(-4096, min(4096, mixed)) + 4096])
            answer = int(labels[n] == self.candidate(question, rows[n], other_labels[n]))
            coded.append((answer, [65536 - chance, chance]))
            answers.append((answer, places))
            for expert, opinion in enumerate(opinions):
                slopes[expert] += opinion * (answer * 65536 - chance)
        for expert in range(3):
            weights[expert] += slopes[expert] // (2000 * math.isqrt(256 * (len(block) + 10)))
            weights[expert] = max(-65536, min(65536, weights[expert]))
        for answer, places in answers:
            for place in places:
                counts[place][0] += 16
                counts[place][1] += 16 * answer
        for (expert, _), count in counts.items():
            limit = 16 * self.EXPERTS[expert][1]
            if count[0] > limit:
                count[:] = [limit, count[1] * limit // count[0]]
        return coded

    def spell(
        self, block: list[int], labels: list[int], rows: list[int], other_labels: list[int]
    ) -> list[tuple[int, list[int]]]:
        coded = []
        for n in block:
            by_last, by_told = self.by_last[self.last[rows[n]] + 1], self.by_told[other_labels[n] + 1]
            table = [(2 * a + b) * 8192 + 256 for a, b in zip(by_last, by_told, strict=True)]
            for question in range(3):
                if (denied := self.candidate(question, rows[n], other_labels[n])) >= 0:
                    table[denied] = 1
            coded.append((labels[n], table))
        for n in block:
            self.by_last[self.last[rows[n]] + 1][labels[n]] += 1
            self.by_told[other_labels[n] + 1][labels[n]] += 1
        for table in (*self.by_last, *self.by_told):
            if sum(table) > 16 * self.classes + 1000:
                table[:] = [count // 2 for count in table]
        return coded

    def note(self, row: int, label: int, other_labels: int) -> None:
        changed = self.last[row] not in (-1, label)
        self.changes[row] = [*self.changes[row][1:], int(changed)]
        self.differences[row] = [*self.differences[row][1:], int(other_labels not in (-1, label))]
        if changed:
            self.previous[row] = self.last[row]
        self.last[row], self.told_then[row] = label, other_labels


@pytest.mark.parametrize(("classes", "population"), [(2, 60), (3, 40), (10, 300), (46, 300)])
def test_every_chance_of_the_predictor_is_that_of_a_plain_twin(classes: int, population: int) -> None:
    random = np.random.default_rng(classes)
    twin, memory = Twin(classes, population), {}
    truth = random.integers(0, classes, population)
    asked = 0
    for message in range(7):
        rows = np.sort(random.choice(population, population * 3 // 4, replace=False))
        noise = random.integers(0, classes, (2, len(rows)))
        labels = np.where(random.random(len(rows)) < 0.7, truth[rows], noise[0])
        other_labels = np.where(random.random(len(rows)) < 0.6, truth[rows], noise[1] - (noise[1] == 1) * 2)
        spec = TensorSpec(Content.PROBS, (len(rows), classes), rows=rows, population=population)
        known = SharedKnowledge(memory, other_labels=None if message == 2 else other_labels)
        tape, model = Tape(), Predictor(spec, known)
        model.code(tape, labels.copy())
        memory = model.memory(labels)
        heard = [-1] * len(rows) if message == 2 else other_labels.tolist()
        assert tape.coded == twin.message(labels.tolist(), rows.tolist(), heard)
        asked += len(tape.coded)
    assert asked > 7 * population * 3 // 4  # some labels took more than a question
    held: Any = memory["samples"]
    assert held["last"].tolist() == twin.last
    assert held["previous"].tolist() == twin.previous


@given(st.lists(st.integers(0, 4), max_size=300), st.integers(1, 3))
@settings(max_examples=40)
def test_counts_are_those_of_a_plain_twin(symbols: list[int], contexts: int) -> None:
    tape, seen = Tape(), np.arange(len(symbols)) * 7 % contexts
    Counts(contexts, 5).code(tape, np.array(symbols, np.int64), seen)
    counts = [[0] * 5 for _ in range(contexts)]
    wanted = []
    for block in cut(len(symbols)):
        wanted += [(symbols[n], [2 * count + 1 for count in counts[seen[n]]]) for n in block]
        for n in block:
            counts[seen[n]][symbols[n]] += 1
    assert tape.coded == wanted


def test_log_odds_and_their_inverse_are_exact() -> None:
    forward, back = _tables()
    chances = [0, 1, 2, 3, 255, 4096, 21845, 32768, 43690, 65000, 65535]
    assert [int(forward[chance]) for chance in chances] == [log_odds(chance) for chance in chances]
    for wanted in (-4096, -1000, -256, -1, 0, 1, 256, 777, 4096):
        least = next(chance for chance in range(65537) if chance == 65536 or forward[chance] >= wanted)
        assert int(back[wanted + 4096]) == min(max(least, 24), 65536 - 24)
    # One bit of log-odds: twice as likely as not.
    assert abs(int(back[256 + 4096]) - 65536 * 2 / 3) < 65536 / 256


def test_values_are_single_float32_divisions() -> None:
    values: Floats = np.array([[0.7, 0.2, 0.1, 0], [0.25] * 4], np.float32)
    spec, known = TensorSpec(Content.PROBS, (2, 4)), SharedKnowledge()
    simplex = Simplex(SimplexSettings(bits=3))
    payload = simplex.encode(values, spec, known, Sender()).payload
    first, second = (simplex.decode(payload, spec, known).values * 7).round().tolist()
    assert (first, sorted(second)) == ([5, 1, 1, 0], [1, 2, 2, 2])
    third = np.float32(1) / np.float32(7)
    assert simplex.decode(payload, spec, known).values[0, 1] == third
    top = TopClasses(TopClassesSettings(k=1, bits=2))
    payload = top.encode(values, spec, known, Sender()).payload
    rest = np.float32(1) / np.float32(9)
    assert top.decode(payload, spec, known).values[0].tolist() == [
        np.float32(2) / np.float32(3),
        rest,
        rest,
        rest,
    ]
