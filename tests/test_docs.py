"""The pages of docs/: those of the methods are what the generator makes, and no link leads nowhere."""

import importlib.util
import re
import shutil
import subprocess
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


def test_pages_are_what_the_generator_makes_and_nothing_is_missing(generator: ModuleType) -> None:
    assert generator.stale() == []
    assert generator.missing() == []


def test_generator_names_what_a_new_method_lacks_and_writes_the_rest(
    generator: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class alone: no example, no contract row, no measured rows, no page yet."""

    class New(METHODS["fedavg"]):  # type: ignore[misc]  # a class of the registry
        """New in every way.

        Exchanged: nothing that matters. Bytes: few.
        """

        name = "brand-new"
        paper = "Nobody et al., 2031"
        __module__ = "fedistill.methods.weights.brand_new"

    class Elsewhere(New):
        """Of another package. Exchanged: nothing. Bytes: none."""

        name = "elsewhere"
        __module__ = "another_package.methods"

    monkeypatch.setitem(generator.METHODS, "elsewhere", Elsewhere)
    monkeypatch.setitem(generator.METHODS, "brand-new", New)
    assert generator.missing() == [
        "brand-new: no example; write examples/methods/brand-new.toml, with an arm of this method",
        "brand-new: no contract row; add Row('brand-new', ...) to the table in tests/contract/",
        "brand-new: its paper is not in docs/references.bib; add an entry with the key brand-new",
    ]
    made = generator.pages()
    page = made[ROOT / "docs" / "methods" / "brand-new.md"]
    assert "# brand-new" in page
    assert "Source: `src/fedistill/methods/weights/brand_new.py`." in page
    assert "## Settings" in page
    assert not any(title in page for title in ("## Example", "## Measured", "## Cite"))
    assert "      - methods/brand-new.md\n" in made[ROOT / "mkdocs.yml"]
    assert any(line.startswith("docs/methods/brand-new.md: not what") for line in generator.stale())

    monkeypatch.setattr(New, "__doc__", None)
    assert ROOT / "docs" / "methods" / "brand-new.md" not in generator.pages()
    assert (
        "brand-new: its class has no docstring, so that no page was made; add it there" in generator.missing()
    )


def test_generator_ends_with_words_and_a_status(tmp_path: Path) -> None:
    """As a command, on a copy of what it reads, with one example taken away."""
    for name in ("docs", "examples", "benchmarks", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("mkdocs.yml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "examples" / "methods" / "fd.toml").unlink()
    (tmp_path / "docs" / "methods" / "cfd.md").write_text("stale")
    command = [sys.executable, tmp_path / "docs" / "generate.py"]
    missing = "fd: no example; write examples/methods/fd.toml, with an arm of this method\n"

    checked = subprocess.run([*command, "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    assert (
        checked.stderr
        == "".join(
            f"docs/methods/{name}.md: not what the generator makes; run: python docs/generate.py\n"
            for name in ("cfd", "fd")
        )
        + missing
    )
    written = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (written.returncode, written.stderr) == (1, missing)
    page = (tmp_path / "docs" / "methods" / "cfd.md").read_text(encoding="utf-8")
    assert page == (ROOT / "docs" / "methods" / "cfd.md").read_text(encoding="utf-8")


def test_every_method_from_a_paper_has_a_bibtex_entry(generator: ModuleType) -> None:
    entries = generator.references()
    assert entries.keys() == {
        name for name, method in METHODS.items() if method.paper not in ("control", "ours")
    }
    for name, entry in entries.items():
        for key in ("author", "title", "year"):
            assert re.search(rf"^  {key} = \{{.+\}},$", entry, flags=re.MULTILINE), (name, key)
        assert entry.count("{") == entry.count("}"), name
        number = re.search(r"arXiv (\d{4}\.\d{4,5})", METHODS[name].paper.rpartition("with weights:")[2])
        assert number is None or f"eprint = {{{number[1]}}}" in entry, "another paper than its class names"
        page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
        assert f"```bibtex\n{entry}\n```" in page


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


def test_tree_in_the_readme_is_the_folders() -> None:
    """Each room in one line, and none that is not there; those of `communication` one by one."""
    (block,) = re.findall(
        r"```text\nsrc/fedistill/\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL
    )
    shown, parent = [], ""
    for line in block.splitlines():
        found = re.fullmatch(r"( +)(\w+)/ +\S.*", line)
        assert found, f"{line!r}: write a folder and what it is for"
        parent = parent if len(found[1]) > 2 else found[2]
        shown.append(found[2] if found[2] == parent else f"{parent}/{found[2]}")
    package = ROOT / "src" / "fedistill"
    folders = [
        path.parent for path in [*package.glob("*/__init__.py"), *package.glob("communication/*/__init__.py")]
    ]
    assert sorted(shown) == sorted(folder.relative_to(package).as_posix() for folder in folders)


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    """The generator of the site says nothing of a page that no entry leads to."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    entries = re.findall(r"^ +- (?:[^:\n]+: )?([\w/-]+\.md)$", text, flags=re.MULTILINE)
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.name != "README.md"]
    assert sorted(entries) == sorted([*pages, "methods/README.md"])


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
