"""Makes the pages of docs/methods/ from the methods themselves, their examples and their measured rows,
and docs/label-skew.md (`label_skew.py`), docs/flagship.md (`flagship.py`), docs/public-data.md
(`public_data.py`) and docs/training.md (`training_page.py`), and the tables of README.md (`flagship.py`),
docs/trust.md (`attacks.py`), docs/audit.md (`audit_tables.py`), docs/privacy.md (`privacy_page.py`) and
docs/secure-sums.md (`secure_sums.py`).

    python docs/generate.py            # writes the pages
    python docs/generate.py --check    # writes nothing; names the pages that are not what this would make

What a page says of a method stands in its class; change it there and run this again. Where something is
missing (an example, a row of the contract table, the BibTeX entry of a paper), the pages are written all the
same, each thing is named, and the exit status is 1. A method without measured rows is named too, and has a
page without that section; that alone is no fault.
"""

import argparse
import inspect
import json
import re
import sys
import textwrap
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import audit_tables
import flagship
import label_skew
import privacy_page
import public_data
import secure_sums
import speed_tables
import training_page
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from writing import made_by, table

import attacks
from fedistill.aggregation.labels import Aggregation
from fedistill.aggregation.registry import AGGREGATIONS
from fedistill.communication.codecs import registry as codecs
from fedistill.communication.messages.integer_arrays import NO_INTEGERS
from fedistill.config.schedules import Constant, Schedule
from fedistill.config.schema import Arm
from fedistill.config.units import format_bytes
from fedistill.errors import Refusal
from fedistill.federation.evaluation import SERVER_OWN, VIEWS
from fedistill.methods.base import Method
from fedistill.methods.participants import ClientInfo, FederationInfo
from fedistill.methods.registry import METHODS
from fedistill.methods.shared.statistics import StatisticsSettings
from fedistill.models.signature import Signature
from fedistill.training.model_state import WeightLayout

DOCS = Path(__file__).parent
ROOT = DOCS.parent
COMMAND = "python docs/generate.py"
NAVIGATION = ROOT / "mkdocs.yml"
CONTROLS = ("local", "server-alone", "fedavg")
FACTS = ("paper", "exchanges", "byte_formula")
"""What the page of a method needs of its class, besides the docstring."""
PUBLISHED = {
    "cfd": ("cfd",),
    "dadaquant": ("fedprox",),
    "fedgen": ("fedavg", "fd", "fd-plus", "fedgen"),
    "fedproto": ("local", "fedavg", "fedproto"),
    "jeong": ("fedavg", "fd"),
    "mcmahan": ("fedavg",),
    "niid-bench": ("fedavg", "fedprox"),
}
"""Methods of which each file in benchmarks/published/results has rows."""
INTRODUCTION = """\
What each method exchanges and needs. Bytes are those of one client in one round, with a codec of b bits
per number; C is the number of classes, n that of public samples, θ the weights. Each page says more."""
MEASURED = """\
Methods have their default codecs. Accuracy is that on the test set after the last round; bytes are sums over
the entire run and all clients. There is one seed. On another processor a run ends a point or two away, and a
larger model at the server, whose accuracy still swings after so few rounds, up to nine points: smaller
differences mean nothing. `local` and `server-alone` are controls: the first exchanges nothing, the second has
labels that no other method sees. Made by `python benchmarks/methods.py`. Methods on texts, tuned as well, are
in [what an accuracy costs](../flagship.md)."""
TUNED = """\
Each row is tuned by {trials} trials of {rounds} rounds, on a validation part of the training set: local
epochs, learning rate, loss, label smoothing, pooling, and what else the method and its codec have
([what is tried](../tuning.md#what-is-tried)). The best settings, by accuracy, are on the methods' pages."""
AnyMethod = type[Method[Any, Any, Any, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the pages of docs/ that are not written by hand.")
    parser.add_argument("--check", action="store_true", help="write nothing; name the pages that are stale")
    if parser.parse_args().check:
        found = stale()
    else:
        write()
        found = []
    found += missing()
    for line in found:
        print(line, file=sys.stderr)
    for name in _own():
        if not any(row["arm"]["method"] == name for rows in _results().values() for row in rows.values()):
            print(
                f"{name}: no measured rows, so its page has none; `python benchmarks/methods.py` makes them"
            )
    sys.exit(1 if found else 0)


def write() -> None:
    """Write all pages, and remove those of methods that are gone."""
    made = pages()
    for path in _kept() - made.keys():
        path.unlink()
    for path, text in made.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def stale() -> list[str]:
    """The pages that `write` would change, one line each."""
    made = pages()
    return [
        f"{_place(path)}: not what the generator makes; run: {COMMAND}"
        for path in sorted(_kept() | made.keys())
        if path not in made or not path.exists() or path.read_text(encoding="utf-8") != made[path]
    ]


def missing() -> list[str]:
    """What a method lacks that it should have, one line each, with what mends it."""
    found = []
    rows = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    for name, method in _own().items():
        lacking = [key for key in FACTS if not hasattr(method, key)]
        if lacking or not method.__doc__:
            what = ", ".join([*lacking, *([] if method.__doc__ else ["docstring"])])
            found.append(f"{name}: its class has no {what}, so that no page was made; add it there")
        example = _example_path(name)
        if not example.exists():
            found.append(f"{name}: no example; write {_place(example)}, with an arm of this method")
        if not re.search(rf'Row\(\s*"{name}"', rows):
            found.append(f"{name}: no contract row; add Row({name!r}, ...) to the table in tests/contract/")
        if re.search(r"\b(19|20)\d\d\b", getattr(method, "paper", "")) and name not in references():
            found.append(f"{name}: its paper is not in docs/references.bib; add an entry with the key {name}")
    return found


def _kept() -> set[Path]:
    made = (
        *("label-skew.md", "flagship.md", flagship.PLOT, "public-data.md", "training.md", "trust.md"),
        *("audit.md", "privacy.md", "secure-sums.md"),
    )
    return {*(DOCS / "methods").glob("*.md"), *(DOCS / name for name in made), NAVIGATION}


@cache
def references() -> dict[str, str]:
    """The BibTeX entries of docs/references.bib by their keys."""
    text = (DOCS / "references.bib").read_text(encoding="utf-8")
    entries = re.findall(r"^@\w+\{([\w-]+),\n.*?^\}$", text, flags=re.MULTILINE | re.DOTALL)
    bodies = [found[0] for found in re.finditer(r"^@\w+\{.*?^\}$", text, flags=re.MULTILINE | re.DOTALL)]
    return dict(zip(entries, bodies, strict=True))


def _place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _example_path(name: str) -> Path:
    return ROOT / "examples" / "methods" / f"{name}.toml"


def pages() -> dict[Path, str]:
    """The text of each page, and of the site's settings with all methods in its navigation."""
    folder = DOCS / "methods"
    made = {folder / f"{name}.md": _page(method) for name, method in _described().items()}
    return {
        DOCS / "label-skew.md": label_skew.page(COMMAND),
        DOCS / "flagship.md": flagship.page(COMMAND),
        DOCS / flagship.PLOT: flagship.plot(),
        flagship.README: flagship.readme(),
        DOCS / "public-data.md": public_data.page(COMMAND),
        DOCS / "training.md": training_page.page(COMMAND, _fields),
        attacks.PAGE: attacks.page(),
        privacy_page.PAGE: privacy_page.page(),
        secure_sums.PAGE: secure_sums.page(),
        speed_tables.PAGE: speed_tables.page(),
        **speed_tables.plots(),
        audit_tables.PAGE: audit_tables.page(),
        folder / "README.md": _index(),
        NAVIGATION: _navigation(),
        **made,
    }


def _own() -> dict[str, AnyMethod]:
    """The methods of this package: others that happen to be installed have their pages elsewhere."""
    return {name: method for name, method in METHODS.items() if method.__module__.startswith("fedistill.")}


def _described() -> dict[str, AnyMethod]:
    """The methods of which enough is said for a page."""
    return {
        name: method
        for name, method in _own().items()
        if method.__doc__ and all(hasattr(method, key) for key in FACTS)
    }


def _navigation() -> str:
    text = NAVIGATION.read_text(encoding="utf-8")
    lines = "".join(f"      - methods/{name}.md\n" for name in _described())
    return re.sub(
        r"(?<=written by docs/generate\.py\.\n).*?(?=^ *# As far as here\.)",
        lines,
        text,
        flags=re.DOTALL | re.MULTILINE,
    )


def _page(method: AnyMethod) -> str:
    summary, *paragraphs = _paragraphs(method)
    how, departures = _departures(paragraphs)
    facts = [
        ("paper", _with_papers(method.paper)),
        ("exchanged", method.exchanges),
        ("bytes per client and round", f"`{method.byte_formula}`"),
        ("codec, unless the arm names one", _codec(method)),
        ("needs", _needs(method)),
        ("clients' models", _mixes(method)),
        ("views", _views(method)),
    ]
    place = f"src/{method.__module__.replace('.', '/')}.py"
    parts = [
        made_by(COMMAND, place),
        f"# {method.name}",
        _wrapped(summary),
        table(("", ""), facts),
        _section("How it works", *map(_wrapped, how)),
        _section("Where it departs from its source", *map(_wrapped, departures)),
        _section("Settings", _settings(method)),
        _section("Example", _example(method)),
        _section("Measured", *_measured(method)),
        _section("Cite", _cite(method)),
        f"Source: `{place}`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _index() -> str:
    rows = [
        (
            f"[{name}]({name}.md)",
            method.exchanges,
            f"`{method.byte_formula}`",
            _needs(method),
            _mixes(method),
            "yes" if _has_server_view(method) else "no",
        )
        for name, method in _described().items()
    ]
    keys = [
        (f"`{key}`", Arm.model_fields[key].description or "")
        for key in ("codec", "accumulate", "secure_sums")
    ]
    keys += [("`models`, `train`", "what differs from the tables of the experiment")]
    parts = [
        made_by(COMMAND, "the methods in src/fedistill/methods/"),
        "# Methods",
        INTRODUCTION,
        table(("method", "exchanges", "bytes", "needs", "clients' models", "server model"), rows),
        "Each arm names a `method`. Besides the method's own settings, an arm takes:",
        table(("setting", "what"), keys),
        _section("Aggregations", *_aggregations()),
        _section("Measured", *_all_measured()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, *parts: str) -> str:
    body = [part for part in parts if part]
    return "\n\n".join([f"## {title}", *body]) if body else ""


def _paragraphs(kind: type) -> list[str]:
    text = inspect.cleandoc(kind.__doc__ or "")
    return [_prose(paragraph, kind) for paragraph in text.split("\n\n")]


def _prose(paragraph: str, kind: type) -> str:
    """One paragraph of a docstring as Markdown; other methods become links."""
    text = " ".join(paragraph.split()).replace("``", "`")
    own = getattr(kind, "name", "")
    return re.sub(r"`([\w-]+)`", lambda found: _link(found[1], own), text)


def _wrapped(text: str) -> str:
    """Lines of a paragraph; none begins inside of code, where a sign might make it a list or a heading."""
    text = re.sub(r"`[^`]+`", lambda found: found[0].replace(" ", "\0"), text)
    return textwrap.fill(text, 110, break_long_words=False, break_on_hyphens=False).replace("\0", " ")


def _link(name: str, own: str) -> str:
    return f"[{name}]({name}.md)" if name in METHODS and name != own else f"`{name}`"


def _departures(paragraphs: list[str]) -> tuple[list[str], list[str]]:
    """Paragraphs, and those parts of them that speak of what the source has otherwise."""
    how, departures = [], []
    for paragraph in paragraphs:
        found = re.search(r"(?:^|(?<=[.:]\s))(?:Departs|The paper)\b", paragraph)
        start = found.start() if found else len(paragraph)
        how.append(paragraph[:start].strip())
        departures.append(paragraph[start:])
    return how, departures


def _with_papers(text: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _codec(method: AnyMethod) -> str:
    return "-" if method.uplink is None else f"`{codecs.title(method.codec)}`"


def _needs(method: AnyMethod) -> str:
    needs = method.needs
    if needs.public_labels:
        return "a public set with labels, at the server"
    places = " and ".join(f"the {place}" for place in needs.public)
    needed = [f"a public set, at {places}"] if places else []
    if needs.inputs != "any":
        needed.append(needs.kinds())
    return ", ".join(needed) or "-"


def _with_defaults(method: AnyMethod) -> Method[Any, Any, Any, Any]:
    return method(method.Settings())


@cache
def _mixes(method: AnyMethod) -> str:
    """Asks the method itself, as `doctor` does before a run."""
    if not _with_defaults(method).clients_use_models:
        return "none"
    if _accepts(method, ("cnn-s", "mlp-s"), "cnn-m"):
        return "may differ"
    if _accepts(method, ("cnn-s", "cnn-m"), "cnn-s"):
        return "may differ, if their features have the same length"
    return "one for all"


def _accepts(method: AnyMethod, clients: tuple[str, ...], server: str) -> bool:
    federation = FederationInfo(
        seed=0,
        signatures=dict.fromkeys((*clients, server), Signature("image", (1, 8, 8), 10, 0)),
        server_model=server,
        clients=tuple(ClientInfo(place, name, 1) for place, name in enumerate(clients)),
        public=100,
        labelled_public=True,
        layouts=dict.fromkeys((*clients, server), WeightLayout((), 0, NO_INTEGERS)),
    )
    try:
        _with_defaults(method).check(federation)
    except Refusal:
        return False
    return True


def _views(method: AnyMethod) -> str:
    shown = ["server@global"] if _has_server_view(method) else []
    if _with_defaults(method).has_client_models:
        shown += ["client@global", "client@own"]
    return ", ".join(f"`{view}`" for view in shown)


def _has_server_view(method: AnyMethod) -> bool:
    """By the model of its own, or by whatever else answers for the server."""
    return (
        _with_defaults(method).has_server_model or method.server_eval_models is not Method.server_eval_models
    )


def _settings(method: AnyMethod) -> str:
    return _fields(method.Settings) if method.Settings.model_fields else "None of its own."


def _fields(kind: type[BaseModel]) -> str:
    rows = [_setting(*item) for item in kind.model_fields.items() if item[0] not in _told(kind)]
    return table(("setting", "type", "default", "what"), rows)


def _told(kind: type[BaseModel]) -> set[str]:
    """Fields of a schedule that are told where all schedules are: its name, and what all have."""
    if not issubclass(kind, Schedule):
        return set()
    return {"name"} if kind is Constant else {"name", *Schedule.model_fields}


def _setting(name: str, field: FieldInfo) -> tuple[str, ...]:
    bounds = [
        f"{sign} {getattr(item, key):g}"
        for item in field.metadata
        for key, sign in {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}.items()
        if hasattr(item, key)
    ]
    kind = ", ".join([_type(field.annotation), *bounds])
    default = "-" if field.default is None or field.is_required() else f"`{_toml(field.default)}`"
    return f"`{name}`", kind, default, field.description or ""


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_type(kind) for kind in get_args(annotation) if kind is not NoneType)
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{_toml(value)}`" for value in get_args(annotation))
    if issubclass(annotation, Aggregation):
        return "[aggregation](README.md#aggregations)"
    if issubclass(annotation, StatisticsSettings):
        (name,) = get_args(annotation.model_fields["name"].annotation)
        return f"[{name}]({name}.md)"
    if issubclass(annotation, Schedule):
        return f"`{annotation.__name__.lower()}`"
    if issubclass(annotation, BaseModel):
        return f"table of {', '.join(f'`{key}`' for key in annotation.model_fields)}"
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}[annotation]


def _toml(value: Any) -> str:
    if isinstance(value, BaseModel):
        shown = value.model_fields_set or type(value).model_fields
        value = {key: item for key, item in value if key in shown and item is not None}
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def _aggregations() -> list[str]:
    rows = []
    for name, kind in AGGREGATIONS.items():
        fields = [(key, field) for key, field in kind.model_fields.items() if key != "name"]
        settings = [f"`{key} = {_toml(field.default)}`: {field.description}" for key, field in fields]
        rows.append((f"`{name}`", _with_papers(_paragraphs(kind)[0]), "; ".join(settings) or "-"))
    return [
        "The setting `aggregation` says how the server pools soft labels or votes: a name, or a table"
        " `{ name, SETTINGS }`.",
        table(("aggregation", "what", "settings"), rows),
    ]


def _example(method: AnyMethod) -> str:
    path = _example_path(method.name)
    if not path.exists():
        return ""
    text = path.read_text(encoding="utf-8").strip()
    return f"`fedistill compare {_place(path)}` runs this experiment:\n\n```toml\n{text}\n```"


def _cite(method: AnyMethod) -> str:
    entry = references().get(method.name)
    return f"```bibtex\n{entry}\n```" if entry else ""


@cache
def _results() -> dict[str, dict[str, Any]]:
    path = ROOT / "benchmarks" / "results" / "methods.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


SHOWN_VIEWS = tuple(view for view in VIEWS if view != SERVER_OWN)
"""No benchmark holds out samples of clients."""
HEADS = ("method", "models", *SHOWN_VIEWS, "up", "down", "set-up", "public data")


def _measured(method: AnyMethod) -> list[str]:
    parts = []
    for task, rows in _results().items():
        own = [name for name, row in rows.items() if row["arm"]["method"] == method.name]
        if own:
            shown = dict.fromkeys([*own, *(name for name in CONTROLS if name in rows)])
            parts += [
                _setting_of(task, rows[own[0]]),
                table(HEADS, [_row(name, rows[name]) for name in shown]),
                *(_own_settings(rows[name]) for name in own),
            ]
    if parts:
        command = f"`python benchmarks/methods.py --methods {method.name}`"
        parts.append(f"Made by {command}; see [all methods](README.md#measured).")
    return [*parts, _published(method)]


def _own_settings(row: dict[str, Any]) -> str:
    """What a row has besides the defaults, and what tuning brought."""
    given = {key: value for key, value in row["arm"].items() if key not in ("name", "method")}
    items = [f"`{key} = {_toml(value)}`" for key, value in (given | row.get("settings", {})).items()]
    name, tuning = row["arm"]["name"], row["tuning"]
    has = f"`{name}` has {', '.join(items)}" if items else f"`{name}` keeps its settings"
    own = "" if tuning["own"] is None else f", {tuning['own']:.1%} before tuning"
    best = "no trial ended" if tuning["best"] is None else f"{tuning['best']:.1%} on validation samples"
    return f"{has}: {best} after {tuning['rounds']} rounds{own}."


def _all_measured() -> list[str]:
    parts = [MEASURED]
    for task, rows in _results().items():
        first = next(iter(rows.values()))
        parts += [_setting_of(task, first), TUNED.format(**first["tuning"])]
        body = [_row(f"[{name}]({row['arm']['method']}.md)", row) for name, row in rows.items()]
        parts.append(table(HEADS, body))
    return parts


def _setting_of(task: str, row: dict[str, Any]) -> str:
    """One sentence of what a row was measured under."""
    asked, train = row["setting"]["task"], row["setting"]["train"]
    optimizer, partition = train["optimizer"], asked["partition"]
    return (
        f"**{task}**: {asked['clients']} clients, {partition['kind'].title()} {partition['alpha']},"
        f" {asked['public']} public samples, {row['rounds']} rounds of {train['epochs']} epochs,"
        f" batches of {train['batch_size']}, {optimizer['name']} at {optimizer['lr']}, before tuning,"
        f" seed {row['seed']}."
    )


def _row(title: str, row: dict[str, Any]) -> tuple[str, ...]:
    views = [f"{row['views'][view]:.1%}" if view in row["views"] else "-" for view in SHOWN_VIEWS]
    ways = [format_bytes(row[f"bytes_{key}"]) for key in ("up", "down", "setup", "public")]
    clients = [name for name in row["models"]["clients"] if name in row["parameters"]]
    # Some methods have a server model of their own; rows that were measured before it was noted do not.
    server = row.get("server_model", row["models"]["server"]) if "server" in row["parameters"] else "-"
    return title, f"{', '.join(clients) or '-'} → {server}", *views, *ways


def _published(method: AnyMethod) -> str:
    results = ROOT / "benchmarks" / "published" / "results"
    kept = [n for n, who in PUBLISHED.items() if method.name in who and (results / f"{n}.json").exists()]
    if not kept or not (DOCS / "published.md").exists():
        return ""
    return "Its [published figures](../published.md) stand beside ours."


if __name__ == "__main__":
    main()
