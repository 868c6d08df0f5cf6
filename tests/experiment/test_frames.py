"""Results as pandas tables and as plots, worked out by hand."""

import math
import sys
from typing import Any

import pytest
from matplotlib import pyplot

import fedistill
from fedistill.errors import ExperimentError
from fedistill.experiment import frames
from fedistill.experiment.curves import curves
from fedistill.experiment.plot import plot


def entry(round: int, up: int, down: int, views: dict[str, float], **more: Any) -> dict[str, Any]:
    """A round of two clients, of which one was dropped, that took two seconds."""
    return {
        "round": round,
        "bytes_up": up,
        "bytes_down": down,
        "seconds": 2.0,
        "clients": [0, 1],
        "dropped": [1],
        "views": views,
        **more,
    }


def of_seed(
    seed: int, *rounds: dict[str, Any], setup: int = 0, public: int = 0, **more: Any
) -> dict[str, Any]:
    sent = sum(one["bytes_up"] + one["bytes_down"] for one in rounds)
    return {
        "seed": seed,
        "status": "done",
        "error": None,
        "parameters": {},
        "rounds": list(rounds),
        "bytes_setup": setup,
        "bytes_public": public,
        "bytes_total": setup + sent,
        "bytes_transport": 0,
        **more,
    }


def arm(name: str, *seeds: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "method": name, "codec": "fp32", "seeds": list(seeds)}


def server(accuracy: float) -> dict[str, float]:
    return {"server@global": accuracy}


RESULTS: Any = {
    "task": {"name": "digits", "clients": 2, "partition": "iid"},
    "seeds": [0, 1],
    "arms": [
        arm(
            "dsfl",
            of_seed(
                0,
                entry(1, 10, 20, server(0.5), multiply_adds=7, memory=9),
                entry(2, 10, 20, server(0.8), multiply_adds=7, memory=9),
                setup=100,
                public=1000,
                multiply_adds=14,
                memory=9,
            ),
            of_seed(1, entry(1, 30, 40, server(0.6)), entry(2, 30, 40, server(0.7)), setup=100, public=1200),
        ),
        arm("local", *(of_seed(seed, entry(1, 0, 0, {"client@own": 0.3 + seed / 10})) for seed in (0, 1))),
    ],
}


def test_a_row_for_each_round() -> None:
    found = frames.rounds_frame(RESULTS)
    assert list(found) == [
        *("arm", "seed", "round", "bytes_up", "bytes_down", "bytes_total", "server@global", "client@own"),
        *("seconds", "clients", "dropped", "multiply_adds", "memory"),
    ]
    named = found.set_index(["arm", "seed", "round"])
    assert named["bytes_total"].to_dict() == {
        ("dsfl", 0, 1): 130,
        ("dsfl", 0, 2): 160,
        ("dsfl", 1, 1): 170,
        ("dsfl", 1, 2): 240,
        ("local", 0, 1): 0,
        ("local", 1, 1): 0,
    }
    last = named.loc[("dsfl", 0, 2)]
    assert (last["bytes_up"], last["bytes_down"], last["seconds"]) == (10, 20, 2.0)
    assert (last["clients"], last["dropped"], last["multiply_adds"], last["memory"]) == (2, 1, 7, 9)
    assert last["server@global"] == 0.8
    assert math.isnan(last["client@own"])
    assert found["multiply_adds"].isna().tolist() == [False, False, True, True, True, True]


def test_a_row_for_each_arm_and_seed() -> None:
    found = frames.arms_frame(RESULTS).set_index(["arm", "seed"])
    first = found.loc[("dsfl", 0)]
    assert (first["bytes_up"], first["bytes_down"], first["bytes_setup"]) == (20, 40, 100)
    assert (first["bytes_total"], first["bytes_public"], first["multiply_adds"]) == (160, 1000, 14)
    assert (first["method"], first["codec"], first["status"], first["rounds"]) == ("dsfl", "fp32", "done", 2)
    means = found.groupby("arm")[["server@global", "client@own"]].mean()
    assert means.loc["dsfl", "server@global"] == pytest.approx(0.75)
    assert means.loc["local", "client@own"] == pytest.approx(0.35)
    assert math.isnan(means.loc["local", "server@global"])


def test_bytes_to_an_accuracy_are_infinite_where_it_is_never_reached() -> None:
    found = frames.reach_frame(RESULTS, 0.75, "server@global")
    assert found.to_dict("list") == {
        "arm": ["dsfl", "dsfl"],
        "seed": [0, 1],
        "bytes": [160, math.inf],
        "round": [2, math.inf],
        "bytes_public": [1000, 1200],
    }
    assert found.groupby("arm")["bytes"].median()["dsfl"] == math.inf
    lower = frames.reach_frame(RESULTS, 0.55, "server@global")
    assert lower["bytes"].tolist() == [160, 170]


def test_a_wrong_accuracy_or_view_is_refused() -> None:
    with pytest.raises(ValueError, match=r"accuracy = 80 must be from 0 to 1: write 0\.8 for 80 %"):
        frames.reach_frame(RESULTS, 80, "server@global")
    with pytest.raises(ValueError, match=r"view = 'server' must be one of .* Did you mean 'server@global'\?"):
        frames.reach_frame(RESULTS, 0.8, "server")
    assert frames.reach_frame(RESULTS, 0.8, "client@global").empty


def test_a_run_that_has_not_begun_has_the_same_columns() -> None:
    nothing: Any = {**RESULTS, "arms": []}
    assert frames.rounds_frame(nothing).empty
    assert {"arm", "bytes_total"} <= {*frames.rounds_frame(nothing), *frames.arms_frame(nothing)}


def test_a_curve_is_the_mean_over_seeds_and_their_range() -> None:
    (curve,) = curves(RESULTS, "bytes", "server@global", public=False)
    first, last = curve.points
    assert (first.round, first.x, first.low, first.high) == (1, 150, 0.5, 0.6)
    assert first.accuracy == pytest.approx(0.55)
    assert (last.x, last.low, last.high) == (200, 0.7, 0.8)
    assert curve.sends
    (counted,) = curves(RESULTS, "bytes", "server@global", public=True)
    assert [point.x for point in counted.points] == [1250, 1300]
    (timed,) = curves(RESULTS, "time", "server@global", public=False)
    assert [point.x for point in timed.points] == [2.0, 4.0]


def test_rounds_that_some_seed_has_not_evaluated_do_not_count() -> None:
    """Else a mean would jump where a seed drops out of it."""
    stopped = of_seed(1, entry(1, 30, 40, server(0.1)), status="stopped")
    both: Any = {
        **RESULTS,
        "arms": [arm("dsfl", {**RESULTS["arms"][0]["seeds"][0], "status": "stopped"}, stopped)],
    }
    (curve,) = curves(both, "round", "server@global", public=False)
    assert [point.round for point in curve.points] == [1]


def test_rounds_before_the_first_byte_have_no_place_on_an_axis_of_bytes() -> None:
    late: Any = {
        **RESULTS,
        "arms": [arm("late", of_seed(0, entry(1, 0, 0, server(0.1)), entry(2, 1, 1, server(0.2))))],
    }
    (curve,) = curves(late, "bytes", "server@global", public=False)
    assert [(point.round, point.x) for point in curve.points] == [(2, 2)]
    (by_round,) = curves(late, "round", "server@global", public=False)
    assert [point.round for point in by_round.points] == [1, 2]


def with_views_of_local() -> Any:
    """Both arms have ``client@own``, and ``local`` sends nothing."""
    dsfl = arm("dsfl", of_seed(0, entry(1, 10, 0, {"client@own": 0.2}), entry(2, 90, 0, {"client@own": 0.4})))
    return {**RESULTS, "arms": [dsfl, RESULTS["arms"][1]]}


def test_plotly_draws_lines_bands_and_a_level_for_who_sends_nothing() -> None:
    figure = plot(with_views_of_local(), "bytes", "client@own", "plotly", public=False)
    dsfl, band, level = figure.data
    assert (dsfl.name, list(dsfl.x), list(dsfl.y)) == ("dsfl", [10, 100], [0.2, 0.4])
    assert (band.fill, list(band.x), list(band.y)) == ("toself", [10, 100, 100, 10], [0.3, 0.3, 0.4, 0.4])
    assert (level.name, list(level.x), list(level.y)) == ("local: sends nothing", [10, 100], [0.35, 0.35])
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.xaxis.title.text == "bytes, both ways, all clients; with set-up, without public data"
    assert figure.layout.yaxis.title.text == "accuracy, client@own"
    assert figure.layout.title.text == "digits, 2 clients, iid; mean and range over seeds"
    by_round = plot(with_views_of_local(), "round", "client@own", "plotly", public=False)
    assert by_round.layout.xaxis.type is None
    assert [trace.name for trace in by_round.data if trace.name] == ["dsfl", "local"]


def test_matplotlib_draws_the_same() -> None:
    axes = plot(with_views_of_local(), "bytes", "client@own", "matplotlib", public=True)
    try:
        dsfl, level = axes.lines
        assert (dsfl.get_label(), [*dsfl.get_xdata()], [*dsfl.get_ydata()]) == ("dsfl", [10, 100], [0.2, 0.4])
        assert (level.get_label(), [*level.get_ydata()]) == ("local: sends nothing", [0.35, 0.35])
        (band,) = axes.collections
        assert {tuple(corner) for corner in band.get_paths()[0].vertices} == {
            *((x, y) for x in (10, 100) for y in (0.3, 0.4))
        }
        assert axes.get_xscale() == "log"
        assert axes.get_xlabel() == "bytes, both ways, all clients; with set-up, with public data"
        axes.figure.canvas.draw()
        assert {"10 B", "100 B"} <= {label.get_text() for label in axes.get_xticklabels()}
    finally:
        pyplot.close(axes.figure)


def test_an_arm_has_the_same_colour_in_every_plot() -> None:
    (alone, *_) = plot(RESULTS, "round", "client@own", "plotly", public=False).data[::-1]
    beside = plot(with_views_of_local(), "round", "client@own", "plotly", public=False).data[-1]
    assert alone.name == beside.name == "local"
    assert alone.line.color == beside.line.color


@pytest.mark.parametrize(
    ("x", "view", "backend", "message"),
    [
        ("byte", "server@global", "plotly", r"x = 'byte' must be one of bytes, round, time\. Did you mean"),
        ("bytes", "server@globl", "plotly", r"view = 'server@globl' must be one of .* Did you mean"),
        ("bytes", "server@global", "plotli", r"backend = 'plotli' must be one of plotly, matplotlib\. Did"),
    ],
)
def test_a_wrong_choice_is_refused(x: Any, view: str, backend: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot(RESULTS, x, view, backend, public=False)


def test_without_matplotlib_one_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ExperimentError, match=r"needs the extra `plot` .*: pip install 'fedistill\[plot\]'"):
        plot(RESULTS, "bytes", "server@global", "matplotlib", public=False)


def test_an_experiment_is_built_in_code_as_in_a_file() -> None:
    tables: dict[str, Any] = {
        "rounds": 1,
        "task": {"name": "digits"},
        "models": {"clients": ["cnn-s"], "server": "cnn-s"},
        "arms": [{"method": "fedavg"}],
    }
    assert fedistill.Experiment(**tables) == fedistill.parse(tables)
    trained = fedistill.Experiment(**tables, train={"batch_size": 8, "epochs": 2})
    arms = [{"method": "fedavg", "train": {"epochs": 5}}]
    again = fedistill.Experiment(
        rounds=1, task=trained.task, models=trained.models, train=trained.train, arms=arms
    )
    assert (again.arms[0].train.epochs, again.arms[0].train.batch_size) == (5, 8), (
        "inherited from a built section"
    )
    with pytest.raises(ExperimentError, match=r"^experiment: unknown key `round`\. Did you mean 'rounds'\?$"):
        fedistill.Experiment(round=2, **tables)
    with pytest.raises(ExperimentError, match=r"^mine: unknown key `round`\. Did you mean 'rounds'\?$"):
        fedistill.parse({**tables, "round": 2}, "mine")
