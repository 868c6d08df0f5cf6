"""The table: what stands in it, worked out by hand."""

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedistill.config.units import format_bytes
from fedistill.errors import ExperimentError
from fedistill.experiment.measure import ACCURACY, Measure
from fedistill.experiment.reach import reach_markdown, reached
from fedistill.experiment.table import headings, last_and_best, markdown, rows
from fedistill.experiment.terminal_table import rich_table


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1049, "1.05 kB"),
        (12_345, "12.3 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (1_234_567, "1.23 MB"),
        (999_500_000, "1 GB"),
        (45_600_000_000, "45.6 GB"),
        (7_890_000_000_000, "7.89 TB"),
        (12_345_000_000_000_000, "12,345 TB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert format_bytes(count) == text


@given(st.integers(0, 10**18))
def test_sizes_are_short_plain_and_right_within_half_a_percent(count: int) -> None:
    number, unit = format_bytes(count).split()
    factor = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}[unit]
    assert "e" not in number
    assert float(number.replace(",", "")) * factor == pytest.approx(count, rel=0.0051)
    assert len(number.replace(",", "")) <= 4 or unit == "TB"


def played(round: int, up: int, down: int, **views: float) -> dict[str, Any]:
    named = {name.replace("_", "@"): value for name, value in views.items()}
    return {"round": round, "bytes_up": up, "bytes_down": down, "views": named}


RESULTS: dict[str, Any] = {
    "task": {"name": "digits", "clients": 3, "partition": "dirichlet(alpha=0.3)"},
    "arms": [
        {
            "name": "dsfl",
            "status": "done",
            "server_model": "cnn-m",
            "client_models": ["cnn-s", "mlp-s", "cnn-s"],
            "rounds": [
                played(1, 1000, 0, server_global=0.5, client_global=0.25, client_own=0.3),
                played(2, 1000, 2000),
                played(3, 1000, 2000, server_global=0.75, client_global=0.5, client_own=0.3),
                played(4, 1000, 2000, server_global=0.625, client_global=0.5, client_own=0.2),
            ],
            "bytes_setup": 500,
            "bytes_public": 7_000,
            "bytes_total": 10_500,
            "bytes_transport": 0,
        },
        {
            "name": "bad|one [x]",
            "status": "failed",
            "server_model": None,
            "client_models": ["mlp-s"],
            "rounds": [],
            "bytes_setup": 0,
            "bytes_public": 0,
            "bytes_total": 0,
            "bytes_transport": 0,
        },
        {
            "name": "alone",
            "status": "stopped",
            "server_model": "cnn-m",
            "client_models": [],
            "rounds": [played(1, 0, 0, server_global=1.0)],
            "bytes_setup": 0,
            "bytes_public": 0,
            "bytes_total": 0,
            "bytes_transport": 0,
        },
    ],
}


def test_last_and_best() -> None:
    dsfl = RESULTS["arms"][0]
    assert last_and_best(dsfl, "server@global") == (0.625, 0.75, 3)
    # Of equal rounds the first is the best one.
    assert last_and_best(dsfl, "client@global") == (0.5, 0.5, 3)
    assert last_and_best(dsfl, "client@own") == (0.2, 0.3, 1)
    assert last_and_best(RESULTS["arms"][2], "client@own") is None
    assert last_and_best(RESULTS["arms"][1], "server@global") is None


def test_bytes_to_reach_an_accuracy() -> None:
    dsfl = RESULTS["arms"][0]
    # Set-up and all rounds up to the first that is good enough, evaluated or not.
    assert reached(dsfl, "server@global", 0.5) == (500 + 1000, 1)
    assert reached(dsfl, "server@global", 0.51) == (500 + 1000 + 3000 + 3000, 3)
    assert reached(dsfl, "server@global", 0.76) is None
    assert reached(dsfl, "client@own", 0.3) == (1500, 1)
    assert reached(RESULTS["arms"][1], "server@global", 0.0) is None


def with_losses() -> dict[str, Any]:
    """The results with a second metric, of which less is better, and with what sites were asked."""
    losses = [{"server@global": 2.0, "client@own": 1.5}, {"server@global": 0.5}, {"server@global": 0.75}]
    arm = RESULTS["arms"][0]
    first, _, third, fourth = arm["rounds"]
    rounds = [
        {**one, "metrics": {"log-loss": found}}
        for one, found in zip((first, third, fourth), losses, strict=True)
    ]
    rounds[-1]["views"] = {**rounds[-1]["views"], "server@own": 0.25}
    metrics = [{"name": "log-loss", "better": "lower", "most": None}]
    return {**RESULTS, "metrics": metrics, "arms": [{**arm, "rounds": rounds, "bytes_evaluation": 1234}]}


def test_another_metric_in_place_of_accuracy() -> None:
    results: Any = with_losses()
    (arm,) = results["arms"]
    losses = Measure.find(results, "log-loss")
    assert last_and_best(arm, "server@global", losses) == (0.75, 0.5, 3)
    assert last_and_best(arm, "client@own", losses) == (1.5, 1.5, 1)
    assert reached(arm, "server@global", 1.0, losses) == (500 + 1000 + 3000, 3)
    assert reached(arm, "server@global", 0.4, losses) is None
    (row,) = rows(results, losses)
    assert row[2:6] == ["0.750 (0.500 @3)", "-", "1.500 (1.500 @1)", "-"]
    (row,) = rows(results)
    assert row[5] == "25.0% (25.0% @4)"
    assert headings(results)[5] == "server@own"
    assert row[headings(results).index("evaluation")] == "1.23 kB"
    arm["codec"] = "fp16"
    assert reach_markdown(results, "server@global", [1.0], losses).splitlines() == [
        "| arm | codec | server@global log-loss 1.000 |",
        "|---|---|---:|",
        "| dsfl | fp16 | 4.5 kB / 11.5 kB @3 |",
    ]
    assert "0.750 (0.500 @3)" in markdown(results, losses)
    assert str(rich_table(results, 200, losses).title).startswith("log-loss: digits")


def test_metrics_that_a_run_does_not_have_are_refused() -> None:
    results: Any = with_losses()
    with pytest.raises(
        ExperimentError, match=r"--metric log-los: the run has accuracy, log-loss; .*'log-loss'"
    ):
        Measure.find(results, "log-los")
    assert Measure.find(results, "accuracy") == ACCURACY
    assert ACCURACY.read_target("--reach", "80") == 0.8
    assert Measure.find(results, "log-loss").read_target("--reach", "2,5") == 2.5
    with pytest.raises(ExperimentError, match=r"--reach '800' is no accuracy: write 0\.8, 80 or 80%"):
        ACCURACY.read_target("--reach", "800")
    with pytest.raises(ExperimentError, match=r"--reach much: log-loss is a number, such as 0\.5"):
        Measure.find(results, "log-loss").read_target("--reach", "much")


def test_reach_as_markdown() -> None:
    named = {"tasks": {}, "arms": [{**arm, "codec": f"c{n}"} for n, arm in enumerate(RESULTS["arms"])]}
    lines = reach_markdown(named, "server@global", [0.5, 0.7, 0.9]).splitlines()
    assert lines == [
        "| arm | codec | server@global 50% | server@global 70% | server@global 90% |",
        "|---|---|---:|---:|---:|",
        "| dsfl | c0 | 1.5 kB / 8.5 kB @1 | 7.5 kB / 14.5 kB @3 | - |",
        "| alone | c2 | 0 B @1 | 0 B @1 | 0 B @1 |",
    ]


DSFL = [
    "dsfl",
    "cnn-s, mlp-s -> cnn-m",
    "62.5% (75.0% @3)",
    "50.0% (50.0% @3)",
    "20.0% (30.0% @1)",
    "4 kB",
    "6 kB",
    "500 B",
    "7 kB",
    "10.5 kB",
    "17.5 kB",
]
ZEROS = ["0 B"] * 6


def test_rows() -> None:
    assert rows(RESULTS) == [
        DSFL,
        ["bad|one [x] [failed]", "mlp-s -> -", "-", "-", "-", *ZEROS],
        ["alone [stopped]", "- -> cnn-m", "100.0% (100.0% @1)", "-", "-", *ZEROS],
    ]
    assert all(len(row) == len(headings(RESULTS)) for row in rows(RESULTS))


def test_markdown() -> None:
    head, rule, first, second, third = markdown(RESULTS).split("\n")
    assert head == (
        "| arm | clients -> server | server@global | client@global | client@own | up | down | set-up"
        " | public data | total | total + public |"
    )
    assert rule == "|---|---|" + "---:|" * 9
    assert first == f"| {' | '.join(DSFL)} |"
    # A bar in a name is no border of a cell.
    assert second.startswith(r"| bad\|one [x] [failed] | mlp-s -> - | - |")
    assert second.replace(r"\|", "").count("|") == third.count("|") == len(headings(RESULTS)) + 1


def test_what_was_spent_of_privacy_has_a_column_where_there_was_noise() -> None:
    """The most of any client, rounded up, with its δ below."""
    first, *others = RESULTS["arms"]
    private = {**RESULTS, "arms": [{**first, "privacy": {"most": 2.341, "delta": 1e-5}}, *others]}
    head, _, dsfl, other, *_, note = markdown(private).splitlines()
    place = head.split(" | ").index("ε")
    assert [row.split(" | ")[place] for row in (dsfl, other.replace(r"\|", ""))] == ["2.35", "-"]
    assert note.startswith("ε is the most that a client has spent of its privacy, at δ = 1e-05;")
    assert "ε" not in markdown(RESULTS)


def test_what_a_network_adds_has_a_column_where_there_was_one() -> None:
    first, *others = RESULTS["arms"]
    carried = {**RESULTS, "arms": [{**first, "bytes_transport": 4_321}, *others]}
    assert headings(carried) == (*headings(RESULTS), "transport")
    assert [row[-1] for row in rows(carried)] == ["4.32 kB", "0 B", "0 B"]
    assert markdown(carried).splitlines()[0].endswith("| total + public | transport |")
    assert "transport" in shown(carried)


def shown(results: dict[str, Any]) -> str:
    sink = io.StringIO()
    Console(file=sink, width=240).print(rich_table(results, 240))
    return sink.getvalue()


WORKED: dict[str, Any] = {
    **RESULTS,
    "arms": [
        # Of three clients: 4 G each, and 0.
        {**RESULTS["arms"][0], "multiply_adds": 12_000_000_000, "memory": 4_321_000},
        {**RESULTS["arms"][1], "multiply_adds": 0, "memory": 0},
        RESULTS["arms"][2],  # of an earlier version
    ],
}


def test_what_clients_compute_has_columns_where_it_was_counted() -> None:
    assert headings(WORKED) == (*headings(RESULTS), "multiply-adds", "memory")
    assert [row[-2:] for row in rows(WORKED)] == [["4 G", "4.32 MB"], ["0", "-"], ["-", "-"]]
    assert [row[:-2] for row in rows(WORKED)] == rows(RESULTS)
    lines = markdown(WORKED).splitlines()
    assert lines[0].endswith("| total + public | multiply-adds | memory |")
    assert lines[-1].startswith("Bytes are summed over clients. Multiply-adds are those of one client")
    assert "multiply-adds and memory of a client" in shown(WORKED)
    assert "multiply-adds" not in shown(RESULTS) + markdown(RESULTS)


def test_work_of_several_seeds_is_a_mean_with_its_deviation() -> None:
    first, *others = SEEDS["arms"]
    # Means of three clients: 1, 2 and 3 G.
    worked = [
        {**one, "multiply_adds": sum_of_clients, "memory": 2_000}
        for one, sum_of_clients in zip(first["seeds"], (3 * 10**9, 6 * 10**9, 9 * 10**9), strict=True)
    ]
    results = {**SEEDS, "arms": [{**first, "seeds": worked}, *others]}
    assert [row[-2:] for row in rows(results)] == [["2 G ± 1 G", "2 kB"], ["-", "-"], ["-", "-"]]


def test_work_goes_from_a_narrow_terminal_before_best_rounds_and_bytes_do() -> None:
    at = {width: "\n".join(at_width(WORKED, width)) for width in (80, 150, 177, 200)}
    assert "multiply" not in at[80]
    assert all(text in at[80] for text in ("10.5 kB", "17.5 kB"))
    assert "multiply" not in at[177]
    assert "62.5% (75.0% @3)" in at[177]
    assert "multiply-adds" in at[200]
    assert "4 G" in at[150]
    assert "75.0%" not in at[150]


def test_rich_table_shows_all_cells_as_they_are() -> None:
    lines = shown(RESULTS).splitlines()
    assert lines[0].strip() == "digits, 3 clients, dirichlet(alpha=0.3), 4 rounds"
    assert lines[-1].strip() == "last round (best @round); bytes summed over clients, up and down, all rounds"
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert cells == rows(RESULTS)


def test_names_are_text_and_no_markup() -> None:
    odd = {**RESULTS["arms"][0], "name": "[bold]x[/bold] [/] \\"}
    task = {**RESULTS["task"], "name": "/data/[x]/train.csv"}
    text = shown({"task": task, "arms": [odd]})
    assert "[bold]x[/bold] [/] \\" in text
    assert "/data/[x]/train.csv, 3 clients" in text


def test_no_arms() -> None:
    assert "0 rounds" in shown({**RESULTS, "arms": []})


def at_width(results: dict[str, Any], width: int) -> list[str]:
    sink = io.StringIO()
    Console(file=sink, width=width).print(rich_table(results, width))
    return sink.getvalue().splitlines()


def row_of(results: dict[str, Any], width: int) -> list[str]:
    """The cells of the first arm, split at spaces."""
    return next(line for line in at_width(results, width) if line.strip(" │").startswith("dsfl")).split()


VIEWED = ["62.5%", "50.0%", "20.0%"]


@pytest.mark.parametrize(
    ("width", "cells"),
    [
        (60, [*VIEWED, "4 kB", "6 kB"]),
        (80, [*VIEWED, "4 kB", "6 kB", "7 kB", "10.5 kB", "17.5 kB"]),
        (100, [*VIEWED, "4 kB", "6 kB", "500 B", "7 kB", "10.5 kB", "17.5 kB"]),
        (120, ["cnn-s, mlp-s -> cnn-m", *VIEWED, *DSFL[5:]]),
        (150, ["cnn-s, mlp-s -> cnn-m", *VIEWED, *DSFL[5:]]),
    ],
)
def test_a_narrow_terminal_keeps_accuracies_and_bytes_up_and_down_whole(width: int, cells: list[str]) -> None:
    assert row_of(RESULTS, width) == ["dsfl", *" ".join(cells).split()]
    assert all(len(line) <= width for line in at_width(RESULTS, width))


def test_columns_with_nothing_but_zeros_are_hidden_first() -> None:
    first, *others = RESULTS["arms"]
    plain = {
        **RESULTS,
        "arms": [{**first, "bytes_setup": 0, "bytes_public": 0, "bytes_total": 10_000}, *others],
    }
    # 171 columns hold all; with two columns less, the best rounds and the models still have room.
    assert "public data" in "\n".join(at_width(plain, 171))
    text = "\n".join(at_width(plain, 150))
    assert "62.5% (75.0% @3)" in text
    assert "cnn-s, mlp-s -> cnn-m" in text
    assert "set-up" not in text
    assert "public data" not in text
    # No column of accuracies or of bytes up and down is hidden, though it is empty.
    silent = {**RESULTS, "arms": [RESULTS["arms"][1]]}
    assert at_width(silent, 60)[3].split() == ["arm", "@global", "@global", "@own", "up", "down"]


@pytest.mark.parametrize("width", [80, 100, 120, 150])
def test_a_long_name_is_folded_and_hides_no_number(width: int) -> None:
    name = "dsfl-" + "with-a-long-name-" * 5
    named = {**RESULTS, "arms": [{**RESULTS["arms"][0], "name": name}]}
    lines = at_width(named, width)
    assert all(len(line) <= width for line in lines)
    row = next(line for line in lines if line.strip().startswith("dsfl"))
    for number in (*VIEWED, "4 kB", "6 kB"):
        assert number in row
    assert "…" not in "".join(lines)


# --- several seeds ---


def seed(number: int, *rounds: dict[str, Any], status: str = "done", public: int = 0) -> dict[str, Any]:
    return {
        "seed": number,
        "status": status,
        "rounds": list(rounds),
        "bytes_setup": 100,
        "bytes_public": public,
        "bytes_total": 100 + sum(entry["bytes_up"] + entry["bytes_down"] for entry in rounds),
        "bytes_transport": 0,
    }


SEEDS: dict[str, Any] = {
    "schema": 2,
    "task": RESULTS["task"],
    "seeds": [3, 4, 5],
    "arms": [
        {
            "name": "dsfl",
            "codec": "fp32",
            "server_model": "cnn-m",
            "client_models": ["cnn-s"],
            "seeds": [
                # Last 0.5, 0.6 and 0.7: mean 0.6, deviation 0.1. Best 0.6, 0.6 and 0.9: mean 0.7, squared
                # distances 0.01, 0.01 and 0.04, deviation the root of 0.03. Up 2, 4 and 6 kB, down 1 kB.
                seed(3, played(1, 1000, 500, server_global=0.6), played(2, 1000, 500, server_global=0.5)),
                seed(4, played(1, 2000, 500, server_global=0.1), played(2, 2000, 500, server_global=0.6)),
                seed(5, played(1, 3000, 500, server_global=0.9), played(2, 3000, 500, server_global=0.7)),
            ],
        },
        {
            "name": "part|ly",
            "codec": "fp16",
            "server_model": "cnn-m",
            "client_models": [],
            "seeds": [
                seed(3, played(1, 900, 0, server_global=0.5), public=1000),
                seed(4, played(1, 700, 0, server_global=0.7), public=3000),
                seed(5, played(1, 9, 9, server_global=0.99), status="failed"),
            ],
        },
        {
            "name": "only begun",
            "codec": "fp16",
            "server_model": "cnn-m",
            "client_models": [],
            "seeds": [seed(3, played(1, 900, 0, server_global=0.25), status="stopped")],
        },
    ],
}


def test_rows_of_several_seeds_are_means_and_deviations() -> None:
    dsfl, partly, begun = rows(SEEDS)
    assert dsfl == [
        *("dsfl", "cnn-s -> cnn-m", "60.0% ± 10.0% (70.0% ± 17.3%)", "-", "-"),
        # Total 3.1, 5.1 and 7.1 kB.
        *("4 kB ± 2 kB", "1 kB", "100 B", "0 B", "5.1 kB ± 2 kB", "5.1 kB ± 2 kB"),
    ]
    # A seed that failed is not among those that count: 0.5 and 0.7, 900 and 700 B, 1 and 3 kB; with the
    # public set, 2 and 3.8 kB.
    assert partly == [
        *("part|ly [2 of 3 seeds, 1 failed]", "- -> cnn-m", "60.0% ± 14.1% (60.0% ± 14.1%)", "-", "-"),
        *("800 B ± 141 B", "0 B", "100 B", "2 kB ± 1.41 kB", "900 B ± 141 B", "2.9 kB ± 1.27 kB"),
    ]
    # Where none is done, it is shown how far the arm came.
    assert begun[:3] == ["only begun [0 of 3 seeds]", "- -> cnn-m", "25.0% (25.0%)"]
    lines = markdown(SEEDS).splitlines()
    assert lines[3].startswith(r"| part\|ly [2 of 3 seeds, 1 failed] |")
    assert lines[5:] == [
        "",
        "Mean ± standard deviation (n - 1) over seeds 3, 4, 5: last round (best round).",
    ]


def test_bytes_to_reach_an_accuracy_are_medians_with_their_ranges() -> None:
    lines = reach_markdown(SEEDS, "server@global", [0.1, 0.6, 0.65, 0.8]).splitlines()
    assert [line.split(" | ", 2)[2] for line in lines[2:5]] == [
        # 0.6 is reached with 1.6, 5.1 and 3.6 kB, in rounds 1, 2 and 1; 0.65 by one seed of three.
        "2.6 kB (1.6 kB to 3.6 kB) @1 | 3.6 kB (1.6 kB to 5.1 kB) @1 | - (3.6 kB to -) | - (3.6 kB to -) |",
        "900 B (800 B to 1 kB) / 2.9 kB (2 kB to 3.8 kB) @1 | - (800 B to -) / - (3.8 kB to -)"
        " | - (800 B to -) / - (3.8 kB to -) | - |",
        "1 kB @1 | - | - | - |",
    ]
    assert [line.split(" | ")[0] for line in lines[2:5]] == [
        "| dsfl",
        r"| part\|ly [2 of 3 seeds, 1 failed]",
        "| only begun [0 of 3 seeds]",
    ]
    assert lines[5:] == [
        "",
        "Median (smallest to largest) of seeds 3, 4, 5; a seed that does not reach an accuracy counts as more"
        " than any number, shown as `-`.",
    ]


def test_a_narrow_table_of_several_seeds_keeps_the_deviations_of_accuracies() -> None:
    console = Console(width=70, file=io.StringIO())
    with console.capture() as captured:
        console.print(rich_table(SEEDS, 70))
    text = captured.get()
    assert max(map(len, text.splitlines())) <= 70
    assert "60.0% ± 10.0%" in text
    assert "4 kB ± 2 kB" not in text
    assert "dsfl" in text
    assert "seeds 3, 4, 5" in " ".join(text.split())
