"""What `import fedistill` gives, and what it does not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fedistill

NAMES = {
    *("load", "parse", "compare", "resume", "load_model", "Experiment", "Run", "Callback"),
    *("Method", "Message", "Codec", "Aggregation", "Signature"),
    *("FedistillError", "ExperimentError", "Refusal", "FrameError", "TrainingError", "RuntimeFailure"),
    "__version__",
}
HEAVY = {"torch", "numpy", "pydantic", "datasets", "plotly", "flwr", "pandas", "sklearn", "matplotlib"}


def loaded_by(code: str) -> set[str]:
    """The packages that a new process has loaded after some code."""
    code += "\nimport sys\nprint('loaded', *{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not HEAVY & loaded_by("import fedistill; dir(fedistill); fedistill.__version__")


def test_errors_can_be_caught_without_loading_anything_heavy() -> None:
    assert not HEAVY & loaded_by("import fedistill; fedistill.ExperimentError")


def test_a_signature_needs_no_torch() -> None:
    """A file with an own model may name one before it needs a layer."""
    found = loaded_by("import fedistill; fedistill.Signature('image', (1, 8, 8), 10, 0)")
    assert not HEAVY & found


@pytest.mark.long
def test_data_libraries_are_loaded_for_the_data_that_need_them() -> None:
    build = """
from fedistill.config.schema import TaskConfig
from fedistill.data.build import build_task
import fedistill.experiment.runner
build_task(TaskConfig(name="digits", clients=4, public=100{more}), seed=0)
"""
    heavy = {"datasets", "flwr_datasets", "sklearn", "matplotlib"}
    assert not heavy & loaded_by(build.format(more=""))
    found = loaded_by(build.format(more=", partition={'kind': 'dirichlet', 'alpha': 0.5}"))
    assert {"datasets", "flwr_datasets"} <= found


def test_what_is_used_is_loaded() -> None:
    """Else the tests above would pass for nothing."""
    found = loaded_by("import fedistill; fedistill.Method; assert 'Method' in vars(fedistill)")
    assert {"torch", "numpy", "pydantic"} <= found


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["compare", "--help"]], ids=["help", "version", "compare"]
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from fedistill.cli.main import main
sys.argv = ["fedistill", *{arguments}]
try:
    main()
except SystemExit as ended:
    assert not ended.code
"""
    assert not HEAVY & loaded_by(code)


def test_all_names_are_there_and_listed() -> None:
    assert set(fedistill.__all__) == NAMES
    assert set(dir(fedistill)) >= NAMES
    for name in NAMES:
        assert getattr(fedistill, name).__class__
    with pytest.raises(AttributeError, match="module 'fedistill' has no attribute 'compair'"):
        fedistill.compair  # noqa: B018  # reading it is what raises


def test_type_checkers_see_every_name() -> None:
    """What stands under `TYPE_CHECKING` is the same list, from the same modules."""
    tree = ast.parse(Path(fedistill.__file__).read_text(encoding="utf-8"))
    branch = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(branch.test) == "TYPE_CHECKING"
    seen = {
        alias.asname: node.module
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    assert {*seen, "__version__"} == NAMES
    for name, module in seen.items():
        assert getattr(fedistill, name) is getattr(sys.modules[str(module)], name)
