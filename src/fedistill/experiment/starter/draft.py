"""Writes the experiment that suits what data hold: settings that learn, each with its reason beside it."""

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from fedistill.config.inputs import COUNTED
from fedistill.config.section import Raw, RawTable
from fedistill.data.records import Features
from fedistill.experiment.advice import BEST_LOSS, STATISTICS, WITH_PUBLIC, WITHOUT_PUBLIC
from fedistill.experiment.starter.survey import Survey, Words
from fedistill.methods.shared.moments import MOST_FEATURES

CLIENTS, SAMPLES_PER_CLIENT = 5, 40
"""Simulated clients, and the samples that each should have; with fewer, there are fewer clients."""
MOST_SITES = 50
_PRIVATE, _SURE = 0.6, 5
"""A share of the samples that are private at least, and an expected number that is hardly ever 0."""
LIMIT = 5000
"""Training samples of a first run, which should take minutes."""
MANY_IMAGES = 2000
"""Images from which few local epochs are enough: with fewer, an epoch has few steps."""
MOST_PUBLIC, FEWEST_PUBLIC = 2000, 100
PLAIN_SIDE, SIDE = 64, 32
"""Images of one size up to the first are taken as they are; others are scaled to the second."""
FEWEST_READ, MOST_READ, MOST_COUNTED = 8, 128, 400
"""Words of a text: the fewest that are read, the most that models read, the most that naive Bayes counts."""
_IMAGE_MODELS = """\
[models]   # `fedistill models` lists them; cnn-m and resnet-8 are larger
clients = ["cnn-s"]
server = "cnn-s"

[train]
epochs = {epochs}
batch_size = 16
optimizer = {{ name = "sgd", lr = 0.02, momentum = 0.9 }}"""
_TEXT_MODELS = """\
[models]   # `fedistill models` lists them; textcnn and transformer-s are larger
clients = ["bag"]
server = "bag"

[train]
epochs = 4
batch_size = 16
optimizer = { name = "adam", lr = 0.01 }"""

_TABLE_MODELS = """\
[models]   # `fedistill models` lists them
clients = ["mlp-tab"]
server = "mlp-tab"

[train]
epochs = 2
batch_size = 16
optimizer = { name = "adam", lr = 0.01 }"""


@dataclass(frozen=True)
class Public:
    """Public data of the user's own; ``source`` is as the file names it, ``samples`` how many are taken."""

    source: RawTable
    samples: int


@dataclass(frozen=True)
class _Arm:
    why: str
    settings: RawTable


def draft(survey: Survey, source: RawTable, parts: bool, public: Public | None, name: str) -> str:
    """Return the text of an experiment file.

    Args:
        source: the data as the file names them, with their columns.
        parts: whether several files are one data set, and not a site each.
        public: the user's public data, if any.
        name: of the file, for the commands that it is used with.
    """
    held_out = 0 if public else _held_out(survey)
    lines = [
        *_remark(
            f"{survey.title}: {survey.samples:,} {COUNTED[survey.kind]} in {len(survey.classes)} classes."
            " Written by `fedistill init`; every line may be changed."
        ),
        f"#   fedistill doctor {name}    checks it, and says what each arm will cost",
        f"#   fedistill compare {name}   runs all arms, and ends with a table and a page",
        "seed = 0   # `seeds = 3` in its place runs all three times, for a mean and a deviation",
        f"rounds = {10 if public or held_out else 20}",
        "",
        "[task]",
        *(_setting(key, value) for key, value in source.items()),
        *_samples(survey),
        *_inputs(survey, own_public=public is not None, held_out=held_out),
        *(_sites(survey) if survey.sites else _simulated(survey)),
        *_public(survey, public, held_out),
        "",
        _models(survey),
        "",
        *_remark(
            "Arms, each a method with its settings: first the recommended one, then rivals, then controls."
        ),
    ]
    for arm in _arms(survey, public is not None, bool(held_out)):
        lines += [*_remark(arm.why), "[[arms]]", *(_setting(*item) for item in arm.settings.items()), ""]
    return "\n".join(lines)


def _samples(survey: Survey) -> Iterator[str]:
    if survey.missing:
        yield f"drop_missing = true   # {survey.missing:,} rows lack a value that is needed"
    if survey.samples > LIMIT:
        yield f"limit = {LIMIT}   # of {survey.samples:,} samples, for a first run of minutes"


def _inputs(survey: Survey, own_public: bool, held_out: int) -> Iterator[str]:
    if survey.features is not None:
        return _table(survey.features, survey, shares=not (own_public or held_out))
    return _images(survey) if survey.words is None else _texts(survey.words)


def _table(features: Features, survey: Survey, shares: bool) -> Iterator[str]:
    copies = survey.copies if len(survey.copies) < len(features.names) else ()
    left_out = {**survey.left_out, **dict.fromkeys(copies, "says the same as the label")}
    if left_out:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in left_out.items())
        yield from _remark(f"Not inputs: {reasons}.")
    how = ""
    if shares:
        how = (
            " Nothing is public, so clients share counts, means and deviations of their columns, and the"
            " categories that occur; docs/tables.md says what these reveal."
        )
    yield from _remark(f"Columns that are inputs.{how}")
    categorical = [name for name in features.categorical if name not in copies]
    table: RawTable = {"numeric": list(features.numeric), "categorical": categorical}
    yield _setting("table", {**table, "scaling": "sums" if shares else "public"})


def _images(survey: Survey) -> Iterator[str]:
    sizes = list(survey.sizes)
    if len(sizes) == 1 and max(sizes[0]) <= PLAIN_SIDE:
        return
    theirs = f"they have {len(sizes):,} sizes" if len(sizes) > 1 else "they have {} by {}".format(*sizes[0])
    yield from _remark(
        f"Height and width that images are scaled to; {theirs}. Larger is slower, and often better."
    )
    yield f"image_size = [{SIDE}, {SIDE}]"


def _texts(words: Words) -> Iterator[str]:
    yield from _remark(
        f"Models read so many words of a text; half of the texts have at most {words.median:,}."
    )
    yield _setting("text", {"length": _read(words, MOST_READ)})


def _sites(survey: Survey) -> Iterator[str]:
    yield from _remark(f"Each of {len(survey.sites):,} sites is a client.")
    if survey.columns.site is not None:
        yield _setting("partition", {"kind": "natural", "column": survey.columns.site})
    large = _large_sites(survey)
    if len(survey.sites) > MOST_SITES and large:
        yield f"clients = {min(MOST_SITES, large)}   # the largest, for a first run; leave it out for all"


def _large_sites(survey: Survey) -> int:
    """Return how many sites surely keep a private sample when others are tested on, public, or left out."""
    kept = min(LIMIT, _PRIVATE * survey.samples) / survey.samples
    return sum(count * kept >= _SURE for count in survey.sites.values())


def _simulated(survey: Survey) -> Iterator[str]:
    clients = max(2, min(CLIENTS, survey.samples // SAMPLES_PER_CLIENT))
    skewed = clients == CLIENTS
    yield from _remark(
        "No sites are known, so samples are shared out among simulated ones"
        + (", with unlike shares of the classes" if skewed else "")
        + '. Sites of your own are a column, partition = "natural(column=NAME)", or a file each in `train`.'
    )
    yield f"clients = {clients}"
    yield _setting("partition", "dirichlet(alpha=0.5)" if skewed else "iid")


def _held_out(survey: Survey) -> int:
    """Return how many samples become public, without their labels; 0 where that would be a pretence.

    Texts need some in any case, since their vocabulary comes from public texts alone.
    """
    wanted = min(MOST_PUBLIC, survey.samples // 5)
    if survey.kind == "text":
        return rounded(max(1, wanted))
    return 0 if survey.sites or wanted < FEWEST_PUBLIC else rounded(wanted)


def _public(survey: Survey, public: Public | None, held_out: int) -> Iterator[str]:
    words = {
        "text": " Words that no public text has are unknown to all models.",
        "table": " Columns are scaled by these, and categories that none of them has are unknown.",
    }.get(survey.kind, "")
    form = "imagefolder" if survey.kind == "image" else "csv"
    example = f'public = {{ format = "{form}", train = PATH, samples = 500 }}'
    if public is not None:
        yield from _remark(f"Samples that everyone has, without labels.{words}")
        yield _setting("public", {**public.source, "samples": public.samples})
    elif held_out:
        yield from _remark(
            "Held out of the data without their labels, to stand for samples that everyone has."
            f"{words} If you have such data, name them: {example}."
        )
        yield f"public = {held_out}"
    else:
        yield from _remark(
            "Nothing is public. If there are unlabelled samples that everyone may see, name them, and add an"
            f' arm with method = "{WITH_PUBLIC}", which often costs least: {example}.'
        )
        yield "public = 0"


def _models(survey: Survey) -> str:
    if survey.kind != "image":
        return _TEXT_MODELS if survey.kind == "text" else _TABLE_MODELS
    return _IMAGE_MODELS.format(epochs=2 if survey.samples >= MANY_IMAGES else 5)


def _arms(survey: Survey, own_public: bool, held_out: bool) -> Iterator[_Arm]:
    balanced: RawTable = {"train": {"loss": BEST_LOSS}}
    if survey.words is not None:
        statistics = {"method": STATISTICS["text"], "length": _read(survey.words, MOST_COUNTED)}
        yield _Arm("Counts of words, sent once. Nobody trains, and yet it is hard to beat.", statistics)
    if survey.kind == "table" and survey.width <= MOST_FEATURES:
        why = "Means and covariances of the columns, sent once. Nobody trains, and yet it is hard to beat."
        yield _Arm(why, {"method": STATISTICS["table"]})
    if own_public or held_out:
        yield _Arm(
            "Clients vote on the public samples, once; then small parts of the weights are merged.",
            {"method": WITH_PUBLIC, **balanced},
        )
        yield _Arm(
            "Labels of the public samples alone: clients' models may differ.",
            {
                "method": "dsfl",
                "codec": "simplex(bits=4)",
                "aggregation": "prior-corrected",
                "distill_epochs": 4,
                **balanced,
            },
        )
    else:
        yield _Arm(
            "A random part of the weights is trained and sent.", {"method": WITHOUT_PUBLIC, **balanced}
        )
    yield _Arm("All weights, coded.", {"method": "fedavg", "codec": "qsgd"})
    if survey.kind == "table":
        small = {"clients": ["logistic"], "server": "logistic"}
        settings: RawTable = {"name": "fedavg-logistic", "method": "fedavg", "models": small}
        yield _Arm("Logistic regression, whose weights are few.", settings)
    if survey.kind == "image":
        yield _Arm("Sums of fixed features, sent once. Nobody trains.", {"method": STATISTICS["image"]})
    if held_out:
        yield _Arm(
            "Control: the server alone, had somebody labelled the public samples.", {"method": "server-alone"}
        )
    yield _Arm("Control: each client alone.", {"method": "local"})


def _read(words: Words, most: int) -> int:
    """Return how many words of a text are read: all of most texts, if these are not too long."""
    return min(most, max(FEWEST_READ, words.most))


def rounded(count: int) -> int:
    """Round a positive number down to one digit and zeros."""
    unit = int(10 ** (len(str(count)) - 1))
    return count // unit * unit


def _remark(text: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _setting(key: str, value: Raw) -> str:
    return f"{key} = {_toml(value)}"


def _toml(value: Raw) -> str:
    """Return a value in one line of TOML."""
    if isinstance(value, dict):
        return f"{{ {', '.join(_setting(key, inner) for key, inner in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    # JSON's texts, numbers, true and false are those of TOML, but for the character that ends ASCII.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
