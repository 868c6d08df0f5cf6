"""The notebook in examples/, run as Jupyter runs it."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from helpers.program import PATIENCE

PATH = Path(__file__).parents[2] / "examples" / "notebook.ipynb"


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each cell of code has put out, by its text; a cell that fails ends the run of all."""
    notebook = nbformat.read(PATH, as_version=4)
    place = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    NotebookClient(notebook, timeout=3 * PATIENCE, resources=place).execute()
    return {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def of_cell(outputs: dict[str, list[Any]], text: str) -> list[Any]:
    (found,) = [put_out for source, put_out in outputs.items() if text in source]
    return found


def printed(put_out: list[Any]) -> str:
    return "".join(one.text for one in put_out if one.output_type == "stream" and one.name == "stdout")


def test_nothing_is_warned_of(outputs: dict[str, list[Any]]) -> None:
    said = [one.text for put_out in outputs.values() for one in put_out if one.get("name") == "stderr"]
    assert said == []


def test_progress_is_shown_below_the_cell_and_then_the_table(outputs: dict[str, list[Any]]) -> None:
    bars, table = of_cell(outputs, 'compare(experiment, "runs/notebook")')
    lines = bars.data["text/plain"].splitlines()
    assert len(lines) == 6, "one bar per arm and seed, in one place"
    assert all("5/5" in line for line in lines)
    assert "client@global" in lines[1]
    assert "<pre" in bars.data["text/html"]
    assert table.data["text/markdown"].startswith("| arm | clients -> server | server@global |")


def test_tables_and_plots_are_shown(outputs: dict[str, list[Any]]) -> None:
    (table,) = of_cell(outputs, "rounds.pivot_table")
    assert table.data["text/html"].count("<tr") == 2 + 5
    (plotly,) = of_cell(outputs, 'plot("bytes"')
    drawn = plotly.data["application/vnd.plotly.v1+json"]["data"]
    assert [trace["name"] for trace in drawn if "name" in trace] == ["dsfl", "local: sends nothing"]
    (matplotlib,) = of_cell(outputs, 'backend="matplotlib"')
    assert "image/png" in matplotlib.data


def test_callbacks_and_errors_are_printed(outputs: dict[str, list[Any]]) -> None:
    assert "Did you mean 'sampling'?" in printed(of_cell(outputs, "sampeling"))
    told = printed(of_cell(outputs, "class Watch")).splitlines()
    assert [line.split(":")[0] for line in told] == ["dsfl, round 1", "dsfl, round 2", "1 arm is done"]
    (logged,) = of_cell(outputs, "import TensorBoard")
    assert logged.data["text/plain"] == "['dsfl']"
