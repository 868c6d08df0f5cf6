"""What tuning varies: every value is one that the arm can have, and no settings are proposed twice."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedistill import ExperimentError, load, parse
from fedistill.aggregation.registry import AGGREGATIONS as KNOWN_AGGREGATIONS
from fedistill.communication.codecs import registry as codecs
from fedistill.config.schema import Arm
from fedistill.federation.arm import settle_arm
from fedistill.methods.registry import METHODS as KNOWN_METHODS
from fedistill.methods.registry import create_method
from fedistill.studies import search_space as spaces
from fedistill.studies.search_space import Settings, Space, changed, propose, search_space, size
from helpers.method_rows import ROWS, Row

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "fashion-mnist.toml"
PAGE = ROOT / "docs" / "tuning.md"


def arm_of(**keys: Any) -> Arm:
    raw = {
        "rounds": 1,
        "task": {"name": "digits"},
        "models": {"clients": ["cnn-s"], "server": "cnn-s"},
        "train": {"optimizer": {"lr": 0.02}},
        "arms": [{"method": "fedavg", **keys}],
    }
    return parse(raw, "test").arms[0]


def test_training_is_not_varied_where_nobody_trains() -> None:
    space = space_of(method="ridge", width=64)
    assert space["width"] == (64, 32, 96, 128)
    assert not any(key.startswith("train") for key in space)
    assert "train.epochs" in space_of(method="ridge", distill_epochs=5)


def space_of(vary: dict[str, Any] | None = None, **keys: Any) -> Space:
    return search_space(arm_of(**keys), "image", vary or {})


def check_all_values(arm: Arm) -> Space:
    """Each value is taken, and stands where it belongs; so do all last values together."""
    space = search_space(arm, "image", {})
    trials = [{key: value} for key, (_, *others) in space.items() for value in others]
    for tried in [*trials, {key: values[-1] for key, values in space.items()}]:
        found = settle_arm(changed(arm, tried, "image"), "image")
        full = {**found.model_dump(), **create_method(found).settings.model_dump()}
        codecs.pair(found.codec or "")
        for key, value in tried.items():
            place: Any = full
            for part in key.split("."):
                place = place[part]
            assert (place["name"] if key == "aggregation" else place) == value
    return space


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_every_method_has_a_space_of_valid_settings(row: Row) -> None:
    space = check_all_values(arm_of(method=row.method, models=row.models, **row.settings))
    trained = {"train.epochs", "train.optimizer.lr", "train.loss", "train.label_smoothing"}
    solved = row.method in ("ridge", "gaussian", "naive-bayes") and "distill_epochs" not in row.settings
    assert trained & space.keys() == (set() if solved else trained)
    settings = KNOWN_METHODS[row.method].Settings.model_validate(row.settings)
    own = {key for key, value in settings if value is not None}
    if own & {"distill_epochs", "epochs", "server_epochs", "digest_epochs"}:
        assert {key for key in space if key.endswith("epochs")} > {"train.epochs"}
    refined = row.settings.get("refine_labels", False)  # with the majority alone
    assert ("aggregation" in space) == ("aggregation" in own and not refined)


@pytest.mark.parametrize("codec", spaces.CODECS)
def test_every_strength_of_a_codec_is_valid(codec: str) -> None:
    method = "dsfl" if codec in ("simplex", "top-classes") else "fedavg"
    space = check_all_values(arm_of(method=method, codec=codec))
    assert {f"codec.{name}" for name in spaces.CODECS[codec]} <= space.keys()


def test_the_tables_name_what_there_is() -> None:
    for name, strengths in spaces.CODECS.items():
        assert strengths.keys() <= codecs.CODECS[name].Settings.model_fields.keys()
    known = {key for method in KNOWN_METHODS.values() for key in method.Settings.model_fields}
    assert {key.split(".")[0] for key in spaces.METHODS} <= known
    assert {name for names in spaces.AGGREGATIONS.values() for name in names} <= KNOWN_AGGREGATIONS.keys()


def test_the_page_has_all_values() -> None:
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines()]
    page = {tuple(part.split("` ")[0].strip("`") for part in row[:-1]): row[-1] for row in rows if row[1:]}

    def written(candidates: spaces.Candidates) -> str:
        if isinstance(candidates, spaces.Times):
            return ", ".join(f"\N{MULTIPLICATION SIGN} {factor:.3g}" for factor in candidates.factors)
        return ", ".join(str(value).lower() for value in candidates)

    for key, candidates in {**spaces.TRAIN, **spaces.METHODS}.items():
        assert page.pop((key,)) == written(candidates)
    for name, strengths in spaces.CODECS.items():
        for key, candidates in strengths.items():
            assert page.pop((name, key)) == written(candidates)
    aggregations = [row[-1] for row in rows if row[0].startswith("`aggregation`")]
    assert aggregations == [", ".join(names) for names in spaces.AGGREGATIONS.values()]
    assert [key for key in page if key[0] not in ("setting", "codec", "aggregation", "---")] == []


def test_every_arm_of_the_example_has_a_space() -> None:
    found = {arm.name: search_space(arm, "image", {}) for arm in load(EXAMPLE).arms}
    assert found["fedavg-stc"]["codec.share"] == (0.01, 0.02, 0.05, 0.1)
    assert found["voting"]["distill_epochs"] == (3, 1, 5, 10, 30)
    assert found["local"]["train.epochs"] == (1, 2, 3, 5, 8, 20)
    solved = {"ridge", "ridge-96", "gaussian-32"}
    assert all(size(space) >= 12 for name, space in found.items() if name not in solved)


def test_values_start_with_the_arms_own() -> None:
    space = space_of(codec="qsgd", train={"epochs": 4, "label_smoothing": 0.1})
    assert space == {
        "train.epochs": (4, 1, 2, 3, 5, 8, 20),
        "train.optimizer.lr": (0.02, 0.0067, 0.06),
        "train.loss": ("cross-entropy", "balanced-softmax"),
        "train.label_smoothing": (0.1, 0.0),
        "codec.levels": (15, 1, 3, 7),
    }
    assert size(space) == 7 * 3 * 2 * 2 * 4


def test_defaults_depend_on_the_data() -> None:
    texts = search_space(parse_open_arm(), "text", {})
    assert texts["train.epochs"] == (4, 1, 2, 3, 5, 8, 20)
    assert texts["train.optimizer.lr"] == (0.01, 0.0033, 0.03)


def parse_open_arm() -> Arm:
    raw = {
        "rounds": 1,
        "task": {"name": "bbc-news"},
        "models": {"clients": ["bag"], "server": "bag"},
        "arms": [{"method": "fedavg"}],
    }
    return parse(raw, "test").arms[0]


def test_steps_in_place_of_epochs() -> None:
    space = space_of(train={"steps": 5})
    assert space["train.steps"] == (5, 2, 10, 20)
    assert "train.epochs" not in space


def test_codecs_that_differ_by_direction_are_varied_apart() -> None:
    arm = arm_of(method="dsfl", codec={"up": "onehot", "down": "simplex"})
    assert search_space(arm, "image", {})["codec.down.bits"] == (2, 1, 4)
    found = changed(arm, {"codec.down.bits": 4}, "image")
    assert codecs.title(found.codec or "") == "up onehot, down simplex(bits=4)"
    same = arm_of(method="dsfl", codec={"up": "simplex", "down": "simplex(bits=2)"})
    assert codecs.title(changed(same, {"codec.bits": 1}, "image").codec or "") == "simplex(bits=1)"


def test_what_the_arm_says_itself_stays() -> None:
    arm = arm_of(method="voting", codec="onehot(coder=delta)", samples=50, aggregation="prior-corrected")
    found = changed(arm, {"train.optimizer.lr": 0.06, "distill_epochs": 3}, "image")
    assert found.codec == "onehot(coder=delta)"
    assert found.settings == {"samples": 50, "aggregation": "prior-corrected", "distill_epochs": 3}
    assert found.train.optimizer.lr == 0.06
    assert changed(arm, {}, "image") == arm


def test_usual_values_out_of_range_are_left_out_and_given_ones_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(spaces.METHODS, "gamma", (-1.0, 0.5))  # type: ignore[arg-type]  # a wrong value
    assert space_of(method="fd")["gamma"] == (0.1, 0.5)
    assert space_of({"gamma": None}, method="fd") == {"gamma": (0.1, 0.5)}
    with pytest.raises(ExperimentError, match=r"arm 'fd': `gamma` = -1\.0: "):
        space_of({"gamma": (-1.0,)}, method="fd")


def test_only_what_is_named_is_varied() -> None:
    vary = {"samples": (50, 100), "codec": ("int8", "onehot"), "train.epochs": None, "distill_epochs": (1,)}
    assert space_of(vary, method="dsfl") == {
        "samples": (None, 50, 100),
        "codec": ("fp32", "int8", "onehot"),
        "train.epochs": (1, 2, 3, 5, 8, 20),
    }
    assert space_of({"distill_epochs": (1, 3)}) == {}


SPACES = st.dictionaries(
    st.sampled_from(["train.epochs", "codec.levels", "mu"]),
    st.integers(1, 4).map(lambda count: tuple(range(count))),
    min_size=1,
)


@settings(deadline=None)
@given(SPACES, st.integers(0, 5), st.sampled_from(["a", "b"]))
def test_a_space_is_gone_through_once_and_then_ends(space: Space, seed: int, arm: str) -> None:
    tried: list[Settings] = []
    while (proposed := propose(space, tried, tried[-1] if tried else None, seed, arm)) is not None:
        for key, value in proposed.items():
            assert value in space[key][1:]  # its own value is left out
        assert proposed not in tried
        assert proposed == propose(space, tried, tried[-1] if tried else None, seed, arm)
        tried.append(proposed)
    assert tried[0] == {}
    assert len(tried) == size(space) == math.prod(map(len, space.values()))


def test_every_second_trial_changes_one_setting_of_the_best() -> None:
    space = {name: tuple(range(6)) for name in ("a", "b", "c", "d")}
    best: Settings = {"a": 3, "c": 1}
    tried: list[Settings] = [{}, best]
    while len(tried) < 20:
        proposed = propose(space, tried, best, 0, "arm")
        assert proposed is not None
        if len(tried) % 2 == 0:
            assert sum(proposed.get(name, 0) != best.get(name, 0) for name in space) == 1
        tried.append(proposed)
    drawn = tried[3::2]
    assert any(sum(one.get(name, 0) != best.get(name, 0) for name in space) > 1 for one in drawn)


def test_another_seed_and_another_arm_try_other_settings() -> None:
    space = {name: tuple(range(9)) for name in ("a", "b", "c", "d")}
    drawn = [propose(space, [{}], None, seed, arm) for seed, arm in ((0, "x"), (1, "x"), (0, "y"))]
    assert all(one != other for one, other in zip(drawn, [*drawn[1:], drawn[0]], strict=True))


def test_a_schedule_is_varied_if_it_is_asked_for() -> None:
    key = "train.optimizer.schedule"
    space = space_of({key: ("cosine", {"name": "step", "every": 2})})
    assert space == {key: (None, "cosine", {"name": "step", "every": 2})}
    found = [changed(arm_of(), {key: value}, "image").train.optimizer for value in space[key][1:]]
    assert [(one.lr, one.schedule.name if one.schedule else None) for one in found] == [
        (0.02, "cosine"),
        (0.02, "step"),
    ]
    assert key not in space_of()
