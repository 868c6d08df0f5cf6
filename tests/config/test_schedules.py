"""Learning rate schedules: by hand, as properties, and what is said of wrong ones."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedistill.config.schedules import Constant, Cosine, Schedule, Step
from fedistill.config.toml import parse, to_toml
from fedistill.config.training import TrainOptimizer
from fedistill.errors import ExperimentError

EXPERIMENT: dict[str, Any] = {
    "rounds": 4,
    "task": {"name": "digits", "clients": 2},
    "models": {"clients": ["mlp-s"], "server": "mlp-s"},
    "arms": [{"method": "fedavg"}],
}


def parsed(optimizer: dict[str, Any]) -> TrainOptimizer:
    found = parse({**EXPERIMENT, "train": {"optimizer": optimizer}}, "exp.toml")
    assert parse_again(to_toml(found)) == found
    return found.arms[0].train.optimizer


def parse_again(text: str) -> Any:
    import tomllib

    return parse(tomllib.loads(text), "exp.toml")


@pytest.mark.parametrize(
    ("schedule", "length", "expected"),
    [
        (Constant(), 3, [1, 1, 1]),
        (Constant(warm_up=2), 4, [1 / 3, 2 / 3, 1, 1]),
        (Cosine(name="cosine"), 4, [1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4]),
        (Cosine(name="cosine", final=0.2), 2, [1, 0.6]),
        (Cosine(name="cosine", warm_up=1), 3, [0.5, 1, 0.5]),
        (Step(name="step", every=2, falls_to=0.5), 5, [1, 1, 0.5, 0.5, 0.25]),
        (Step(name="step", every=1, warm_up=1), 4, [0.5, 1, 0.1, 0.01]),
        (Cosine(name="cosine", warm_up=9), 2, [0.1, 0.2]),
    ],
    ids=str,
)
def test_factors(schedule: Schedule, length: int, expected: list[float]) -> None:
    assert [schedule.factor(place, length) for place in range(length)] == pytest.approx(expected)


@given(
    kind=st.sampled_from(["constant", "cosine(final=0.1)", "cosine", "step(every=3, falls_to=0.01)"]),
    warm_up=st.integers(0, 20),
    length=st.integers(1, 3000),
    place=st.integers(0, 2999),
)
def test_a_factor_is_above_0_at_most_1_and_falls_after_the_warm_up(
    kind: str, warm_up: int, length: int, place: int
) -> None:
    schedule = TrainOptimizer(schedule=kind).schedule
    assert schedule is not None
    schedule = schedule.model_copy(update={"warm_up": warm_up})
    place = min(place, length - 1)
    here, after = schedule.factor(place, length), schedule.factor(place + 1, length + 1)
    assert 0 < here <= 1
    following = schedule.factor(min(place + 1, length - 1), length)
    assert following <= here if place >= warm_up else following >= here or kind != "constant"
    assert 0 < after <= 1


def test_rounds_set_the_rate_of_a_round_and_steps_that_of_a_step() -> None:
    over_rounds = TrainOptimizer(lr=0.4, schedule="step(every=2, falls_to=0.5)").resolved("image")
    rates = [over_rounds.in_round(number, 5).lr for number in range(1, 6)]
    assert rates == pytest.approx([0.4, 0.4, 0.2, 0.2, 0.1])
    assert over_rounds.in_round(3, 5).schedule is None
    assert [over_rounds.lr_at(step, 9) for step in range(9)] == [0.4] * 9
    over_steps = TrainOptimizer(lr=0.4, schedule="step(every=2, falls_to=0.5, over=steps)").resolved("image")
    assert over_steps.in_round(3, 5) == over_steps
    assert [over_steps.lr_at(step, 5) for step in range(5)] == pytest.approx([0.4, 0.4, 0.2, 0.2, 0.1])


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("cosine", {"name": "cosine", "over": "rounds", "warm_up": 0, "final": 0.0}),
        ("cosine(warm_up=3, over=steps)", {"name": "cosine", "over": "steps", "warm_up": 3, "final": 0.0}),
        ({"warm_up": 2}, {"name": "constant", "over": "rounds", "warm_up": 2}),
        (
            {"name": "step", "every": 5},
            {"name": "step", "over": "rounds", "warm_up": 0, "every": 5, "falls_to": 0.1},
        ),
    ],
    ids=str,
)
def test_spellings(written: Any, found: dict[str, Any]) -> None:
    schedule = parsed({"schedule": written}).schedule
    assert schedule is not None
    assert schedule.model_dump() == found


def test_an_arm_with_another_optimizer_has_no_schedule_of_the_first() -> None:
    train = {"optimizer": {"name": "sgd", "schedule": "cosine"}}
    arms = [{"method": "fedavg"}, {"method": "fedprox", "train": {"optimizer": {"name": "adamw"}}}]
    found = parse({**EXPERIMENT, "train": train, "arms": arms}, "exp.toml")
    assert [arm.train.optimizer.schedule is None for arm in found.arms] == [False, True]


@pytest.mark.parametrize(
    ("optimizer", "what"),
    [
        (
            {"schedule": "cosin"},
            "`train.optimizer.schedule.name` = 'cosin': must be one of constant, cosine, step. Did you mean",
        ),
        ({"schedule": "cosine(final=2)"}, "`train.optimizer.schedule.final` = 2: must be less than 1"),
        ({"schedule": "step"}, "`train.optimizer.schedule.every` is missing"),
        (
            {"schedule": "cosine(every=2)"},
            "unknown key `train.optimizer.schedule.every`. Known: final, name,",
        ),
        ({"schedule": "cosine(over=epochs)"}, "must be 'rounds' or 'steps'"),
        ({"schedule": "cosine("}, "`train.optimizer.schedule`: 'cosine(': the brackets do not enclose"),
        ({"nesterov": True}, "`nesterov` is a form of momentum: set `momentum`"),
        ({"name": "adamw", "momentum": 0.5}, "`momentum` = 0.5 is for sgd, and adamw has none"),
        ({"name": "a:b"}, "'a:b' has no default learning rate: set `lr`"),
        ({"name": "a:b", "lr": 1, "weight_decay": 0.1}, "set those of 'a:b' in the function"),
        ({"name": "a:b", "lr": 1, "momentum": 0.1}, "is for sgd, and your own has none"),
        ({"clip_norm": 0}, "`train.optimizer.clip_norm` = 0: must be greater than 0"),
        ({"decay": "biases"}, "`train.optimizer.decay` = 'biases': must be 'all' or 'matrices'"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_in_one_line(optimizer: dict[str, Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError) as caught:
        parsed(optimizer)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)
