"""Several runs as one: what stays what it was, and what is said where they differ."""

from typing import Any

from fedistill.experiment.reach import reach_markdown
from fedistill.experiment.side_by_side import side_by_side
from fedistill.experiment.table import markdown
from fedistill.experiment.terminal_table import rich_table


def task(**changed: Any) -> dict[str, Any]:
    return {
        "name": "digits",
        "kind": "image",
        "classes": ["0", "1"],
        "clients": 2,
        "partition": "iid",
        "samples": [3, 3],
        "class_counts": [[2, 1], [1, 2]],
        "test": 9,
        "public": None,
        "vocabulary": None,
        **changed,
    }


def of_seed(seed: int, accuracy: float, status: str = "done") -> dict[str, Any]:
    entry = {"round": 1, "bytes_up": 10, "bytes_down": 5, "views": {"server@global": accuracy}}
    return {
        "seed": seed,
        "status": status,
        "error": None,
        "parameters": {"server": 7},
        "rounds": [entry],
        "bytes_setup": 5,
        "bytes_public": 0,
        "bytes_total": 20,
        "bytes_transport": 0,
        "multiply_adds": 8,
        "memory": 6,
    }


NAMES: dict[str, Any] = {
    "name": "dsfl",
    "method": "dsfl",
    "codec": "fp16",
    "server_model": "mlp-s",
    "client_models": ["mlp-s"],
}
ORIGIN: dict[str, Any] = {"version": "1", "versions": {}, "hardware": {}, "command": "fedistill compare"}


def with_one_seed(seed: int = 4, **changed: Any) -> Any:
    return {**ORIGIN, "schema": 1, "task": task(**changed), "arms": [{**NAMES, **of_seed(seed, 0.5)}]}


def with_seeds(*seeds: int) -> Any:
    arm = {**NAMES, "parameters": {"server": 7}, "seeds": [of_seed(seed, 0.1 * seed) for seed in seeds]}
    return {**ORIGIN, "schema": 2, "task": task(), "tasks": [], "seeds": list(seeds), "arms": [arm]}


def rows(results: Any) -> list[list[str]]:
    lines = [line for line in markdown(results).splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_arms_are_named_after_their_runs_and_keep_their_figures() -> None:
    found: Any = side_by_side({"one": with_one_seed(), "two": with_seeds(4)})
    assert [arm["name"] for arm in found["arms"]] == ["one: dsfl", "two: dsfl"]
    assert (found["schema"], found["seeds"]) == (2, [4])
    assert found["arms"][0]["seeds"] == [of_seed(4, 0.5)]
    assert found["command"] == "fedistill compare"
    one, two = rows(found)
    assert (one[2], two[2]) == ("50.0% (50.0%)", "40.0% (40.0%)")
    assert one[-2:] == ["4", "6 B"], "the work of a client: 8 multiply-adds of two"
    assert "| one: dsfl | fp16 | 20 B @1 |" in reach_markdown(found, "server@global", [0.5])


def test_an_arm_that_lacks_seeds_of_another_run_says_so() -> None:
    found = side_by_side({"one": with_seeds(1, 2, 3), "two": with_one_seed(1)})
    assert found["seeds"] == [1, 2, 3]
    assert [row[0] for row in rows(found)] == ["one: dsfl", "two: dsfl [1 of 3 seeds]"]


def test_where_tasks_differ_the_title_says_how() -> None:
    found: Any = side_by_side({"one": with_one_seed(), "two": with_one_seed(partition="dirichlet(alpha=1)")})
    assert (
        str(rich_table(found, 200).title) == "digits, 2 clients, iid | dirichlet(alpha=1), 1 rounds, seeds 4"
    )
    assert (found["task"]["samples"], found["task"]["class_counts"]) == ([], [])
    many = {name: with_one_seed(partition=f"dirichlet(alpha={name})") for name in "12345"}
    assert side_by_side(many)["task"]["title"] == "digits, 2 clients, 5 partitions"
    assert "title" not in side_by_side({"one": with_one_seed(), "two": with_one_seed()})["task"]


def test_the_work_of_one_client_is_left_out_where_numbers_of_clients_differ() -> None:
    found: Any = side_by_side({"one": with_one_seed(), "two": with_one_seed(clients=4)})
    assert found["task"]["title"] == "digits, 2 | 4 clients, iid"
    assert "multiply_adds" not in found["arms"][0]["seeds"][0]
    assert "multiply-adds" not in markdown(found)
