"""Makes the tables of docs/trust.md: who sends what, the attacks there are, what benchmarks/attacks.py has
measured, and in short what those of audits, privacy and secure sums have."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import audit_tables
import privacy_page
import secure_sums
from writing import between, chosen_settings, table

from fedistill.attacks.registry import ATTACKS
from fedistill.communication.messages.base import Message
from fedistill.communication.messages.bridge import BridgeReply
from fedistill.communication.messages.classwise import ClassOutputs, Prototypes, WeightsAndOutputs
from fedistill.communication.messages.labels import ChosenLabels, DueLabels, Logits, SoftLabels, Votes
from fedistill.communication.messages.masked import MaskedReply
from fedistill.communication.messages.private_samples import PrivateOutputs
from fedistill.communication.messages.scored import ScoredLabels, ScoredWeights
from fedistill.communication.messages.statistics import FeatureMoments, WordCounts
from fedistill.communication.messages.tally import TallyReply
from fedistill.communication.messages.weights import CountedWeights, TrainedWeights
from fedistill.config.schema import Arm, ModelsConfig
from fedistill.config.training import Train
from fedistill.methods.registry import METHODS, create_method

DOCS = Path(__file__).parent
PAGE = DOCS / "trust.md"
RESULTS = DOCS.parent / "benchmarks" / "results" / "attacks.json"
HOSTILE = RESULTS.with_name("hostile.json")
COSTS = 3.0
"""Points from which an attack is said to cost something, and its liars have to be named."""
CONTROLS = ("honest", "silent")
FAMILIES = {
    "labels": ("`dsfl`", '`aggregation = "reliability"`'),
    "votes": ("`voting`", '`aggregation = "reliability"`'),
    "weights": ("`fedavg`", '`averaging = "screened"`'),
    "classwise": ("`fd`", '`pooling = "median"`'),
    "prototypes": ("`fedproto`", '`pooling = "median"`'),
    "logits": ("`fedmd`", '`pooling = "reliability"`'),
    "statistics": ("`gaussian`", "`screen = true`"),
}
Rows = Mapping[str, dict[str, Any]]
_ALL_IT_KNOWS = "everything that the trained model knows"
_ANSWERS = "its model's answers to these samples"
_ALIKE = "where its data lie among the public ones"
TOLD: dict[type[Message], tuple[str, str]] = {
    TrainedWeights: ("weights; on how many samples they were trained", _ALL_IT_KNOWS),
    MaskedReply: ("changes of weights", _ALL_IT_KNOWS),
    ScoredWeights: (
        "weights; on how many samples they were trained; once, how certain a model of its own data is of each"
        " public sample",
        f"{_ALL_IT_KNOWS}; {_ALIKE}",
    ),
    CountedWeights: (
        "weights of a model or of its last layer; counts of samples per class",
        f"{_ALL_IT_KNOWS}; its mix of classes, exactly or nearly",
    ),
    WeightsAndOutputs: (
        "weights; on how many samples they were trained; mean outputs of each class",
        f"{_ALL_IT_KNOWS}; which classes it has, and their means",
    ),
    ClassOutputs: ("mean outputs of each class", "which classes it has, and their means"),
    Prototypes: ("mean features of each class", "which classes it has, and their means"),
    SoftLabels: ("soft labels of public samples", _ANSWERS),
    DueLabels: ("soft labels of public samples", _ANSWERS),
    Logits: ("logits of public samples", _ANSWERS),
    Votes: ("votes on public samples", "the class that its model names"),
    ChosenLabels: (
        "soft labels of those public samples that are like its own, and which these are; of `fedgems`, of"
        " those that the server asks for",
        f"{_ANSWERS}; {_ALIKE}, which `fedgems` does not tell",
    ),
    ScoredLabels: (
        "soft labels of public samples; once, how likely each public sample is among its own",
        f"{_ANSWERS}; {_ALIKE}",
    ),
    TallyReply: (
        "in most exchanges votes on public samples, in the others weights",
        f"the class that its model names; {_ALL_IT_KNOWS}",
    ),
    BridgeReply: (
        "about how many samples of each class it has; votes on public samples; then changes of weights",
        f"its mix of classes, roughly; the class that its model names; {_ALL_IT_KNOWS}",
    ),
    PrivateOutputs: (
        "features and logits of private samples; once, their classes",
        "each of its samples, as the first layers see it",
    ),
    WordCounts: (
        "counts of texts and of words per class",
        "its mix of classes, exactly; which words its texts have",
    ),
    FeatureMoments: (
        "counts of samples and mean features per class; spreads and correlations of features",
        "its mix of classes, exactly; means and spreads of its samples",
    ),
}
"""Of each message that clients send: what it has, and what that tells of a client without further work."""


def page() -> str:
    """The text of docs/trust.md with its tables as they should be."""
    text = PAGE.read_text(encoding="utf-8")
    for name, made in {
        "sent": sent,
        "attacks": attacks,
        "figures": figures,
        "hostile": hostile,
        "leaks": audit_tables.in_short,
        "budgets": privacy_page.accuracies,
        "secure": secure_sums.in_short,
    }.items():
        text = between(text, name, made(), PAGE.name)
    return text


def sent() -> str:
    """A row for what a client sends, with the methods in which it does."""
    rows: dict[tuple[str, str], list[str]] = {("nothing", "nothing"): []}
    rows |= {told: [] for told in TOLD.values()}
    for name in _methods():
        uplink = METHODS[name].uplink
        rows[TOLD[uplink] if uplink else ("nothing", "nothing")].append(name)
    starting = _few([name for name in _methods() if "start" in METHODS[name].Settings.model_fields])
    methods = {told: _few(names) for told, names in rows.items()}
    for kind in (WordCounts, FeatureMoments):
        methods[TOLD[kind]] += f"; at first, {starting} with `start`"
    cells = [(what, named, tells) for (what, tells), named in methods.items()]
    before = (
        "before round 1: how many samples it has; sums of a table's columns, if its encoding is made of them",
        "all",
        "its size; means, spreads and categories of its columns",
    )
    return table(
        ("what clients send", "methods", "what it tells of a client without further work"), [*cells, before]
    )


def attacks() -> str:
    """A row for each attack: what the liars do, its own settings, and the methods that it fits."""
    rows = []
    for kind, attack in ATTACKS.items():
        what = " ".join((attack.__doc__ or "").split("\n\n")[0].split())
        own = [
            f"`{key}` ({field.default}): {field.description}"
            for key, field in attack.model_fields.items()
            if key not in ("kind", "share", "clients", "from_round")
        ]
        fits = [name for name in _methods() if attack.model_construct(kind=kind).fits(_method(name))]
        shown = "all that send anything" if len(fits) == len(_sending()) else _few(fits)
        rows.append((f"`{kind}`", what, "; ".join(own) or "-", shown, attack.source))
    return table(("kind", "what the liars do", "settings", "methods", "source"), rows)


def _methods() -> list[str]:
    return [name for name, method in METHODS.items() if method.__module__.startswith("fedistill.")]


def _sending() -> list[str]:
    return [name for name in _methods() if METHODS[name].uplink is not None]


def _few(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _method(name: str) -> Any:
    models = ModelsConfig(clients=["a"], server="a")
    return create_method(Arm(method=name, name=name, models=models, train=Train()))


def figures() -> str:
    """For each share of liars, what attacks cost each family, undefended and as recommended."""
    kept: dict[str, Rows] = json.loads(RESULTS.read_text(encoding="utf-8"))
    shares = sorted({setting.split(",")[0].removeprefix("share ") for setting in kept})
    parts = []
    for share in shares:
        seeds = {setting: rows for setting, rows in kept.items() if setting.startswith(f"share {share},")}
        numbers = ", ".join(sorted(setting.rpartition(" ")[2] for setting in seeds))
        parts += [
            f"### {float(share):.0%} liars",
            "Points that each attack costs against the honest clients alone in the default setting: without"
            f" a defence → with the recommended setting. Means over seeds {numbers}, or as many of them as"
            " the second table says; below 0 is a gain.",
            _costs([*seeds.values()]),
            _summary([*seeds.values()]),
        ]
    return "\n\n".join([_settings([*kept.values()]), *parts])


def _settings(runs: list[Rows]) -> str:
    """What tuning has chosen for each family, in both of its settings."""
    heads = ("family", "default", "chosen for it", "recommended", "chosen for it")
    lines = []
    for family, (method, added) in FAMILIES.items():
        found = [
            _of(runs, f"{family}/{defence}/honest", lambda row: chosen_settings(row["settings"]))
            for defence in ("none", "recommended")
        ]
        if all(found):
            lines.append((family, method, found[0][0], added, found[1][0]))
    return table(heads, lines)


def hostile() -> str:
    """A row for each lie about numbers: refused, or what it costs as `_costs` has it."""
    seeds = [*json.loads(HOSTILE.read_text(encoding="utf-8")).values()]
    played = [key.split("/") for rows in seeds for key in rows]
    lies = [(family, name) for family, _, name in played if name not in CONTROLS]
    families, names = (dict.fromkeys(ones) for ones in zip(*lies, strict=True))
    lines = [(name, *(_refused_or_cost(seeds, family, name) for family in families)) for name in names]
    return table(("numbers", *families), lines)


def _refused_or_cost(seeds: list[Rows], family: str, name: str) -> str:
    cells = []
    for defence in ("none", "recommended"):
        lost = _lost(seeds, family, defence, name)
        if lost is None:
            return "-"
        refused = _of(seeds, f"{family}/{defence}/{name}", lambda row: row["refused"] == row["liars"])
        cells.append(f"{lost:.1f}" + (" (refused)" if refused and all(refused) else ""))
    return " → ".join(cells)


def _costs(seeds: list[Rows]) -> str:
    names = dict.fromkeys(key.split("/")[2] for rows in seeds for key in rows)
    lines = []
    for name in [one for one in names if one not in CONTROLS]:
        lines.append((name, *(_refused_or_cost(seeds, family, name) for family in FAMILIES)))
    return table(("attack", *FAMILIES), lines)


def _summary(seeds: list[Rows]) -> str:
    heads = (
        "family",
        "seeds",
        "honest alone",
        "all honest, recommended",
        "worst, no defence",
        "worst, recommended",
        "the same against the honest alone with the recommended setting",
        f"liars named, where an attack costs over {COSTS:.0f} points",
        "honest runs without a name",
    )
    lines = []
    for family in FAMILIES:
        names = _attacks_on(seeds, family)
        if not names:
            continue
        none, ours = _losses(seeds, family, "none", names), _losses(seeds, family, "recommended", names)
        own = _losses(seeds, family, "recommended", names, against="recommended")
        costly = [name for name in names if none[name] > COSTS]
        lines.append(
            (
                family,
                str(sum(f"{family}/recommended/{names[-1]}" in rows for rows in seeds)),
                _accuracy(seeds, family, "none", "silent"),
                _accuracy(seeds, family, "recommended", "honest"),
                _worst(none),
                _worst(ours),
                _worst(own),
                _share(seeds, family, costly),
                _share(seeds, family, ["honest"]),
            )
        )
    return table(heads, lines)


def _losses(
    seeds: list[Rows], family: str, defence: str, names: list[str], against: str = "none"
) -> dict[str, float]:
    return {name: _lost(seeds, family, defence, name, against) or 0.0 for name in names}


def _worst(losses: dict[str, float]) -> str:
    name = max(losses, key=lambda one: losses[one])
    return f"{losses[name]:.1f} ({name})"


def _attacks_on(seeds: list[Rows], family: str) -> list[str]:
    found = dict.fromkeys(
        key.split("/")[2] for rows in seeds for key in rows if key.startswith(f"{family}/recommended/")
    )
    return [name for name in found if name not in CONTROLS and _lost(seeds, family, "none", name) is not None]


def _of(seeds: list[Rows], key: str, take: Callable[[dict[str, Any]], Any]) -> list[Any]:
    return [take(rows[key]) for rows in seeds if key in rows]


def _lost(seeds: list[Rows], family: str, defence: str, name: str, against: str = "none") -> float | None:
    """Points lost against the honest clients alone in the setting ``against``, over seeds that have both."""
    alone, key = f"{family}/{against}/silent", f"{family}/{defence}/{name}"
    both = [rows for rows in seeds if alone in rows and key in rows]
    found = [rows[alone]["accuracy"] - rows[key]["accuracy"] for rows in both]
    return 100 * mean(found) if found else None


def _accuracy(seeds: list[Rows], family: str, defence: str, name: str) -> str:
    found = _of(seeds, f"{family}/{defence}/{name}", lambda row: row["accuracy"])
    return f"{mean(found):.1%}" if found else "-"


def _share(seeds: list[Rows], family: str, names: list[str]) -> str:
    """In how many of the runs with the recommended setting the distrusted are the liars, and nobody else."""
    right = [
        named
        for name in names
        for named in _of(seeds, f"{family}/recommended/{name}", lambda row: row["distrusted"] == row["liars"])
    ]
    return f"{sum(right)} of {len(right)}" if right else "-"
