"""Random streams: what is drawn depends on the name alone."""

import ast
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fedistill
from fedistill.rng import SERVER, derive, numpy_stream, scoped, stream

SOURCES = sorted(Path(fedistill.__file__).parent.rglob("*.py"))
names = st.tuples(st.integers(0, 2**70), st.text(max_size=8), st.integers(-1, 10**6), st.integers(0, 10**6))


def draws(seed: int, purpose: str, client: int = SERVER, round: int = 0) -> list[float]:
    return torch.rand(8, generator=stream(seed, purpose, client, round)).tolist()


def test_a_golden_seed() -> None:
    """Were it to change, every published number would.

    It is `printf 0/init/3/2 | b2sum -l 64`, low byte first, halved.
    """
    assert derive(0, "init", client=3, round=2) == 465894441329908430
    assert derive(0, "init") == derive(0, "init", client=SERVER, round=0)


@given(names)
def test_derived_seeds_fit_every_generator(name: tuple[int, str, int, int]) -> None:
    assert 0 <= derive(*name) < 2**63


@given(names, names)
def test_other_names_have_other_seeds(
    one: tuple[int, str, int, int], other: tuple[int, str, int, int]
) -> None:
    assert (derive(*one) == derive(*other)) == (one == other)


def test_each_part_of_the_name_counts() -> None:
    found = [
        draws(0, "a", 1, 1),
        draws(1, "a", 1, 1),
        draws(0, "b", 1, 1),
        draws(0, "a", 2, 1),
        draws(0, "a", 1, 2),
        draws(0, "a"),
    ]
    assert all(one != other for place, one in enumerate(found) for other in found[:place])


def test_digits_do_not_run_into_each_other() -> None:
    assert (
        len({derive(1, "a", 11, 1), derive(1, "a", 1, 11), derive(11, "a", 1, 1), derive(1, "a", 1, 1)}) == 4
    )


def test_streams_do_not_depend_on_order_or_on_each_other() -> None:
    jobs = [(seed, purpose, client) for seed in (0, 1) for purpose in ("x", "y") for client in (0, 1)]
    forward = {job: draws(*job) for job in jobs}
    torch.rand(100)
    assert {job: draws(*job) for job in reversed(jobs)} == forward
    # Drawing from one stream between two draws of another changes neither.
    one, other = stream(0, "x"), stream(0, "y")
    mixed = [
        torch.rand(1, generator=one).item() for _ in range(4) if torch.rand(1, generator=other).item() >= 0
    ]
    alone = stream(0, "x")
    assert mixed == [torch.rand(1, generator=alone).item() for _ in range(4)]


def test_numpy_streams() -> None:
    first = numpy_stream(0, "a", 1, 1).random(4).tolist()
    np.random.default_rng().random(3)
    assert numpy_stream(0, "a", 1, 1).random(4).tolist() == first
    assert numpy_stream(0, "a", 1, 2).random(4).tolist() != first


def test_scoped_leaves_the_global_generator_as_it_was() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        expected = [torch.rand(3).tolist(), torch.rand(3).tolist()]
        torch.manual_seed(5)
        first = torch.rand(3).tolist()
        with scoped(0, "layers", 1, 1):
            inside = torch.rand(3).tolist()
        assert [first, torch.rand(3).tolist()] == expected
        with scoped(0, "layers", 1, 1):
            assert torch.rand(3).tolist() == inside
        with scoped(0, "layers", 1, 2):
            assert torch.rand(3).tolist() != inside


def test_scoped_puts_the_state_back_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(KeyError), scoped(0, "layers"):
        {}[torch.rand(3)]
    assert torch.equal(torch.get_rng_state(), before)


def test_scopes_nest() -> None:
    with scoped(0, "outer"):
        expected = torch.rand(2).tolist()
    with scoped(0, "outer"):
        first = torch.rand(1).item()
        with scoped(0, "inner"):
            torch.rand(5)
        assert [first, torch.rand(1).item()] == expected


def test_scoped_drives_dropout_and_layer_init() -> None:
    with scoped(3, "layers", 2, 1):
        masks = torch.dropout(torch.ones(50), 0.5, train=True)
        weights = torch.nn.Linear(3, 3).weight.detach().clone()
    with scoped(3, "layers", 2, 1):
        assert torch.equal(torch.dropout(torch.ones(50), 0.5, train=True), masks)
        assert torch.equal(torch.nn.Linear(3, 3).weight, weights)


def test_scoped_covers_the_generators_of_python_and_numpy() -> None:
    python, legacy = random.getstate(), np.random.get_state()[1].tolist()
    drawn = []
    for name in ((0, "layers", 1, 1), (0, "layers", 1, 1), (0, "layers", 1, 2)):
        with scoped(*name):
            drawn.append((random.random(), float(np.random.random()), torch.rand(()).item()))
    assert drawn[0] == drawn[1]
    assert all(one != other for one, other in zip(drawn[0], drawn[2], strict=True))
    assert random.getstate() == python
    assert np.random.get_state()[1].tolist() == legacy


def test_a_scope_of_torch_alone_draws_the_same_from_torch_and_leaves_the_others_be() -> None:
    with scoped(0, "layers", 2):
        expected = torch.rand(3)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    rest = random.random(), np.random.rand(), torch.rand(1)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    with scoped(0, "layers", 2, torch_alone=True):
        assert torch.equal(torch.rand(3), expected)
        found = random.random(), np.random.rand()
    assert (*found, torch.rand(1)) == rest


@pytest.mark.parametrize("path", SOURCES, ids=[path.stem for path in SOURCES])
def test_no_global_generator_in_the_sources(path: Path) -> None:
    """Calls that draw from, or seed, a generator that everything in the process shares.

    `rng.scoped` alone may, for code that knows no other.
    """
    if path == Path(fedistill.rng.__file__):
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = {alias.name for alias in node.names}
            stdlib = isinstance(node, ast.ImportFrom) and node.module == "random"
            wrong += ["stdlib random"] * ("random" in named or (stdlib and named != {"Random"}))
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg for keyword in node.keywords}
        drawn = {"randperm", "rand", "randn", "randint", "multinomial", "bernoulli", "normal"}
        if called.startswith(("np.random.", "numpy.random.")) and called != "np.random.default_rng":
            wrong.append(called)
        if called in {"np.random.default_rng", "Random"} and not node.args:
            wrong.append(f"{called}() without a seed")
        if called in {"torch.manual_seed", "torch.seed", "torch.random.manual_seed", "torch.set_rng_state"}:
            wrong.append(called)
        if (
            called.removeprefix("torch.") in drawn
            and called.startswith("torch.")
            and "generator" not in given
        ):
            wrong.append(f"{called} without a generator")
    assert wrong == []
    assert "default_generator" not in path.read_text(encoding="utf-8")
