"""The pages of docs/: those of the methods are what the generator makes, and no link leads nowhere."""

import importlib.util
import re
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedistill.methods.registry import METHODS

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
MADE_PAGES = sorted([*(ROOT / "docs" / "methods").glob("*.md"), ROOT / "docs" / "label-skew.md"])
EXAMPLES = ROOT / "examples" / "methods"
each_page = pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])


def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # its dataclasses look there
    sys.path.insert(0, str(path.parent))  # a script finds those beside it
    spec.loader.exec_module(module)
    sys.path.remove(str(path.parent))
    return module


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return script(ROOT / "docs" / "generate.py")


@pytest.fixture(scope="module")
def published() -> ModuleType:
    return script(ROOT / "benchmarks" / "published" / "page.py")


def test_pages_are_what_the_generator_makes(generator: ModuleType) -> None:
    made = generator.pages()
    assert sorted(made) == MADE_PAGES, f"run: {generator.COMMAND}"
    stale = [path.name for path in MADE_PAGES if path.read_text(encoding="utf-8") != made[path]]
    assert not stale, f"run: {generator.COMMAND}"


def test_published_figures_are_those_that_are_kept(published: ModuleType) -> None:
    """Making the page fails where a row is not within the published spread and no reason is given."""
    made = published.page()
    assert published.PAGE.read_text(encoding="utf-8") == made, f"run: {published.COMMAND}"


def test_a_row_is_within_by_both_spreads_and_a_reason_is_asked_for(published: ModuleType) -> None:
    def figure(ours: float, spread: float) -> Any:
        return published.Figure("x", (90.0, 0.5), (ours, spread), ())

    assert figure(90.5, 0).within
    assert not figure(90.6, 0).within
    assert figure(90.6, 0.1).within
    assert published.Figure("x", (90.0, None), (90.5, 0.0), ()).within
    with pytest.raises(SystemExit, match="nowhere/x is not within"):
        list(published.reasons("nowhere", [figure(91, 0)]))


def test_every_method_has_a_page_and_is_in_the_index() -> None:
    index = (ROOT / "docs" / "methods" / "README.md").read_text(encoding="utf-8")
    for name in METHODS:
        page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
        assert f"\n# {name}\n" in page
        assert f"| [{name}]({name}.md) |" in index


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_an_example_that_plays_it(name: str) -> None:
    text = (EXAMPLES / f"{name}.toml").read_text(encoding="utf-8")
    assert text.startswith("# "), "say first what it shows"
    assert name in [arm["method"] for arm in tomllib.loads(text)["arms"]]


def test_published_rows_are_known_to_the_generator(generator: ModuleType) -> None:
    kept = {path.stem for path in (ROOT / "benchmarks" / "published" / "results").glob("*.json")}
    assert kept <= generator.PUBLISHED.keys(), "name their methods in PUBLISHED of docs/generate.py"
    assert {name for names in generator.PUBLISHED.values() for name in names} <= METHODS.keys()


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each_page
def test_tables_have_a_cell_for_each_head(page: Path) -> None:
    """A bar in a formula ends a cell unless it is escaped."""
    lines = without_code(page, spans=False).splitlines()
    for above, line in pairwise(lines):
        if line.startswith("|"):
            bars = [len(re.findall(r"(?<!\\)\|", text)) for text in (above, line)]
            assert not above.startswith("|") or bars[0] == bars[1], line


def without_code(page: Path, spans: bool = True) -> str:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"`[^`]*`", "", text) if spans else text


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.+)$", without_code(page, spans=False), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
