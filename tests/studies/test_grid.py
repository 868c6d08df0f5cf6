"""The points of a grid."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedistill.errors import ExperimentError
from fedistill.studies.grid import grid_points


def test_all_combinations_the_last_setting_first() -> None:
    points = grid_points(["task.partition.alpha=0.1,1", "task.clients=5, 10"])
    assert [(point.name, point.overrides) for point in points] == [
        ("alpha=0.1, clients=5", ("task.partition.alpha=0.1", "task.clients=5")),
        ("alpha=0.1, clients=10", ("task.partition.alpha=0.1", "task.clients=10")),
        ("alpha=1, clients=5", ("task.partition.alpha=1", "task.clients=5")),
        ("alpha=1, clients=10", ("task.partition.alpha=1", "task.clients=10")),
    ]
    assert points[0].folder == "alpha=0.1_clients=5"


def test_settings_of_one_name_keep_their_whole_keys() -> None:
    (point,) = grid_points(["arms.dsfl.codec=fp16", "arms.fedavg.codec=int8"])
    assert point.name == "arms.dsfl.codec=fp16, arms.fedavg.codec=int8"


def test_commas_inside_a_value_are_part_of_it() -> None:
    written = 'task.partition={ kind = "dirichlet", alpha = 1 },"a,b",[1, [2, 3]]'
    assert [point.overrides for point in grid_points([written])] == [
        ('task.partition={ kind = "dirichlet", alpha = 1 }',),
        ('task.partition="a,b"',),
        ("task.partition=[1, [2, 3]]",),
    ]


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=5, unique=True))
def test_each_value_is_a_point(values: list[int]) -> None:
    points = grid_points([f"rounds={','.join(map(str, values))}"])
    assert [point.overrides for point in points] == [(f"rounds={value}",) for value in values]
    assert len({point.folder for point in points}) == len(values)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (
            ["rounds"],
            r"^--grid rounds: write KEY=VALUE,VALUE, for example task\.partition\.alpha=0\.1,0\.3,1$",
        ),
        (["rounds=1,,2"], r"^--grid rounds=1,,2: write KEY=VALUE,VALUE"),
        (["=1"], r"^--grid =1: write KEY=VALUE,VALUE"),
        (["rounds=1", "rounds=2"], r"^--grid rounds: is there twice; write all of its values in one$"),
        (["rounds=1,1"], r"^--grid: two combinations are called rounds=1; leave out one of them$"),
    ],
)
def test_a_grid_of_another_form_is_refused(grid: list[str], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        grid_points(grid)
