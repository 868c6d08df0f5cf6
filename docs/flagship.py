"""Makes docs/flagship.md and its plot of what benchmarks/flagship.py has measured; for `docs/generate.py`."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import curves
from writing import between, made_by, table

from fedistill.config.units import format_bytes, format_count

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RESULTS = BENCHMARKS / "results" / "flagship.json"
README = BENCHMARKS.parent / "README.md"
PLOT = "assets/flagship.svg"
TARGETS = (0.70, 0.75, 0.78, 0.80, 0.82, 0.84, 0.86)
EASIER = (0.80, 0.85, 0.90, 0.93, 0.95, 0.96, 0.97)
"""Accuracies of tasks on which most arms come above 86 %."""
OF_NEWS = (0.70, 0.75, 0.80, 0.85, 0.90, 0.92, 0.94)
"""Those of README's table of news: what the arms were tuned for, and what naive Bayes has, among them."""
OWN = ("bridge", "random-mask")
WITH_PUBLIC = ("bridge", "voting", "tally-like", "uwa-like", "fedaux")
"""How the names of arms begin whose clients need public data."""
CONTROLS = ("local", "server-alone")
CHOSEN = {
    "fashion-10": "bridge-at-once-refined",
    "fashion-10-strong": "bridge-statistics",
    "fashion-10-two-classes": "bridge-statistics",
    "fashion-50": "bridge-at-once-refined",
    "fashion-10-a-third": "bridge-long-at-once-refined",
    "mnist-10": "bridge-at-once-refined",
    "digits-10": "bridge-at-once-refined",
    "bbc-5": "bridge-refined",
}
"""The arm of ours that is compared on a task, by a rule that knows no test set (`RULE`)."""
HEADLINE = "fashion-10"
NEWS = "bbc-5"
IN_README = {
    HEADLINE: (
        *("gaussian-32", "gaussian", "ridge", "fedavg-qsgd", "fedavg-stc"),
        *("voting-500", "voting-1000", "voting-1400", "voting-1000-longer-refined"),
        *("tally-like", "uwa-like", "fedaux", "fedekd-like"),
        *("random-mask", "random-mask-long"),
        *("bridge-500", "bridge", "bridge-at-once", "bridge-at-once-refined", "bridge-1400"),
    ),
    NEWS: (
        *("fedavg-qsgd", "fedavg-stc", "random-mask", "voting", "voting-longer-refined"),
        *("bridge", "bridge-refined", "naive-bayes-small"),
    ),
}
"""The arms in README's table of a task, in this order."""
PLOTTED = (
    *("bridge-at-once-refined", "random-mask-long", "ridge", "fedavg-qsgd", "fedavg-stc"),
    *("voting-1000-longer-refined", "uwa-like", "fedaux"),
)
"""As many as there are colours: ours with public data and without, and one rival of each kind."""
Arms = Mapping[str, Mapping[str, dict[str, Any]]]
Points = Sequence[tuple[int, float]]

SETTING = """\
How many bytes until the server's model is this good? [`bridge`](methods/bridge.md) and
[`random-mask`](methods/random-mask.md) beside coded FedAvg, votes and statistics, all tuned with the same
budget, and what each part of `bridge` brings. A cell has the bytes of all frames, both directions and all
clients, until the server's model first reaches the accuracy on the test set: the median over seeds and, in
brackets, the range; *never* means that a seed did not get there. Multiply-adds are those of one client in all
rounds, the mean over clients; memory is that of the one whose training takes most, as `fedistill compare`
counts them. Rows that are older than this count have none."""
RULE = """\
Below each table, until 95 % of the best accuracy that any arm reaches: the bytes of one arm of ours, and of
the best rival. The rival is the best on the test set; ours is named beforehand. It is
`bridge-at-once-refined`; where `fedistill doctor` advises to begin with statistics, since labels are strongly
skewed (Dirichlet 0.1, two classes per client), `bridge-statistics`; with a third of the clients the former
for 40 rounds; on texts `bridge-refined`, since `bridge` was tuned there with an order of its own (`coverage =
0.9`). Where another arm of ours is the best on the test set, it is named as well."""
TASKS = {
    "fashion-10": "Fashion-MNIST: 10 clients with skewed shares of 10,000 images (Dirichlet 0.3), 2,000"
    " public images without labels, 15 rounds, batches of 32.",
    "fashion-10-strong": "The same with more skew: Dirichlet 0.1.",
    "fashion-10-two-classes": "The same with two classes per client.",
    "fashion-50": "The same images divided among 50 clients.",
    "fashion-10-a-third": "As fashion-10, with a third of the clients in each round.",
    "mnist-10": "As fashion-10, on MNIST.",
    "digits-10": "10 clients with skewed shares of scikit-learn's digits, 400 public images.",
    "bbc-5": "BBC news: 5 clients with skewed shares (Dirichlet 0.5), 500 public articles.",
}
PUBLIC = """\
Public data are not counted in these columns: bytes are those of clients who have the public images already.
Where they have to be sent, add {public} for the arms that need them at the clients: `bridge`, `voting`,
`tally-like`, `uwa-like` and `fedaux`. No other arm needs any, so that for them nothing is left out."""


def page(command: str) -> str:
    """The text of docs/flagship.md."""
    kept: dict[str, Arms] = json.loads(RESULTS.read_text(encoding="utf-8"))
    parts = [made_by(command, "docs/flagship.py"), "# What an accuracy costs", SETTING, RULE]
    for task, arms in kept.items():
        targets = TARGETS if task.startswith("fashion") else EASIER
        parts += [
            f"## {task}",
            TASKS[task],
            costs(arms, targets),
            _public(arms),
            _alone(arms),
            lead(arms, CHOSEN[task]),
        ]
        if task == HEADLINE:
            parts.append(f"![Accuracy against bytes, the median seed of each arm]({PLOT})")
    made = MADE.format(rows=sum(len(seeds) for arms in kept.values() for seeds in arms.values()))
    parts += [
        "## What was found",
        FOUND.replace("{refined}", _refined()),
        "## What it is made of",
        table(("ingredient", "setting", "what it brings"), INGREDIENTS),
        NOT_BUILT,
        HEADS.format(heads=_heads()),
        "## How arms were tuned",
        TUNED,
        _settings("images", "published"),
    ]
    parts += [TUNED_TEXTS, _settings("texts"), made]
    return "\n\n".join(part for part in parts if part) + "\n"


def readme() -> str:
    """README with its tables of what an accuracy costs."""
    kept: dict[str, Arms] = json.loads(RESULTS.read_text(encoding="utf-8"))
    text = README.read_text(encoding="utf-8")
    for task, names in IN_README.items():
        arms = {name: kept[task][name] for name in names}
        text = between(text, task, costs(arms, OF_NEWS if task == NEWS else TARGETS), README.name)
    return text


def plot() -> str:
    """The plot, as SVG: of each arm the seed whose best accuracy is in the middle."""
    kept: dict[str, Arms] = json.loads(RESULTS.read_text(encoding="utf-8"))
    shown = {}
    for name in PLOTTED:
        found = [one["curve"] for one in kept[HEADLINE][name].values()]
        shown[name] = sorted(found, key=lambda points: max(reached for _, reached in points))[len(found) // 2]
    return curves.draw(shown, TARGETS[0])


def costs(arms: Arms, targets: Sequence[float]) -> str:
    """A row for each arm: bytes to each accuracy, and what it ends with."""
    work = any("multiply_adds" in one for seeds in arms.values() for one in seeds.values())
    counted = ("multiply-adds", "memory") if work else ()
    heads = (
        "arm",
        *(f"{target:.0%}" for target in targets),
        "last",
        "bytes in all",
        "with public data",
        *counted,
        "seeds",
    )
    rows = []
    for name, seeds in arms.items():
        found = [one["curve"] for one in seeds.values() if one["curve"]]
        if found:
            last = [points[-1][1] for points in found]
            spread = f" ± {stdev(last):.1%}" if len(last) > 1 else ""
            sent = int(median(points[-1][0] for points in found))
            whole = format_bytes(sent), format_bytes(sent + max(one["public"] for one in seeds.values()))
            cells = (_spread([_cost(points, target) for points in found]) for target in targets)
            own = _work([*seeds.values()]) if work else ()
            rows.append((name, *cells, f"{mean(last):.1%}{spread}", *whole, *own, str(len(found))))
    return table(heads, rows)


def _work(seeds: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Multiply-adds of a client in all rounds, and the memory of the one whose training takes most."""
    counted = [one for one in seeds if "multiply_adds" in one]
    if not counted:
        return "not counted", "not counted"
    adds = int(median(one["multiply_adds"] for one in counted))
    return format_count(adds), format_bytes(int(median(one["memory"] for one in counted)))


def _alone(arms: Arms) -> str:
    """What each client's own model is at without an exchange."""
    found = [one["clients"] for one in arms.get("local", {}).values()]
    if not found:
        return ""
    return f"Clients that exchange nothing (`local`) are at {mean(found):.1%} of the same test samples."


def _refined() -> str:
    """A row for each task: how many pooled labels are right before and after they are refined."""
    kept = json.loads((BENCHMARKS / "results" / "label-refinement.json").read_text(encoding="utf-8"))
    heads = ("task", "public samples", "nobody voted", "right as counted", "right when refined", "seeds")
    rows = []
    for task, seeds in kept.items():
        shares = (mean(one[key] for one in seeds.values()) for key in ("abstained", "counted", "refined"))
        samples = str(next(iter(seeds.values()))["samples"])
        rows.append((task, samples, *(f"{share:.1%}" for share in shares), ", ".join(seeds)))
    return table(heads, rows)


def _heads() -> str:
    """A row for each task and width: accuracy and bytes of statistics with one covariance and with others."""
    kept = json.loads((BENCHMARKS / "results" / "gaussian-heads.json").read_text(encoding="utf-8"))
    heads = ("task", "features", "one covariance", "a variance for each class", "three Gaussians per class")
    rows = []
    for task, widths in kept.items():
        for width, one in widths.items():
            each = one["bytes of each"]
            sent = {"shared": one["bytes"], "diagonal": each, "mixture": 3 * each}
            cells = (f"{one[head]:.1%}, {format_bytes(cost)}" for head, cost in sent.items())
            rows.append((task, width, *cells))
    return table(heads, rows)


def _public(arms: Arms) -> str:
    sizes = [one["public"] for seeds in arms.values() for one in seeds.values()]
    return PUBLIC.format(public=format_bytes(max(sizes))) if any(sizes) else ""


def lead(arms: Arms, own: str) -> str:
    """Bytes to 95 % of the best accuracy: of this arm and of the best rival, with public data and without.

    Over the seeds that this arm shares with the rival that has most; arms that lack one of them are left out.
    Which rival is best is told by the test set, as no rule of theirs could tell it better.
    """
    compared = {name: seeds for name, seeds in arms.items() if name not in CONTROLS}
    if own not in compared:
        return f"`{own}` has not been run here yet."
    theirs = max((set(seeds) for name, seeds in compared.items() if not name.startswith(OWN)), key=len)
    common = sorted(set(compared[own]) & theirs)
    if not common:
        return "Ours and its rivals have no seed in common yet."
    found = {
        name: [seeds[one]["curve"] for one in common]
        for name, seeds in compared.items()
        if seeds.keys() >= set(common)
    }
    goal = 0.95 * max(mean(max(acc for _, acc in points) for points in each) for each in found.values())
    needed = {
        name: median(_cost(points, goal) or float("inf") for points in each) for name, each in found.items()
    }
    rivals = {name: cost for name, cost in needed.items() if not name.startswith(OWN)}
    most = min((cost, name) for name, cost in needed.items() if name.startswith(OWN[0]))
    sentence = (
        f"With {len(common)} seed{'s' if len(common) > 1 else ''} ({', '.join(common)}), to {goal:.1%}, 95 %"
        f" of the best accuracy: {_beside(own, needed[own], rivals)}"
    )
    if most[0] < needed[own]:
        sentence += f" The best of ours here: {_beside(most[1], most[0], rivals)}"
    mask = next((name for name in (f"{OWN[1]}-long", OWN[1]) if name in needed), None)
    if mask is None:
        return sentence
    bare = {name: cost for name, cost in rivals.items() if not name.startswith(WITH_PUBLIC)}
    return f"{sentence} Without public data at the clients: {_beside(mask, needed[mask], bare)}"


def _beside(own: str, cost: float, rivals: Mapping[str, float]) -> str:
    """An arm's bytes, those of the best of these rivals, and their ratio."""
    ours = "does not get there" if cost == float("inf") else f"sends {format_bytes(int(cost))}"
    least, rival = min((one, name) for name, one in rivals.items())
    if least == float("inf"):
        return f"`{own}` {ours}; of no rival do most seeds get there."
    ratio = "" if cost == float("inf") else f", a ratio of {cost / least:.2f}"
    return f"`{own}` {ours}, the best rival, `{rival}`, {format_bytes(int(least))}{ratio}."


_ELSEWHERE = ("name", "method", "codec", "train", "models")


def _settings(*kinds: str) -> str:
    """What tuning chose for each arm."""
    rows = []
    for kind in kinds:
        tuned = tomllib.loads((BENCHMARKS / "results" / f"flagship-{kind}.toml").read_text(encoding="utf-8"))
        rows += [_setting(arm, tuned["train"]) for arm in tuned["arms"]]
    return table(("arm", "epochs", "rate", "loss", "smoothing", "codec", "own settings"), rows)


def _setting(arm: Mapping[str, Any], shared: Mapping[str, Any]) -> tuple[str, ...]:
    train = {**shared, **arm.get("train", {})}
    own = {key: value for key, value in arm.items() if key not in _ELSEWHERE}
    return (
        arm.get("name", arm["method"]),
        str(train["epochs"]),
        f"{train['optimizer']['lr']:g}",
        train.get("loss", "cross-entropy"),
        str(train.get("label_smoothing", 0.0)),
        _codec(arm.get("codec")),
        ", ".join(f"`{key} = {value}`" for key, value in own.items()) or "-",
    )


def _codec(codec: Any) -> str:
    if codec is None:
        return "-"
    if isinstance(codec, str):
        return f"`{codec}`"
    settings = ", ".join(f"{key}={value}" for key, value in codec.items() if key != "name")
    return f"`{codec['name']}({settings})`"


def _cost(points: Points, accuracy: float) -> int | None:
    return next((sent for sent, reached in points if reached >= accuracy), None)


def _spread(found: Sequence[int | None]) -> str:
    """The median and the range, where seeds that never get there count as dearer than all others."""
    reached = sorted(one if one is not None else float("inf") for one in found)
    middle = median(reached)
    if middle == float("inf"):
        got = sum(one is not None for one in found)
        return f"({got} of {len(found)})" if got else "-"
    if len(reached) == 1:
        return format_bytes(int(middle))
    low, high = reached[0], reached[-1]
    top = "never" if high == float("inf") else format_bytes(int(high))
    return f"{format_bytes(int(middle))} ({format_bytes(int(low))} to {top})"


FOUND = """\
**One round of experts' votes is worth many rounds of weights.** Clients train long before they vote (40
epochs with balanced softmax; that costs no byte), they vote only for classes of which they have many samples
(`coverage`), and a vote counts as its client's samples of that class. Votes on 1,000 of the 2,000 images are
nearly as good as votes on all, for half of the bytes: in a trial on validation images (seed 0), models
trained on the pooled labels of 500, 700, 1,000, 1,400 and 2,000 images were at 79.5, 81.2, 82.6, 83.5 and
83.3 %. Their most certain labels alone, of as many images, are 5 points worse. A second round of votes, from
the model that the first one made, brought nothing. More training on the same labels does, and costs no byte:
30 epochs at a rate that falls, in place of 15 at one rate, are worth half a point to a point (a trial on
training images that no client has); the mean of four such models, or a fifth one that learns from it, brings
no more. On MNIST, labels of images that are moved by up to two pixels are worth 1.5 to 3 points; on
Fashion-MNIST half a point. No arm uses that.

**What public samples look like corrects the votes** (`-refined`: `refine_labels = true`), and nothing more
is sent for it. The server has the public samples, and the pooled labels are mostly right. So a simple
classifier learns them, of nine tenths of the samples at a time, and judges the others: of images a linear
discriminant of 128 frequencies of brightness and edges, of texts naive Bayes. Its logits, at the temperature
that explains the counted labels best, are the prior of a sample's class, and votes are evidence beside it;
five times over. This helps most where such a classifier is nearly as good as the voters, as on digits and
news, and where experts abstain from many samples:

{refined}

The number of frequencies and of passes was chosen on these labels and on those of seeds 0 to 2, so the table
is not held out; accuracies above are of the test set. So digits begin at 92.2 to 95.3 % for 1.5 to 1.6 kB,
in place of 81.3 to 92.8, and end at 96.6 in place of 95.8; on MNIST all seeds have 93 % after votes on 500
images, for 1.7 to 1.9 kB; on news the first model is at 91.7, 92.4 and 96.2 % in place of 89.9, 91.7 and
96.4. On Fashion-MNIST, where the classifier is five points behind the voters, it brings nothing: 81.0 %
after the votes in place of 81.3, and 86.2 at the end in place of 86.5. With a third of the clients, whose
first votes are of three or four, it brings three points at 5 kB. Estimating the voters' errors as well
(Dawid and Skene) made labels worse, and so did neighbours in place of the classifier on Fashion-MNIST and
MNIST; where statistics come first (`start`), which say the same of the samples, nothing is gained. `voting`
has it too.

**What is not sent should not be trained.** Merges of weights lose most by what codecs drop: from the same
start and with the same training, on validation images (seed 0), weights sent whole reach 87.5 % in seven
merges; `stc` of 2 % (8.3 kB for each merge of all clients) 85.5 % at best in six, swinging by a point; a
random twentieth of the weights, which alone is trained, with five times the learning rate and rounded to
about 1.2 bits (3.1 kB), 86.4 %. A random tenth with the same rate is no better for its bytes (86.5 % after
six merges of 6 kB), a fiftieth with 7.5 times the rate neither (86.1 % after eight of 2.2 kB). The mask has
to change: the same tenth each time ends at 85.3 %.

**The same merges without votes** (`random-mask`) need no public data. From a random start they take several
merges to where `bridge` begins. In 40 rounds (`random-mask-long`) all seeds come to 84 %, for 35 to 53 kB,
and nothing is left out of these bytes.

**Against votes alone** (`voting-1000`), `bridge` has no more than its experts and its weights to count on
until 80 %: both are at 78 % for 3.6 to 3.9 kB. Votes then end at 82 %, merges go on. Tuning gave `voting` at
most 8 local epochs and 10 of distillation, where `bridge` has 40 and 30. With as many (`-longer`; refined as
well), votes have 80 % for 3.9 kB on two of three seeds and 82.2 % for 11.2 and 12.8 kB, which makes them the
best rival on `fashion-10`; more images (`voting-1400-longer-refined`) bring less. They end at 91.6 % on
digits, at 94.5 on MNIST, at 76.9 to 81.3 with Dirichlet 0.1, at 80 to 81 with 50 clients (80 % for 45 to 69
kB), and at 24 to 41 with two classes per client; on news, by majority in place of the pooling that was
tuned, at 77 (82 with that pooling, not refined). They have five exchanges, after which some still rise.

**Published methods that are near to ours**, tuned with the same budget (three seeds on `fashion-10`, MNIST
and digits, fewer elsewhere), cost more in every column than the arm of ours that is named beforehand.
`tally-like`, the nearest, is at 74 to 79 % after votes on all images (7.7 kB) and at 80 for 15.3 kB; its
merges, which send all weights for some 90 kB each, bring it to 83.3 % for 330 kB. `uwa-like` spends 9 kB on
densities before its first votes are weighted, and ends with 82.6 % for 33 kB. `fedaux` distils an ensemble
of weights, and comes as far as `bridge` (86.1 % on `fashion-10`, 97.2 on MNIST, 96.3 on digits), for fifteen
to eighteen times its bytes. `fedekd-like`, whose clients keep private models of any architecture, sends the
weights of a proxy: 85.7 % for 390 kB. With a third of the clients `uwa-like` is the best rival, with 23.8 kB
to 81.7 % (7.7), though it ends at 78 %. With two classes per client `fedaux` is the only rival that comes to
82 %, on two of three seeds, for 224 and 518 kB (28.6). With Dirichlet 0.1 it ends as high as ours, at 85.5 %
(85.2 for a sixteenth of its bytes), and with 50 clients higher, at 85.3 % for 4.6 MB (84.2 for 272 kB).

**In a merge, clients must not unlearn what they have no samples of.** Balanced softmax, the loss that tuning
chose, keeps a client's rare classes as likely as its frequent ones, and with two classes each it teaches
nothing but to tell these two apart. With `retain`, a client keeps what the common model says of public
images, and cross-entropy tells its classes from all others. Both together are no better than balanced
softmax alone (validation images, two classes per client, seed 0: 81.0 % without, 80.5 with both, 85.0 with
cross-entropy and retention; weights of 0.5 and 3 end 0.1 to 0.4 points below 1). FedNTD does the like
without public images (`-not-true`, seed 0): there `fedavg-qsgd` ends at 66.6 and `random-mask` at 55.2 %, no
better than with balanced softmax. It takes a client twice the multiply-adds of a merge.

**What each part brings** (seed 0, bytes to 82 and 84 %, last accuracy): `bridge` 3.6 and 15.9 kB, 86.5 %;
nothing retained (`bridge-no-retention`), 3.6 and 19.6 kB, 85.5 %; all clients vote, not experts alone
(`bridge-all-vote`), 4.9 and 16.8 kB, 85.8 %; besides, each vote counts once (`bridge-equal-votes`), 9.2 and
24.3 kB, 85.9 %; 5 epochs before the votes in place of 40 (`bridge-5-epochs`), 12.2 and 23.5 kB, 86.5 %;
without votes (`random-mask-long`), 21.0 and 35.0 kB.

**Votes on more images** (`bridge-1400`) cost a kilobyte more before anything is known, and begin a point
higher: 82 % on two of three seeds, for 4.1 and 4.5 kB, where votes on 1,000 do so on one. More images help
the votes alone (`voting-1400`) less than they cost. Votes on fewer (`bridge-500`) have 75 % for 2.4 kB, and
are behind at 80 and 82 %; votes alone on as few (`voting-500`) have it for 2.1 kB, 80 % for 7.5, and end at
81.4 %.

**Votes at once** (`bridge-at-once`: `levels_first = false`). To know the experts of a class, `bridge` first
asks all clients how many samples of each class they have, which takes a round and half a kilobyte of ten
clients. Without that, a client votes for the classes of which it has about the mean number of samples over
clients and classes, or more, and says how many along with its votes. On validation images of MNIST (seed 0)
the labels of 500 and 1,000 images are as often right (96.4 and 96.9 %, to 96.8 and 97.2), for a tenth fewer
bytes of votes as well. So 80 % costs 3.1 kB, 82 % 7.9 (on all seeds at most 11.8) and 84 % 15.5, where
`bridge` has 3.6, 8.5 and 19.8; 86 % takes 49.6 kB in place of 39. It suits classes that are about equally
frequent, and clients with about as much data as each other: of a rare one, no client might have enough to
vote for it. On digits, where the mean is 10 images, one seed of three begins at 81 % in place of 89.

**Voters cannot be spared.** If each image is voted on by five of the ten clients, twice as many images cost
the same; but where the experts of its class are not among the five, nobody outvotes the wrong ones: 70 % of
the labels are right in place of 86, and models learned from 1,000 such labels are at 75.1 % of validation
images, where 500 from all clients come to 80.1 (seed 0).

**Unlike clients** (`bridge-unlike`: cnn-s and mlp-s, cnn-m at the server) share the votes, and each
architecture has merges of its own: 82 % for 3.5 kB, and 84 % for 40 kB (seed 0). A larger server alone
(`bridge-larger`: cnn-s clients, cnn-m at the server) brings nothing where it learns from the same labels.

**With a third of the clients in each round**, `bridge-long` begins with what three or four clients vote, for
2.2 to 4.1 kB. At equal bytes it is 6.7 points behind all clients at 5 kB, 2.7 at 10, 0.9 at 20 and 25, and
1.3 to 2.7 from 30 to 50 kB (mean of three seeds). Votes at once (`bridge-long-at-once`) bring what was too
little sooner: 5.4 points behind at 5 kB, 0.7 at 8, and 1.1 to 2.5 from there to 50. With refined labels as
well (`bridge-long-at-once-refined`, beside `bridge-at-once-refined`) it is 1.5 points behind at 5 kB, not
behind at 6 to 10, at most 0.9 from there to 30, and 1.6 to 1.8 at 40 and 50. What three clients agree on
swings from merge to merge: by the best model so far, of which the columns tell, it is at most 0.8 behind
from 6 kB on. A running mean of the server's model (`bridge-long-ema`: `ema = 0.7`) costs no byte, is further
behind at first, since the first model is a poor one, and 0.4 to 1.5 points behind from 25 kB on; it ends at
85.4 % in place of 84.7. With all clients it brings nothing.

**With more skew, statistics come first** (`bridge-statistics`, which is `bridge` with `start =
"gaussian(width=32)"`). A client with few classes takes every image for one of them, so that counted votes
say little. The model of one-shot statistics does not depend on how the data are divided: its answer for a
public image is the prior of its class, and votes are evidence beside it, which tells apart the classes that
a client has. Labels of the 2,000 public images (seed 0) that are right: with two classes per client 34 % by
counted votes, 76 % by statistics, 79 % by both; with Dirichlet 0.1 76, 75 and 83 %; with 0.3 counted votes
of experts are better, 86 % to 85 %. On `fashion-10-two-classes` it has 75 % for 2.3 kB on all three seeds
and 80 % for 14 to 25 kB, and ends at 83.7 % after 15 rounds (57 kB) and at 86.2 after 40 (150 kB,
`bridge-statistics-long`), where statistics of more features, sent once, have 80.7 % for 41 kB (`gaussian`);
it is not below them at any number of bytes. Without a start from statistics `bridge` begins at chance there,
and ends at 80.6 %. With Dirichlet 0.1 (`fashion-10-strong`) both end at 85 %; with statistics, 80 % is there
for 7 to 15 kB in place of 19 to 34. On digits it ends at 96.8 % (`bridge`: 95.8). `doctor` advises it where
labels are strongly skewed.

**With 50 clients** (`fashion-50`), `bridge` has 80 % for 15.9 kB, 4.5 times what it sends with ten, and
`bridge-at-once` for 14.1, 4.6 times.

**Where it does not lead.** On digits, statistics of 32 features sent once (`gaussian-32`, 3.5 kB) were
better than all others but `bridge-statistics` from there to 15 kB, until labels were refined:
`bridge-at-once-refined` has 92.3 % for 1.6 kB on two of three seeds, and on the third for 4 kB. From 3.5 to
5.6 kB `gaussian-32` is ahead of it, by up to 1.6 points, and at the end `gaussian`, for 46 kB, by .4.
Without public data, `random-mask`, whose settings come from Fashion-MNIST, is far behind there: cnn-s takes
more steps than 104 samples per client give in 15 rounds. On MNIST, `bridge-500` and its like have 92.8 % for
1.9 kB, .47 of what `voting-1000` sends to get there, and with votes on 1,000 images for 3.0, three quarters;
at the end `bridge` is at 97.6 % for 53 kB, where coded FedAvg has 97.3 for 285 kB. On Fashion-MNIST with ten
clients the arm that is named beforehand needs 8.1 kB to 82.2 %, two thirds of what the best rival sends;
votes on 1,400 images would have needed a third. With two classes per client only `bridge-statistics-long`
ends above `server-alone`.

**On texts** (`bbc-5`), the votes of `bridge` alone are at 89.9, 91.7 and 96.4 % for 0.9 kB, after its first
two rounds, where `naive-bayes-small` needs 10.5 kB and coded weights 200 kB and more. Its merges of word
vectors are dear, bring 1 to 5 points for 100 kB, and then lose some again, perhaps since what is retained is
learned from 500 public articles alone. At the end naive Bayes is ahead, with 95.4 % and no training at all;
`bridge` has 92.9 % there, `bridge-refined` 93.8, and `server-alone`, with labels of the 500 public articles,
94.5. `voting`, with the pooling that tuning chose for it, prior-corrected, stops at 83 %.

All models but naive Bayes read 256 words of an article. With 64, as this table had it at first, they read
too little: `bridge` was at 90 % for 119 kB. Clients who vote by a naive Bayes of their own words, in place
of a model that they train, were tried as well: tuned in the same way, they did worse than `bridge` does.

**What limits it.** The first point costs what the votes do, some 250 bytes of each client. The labels take
another 4 kB on their way down before the first merge. In 15 rounds cnn-s ends at 86.3 % on the test set;
weights sent whole from the same start came to 87.5 % of validation images, where `bridge` now has 87 to 88.

The control `server-alone` trains cnn-m on true labels of all public images: at 83.8 % on Fashion-MNIST (85.0
at best), below `bridge` wherever all clients take part but for two classes per client without statistics; on
digits few are above it (96.5 %). Whoever can have these labels needs no clients."""
INGREDIENTS = (
    ("statistics first", "`start`", "`bridge-statistics`, under strong skew"),
    (
        "a vote is a class or an abstention",
        "`coverage`, `levels_first`",
        "`bridge-all-vote`, `bridge-at-once`",
    ),
    ("votes coded under a prediction", "of `voting` with `start`, both ways", "not measured apart"),
    ("labels coded given the receiver's votes", "always", "not measured apart"),
    ("balanced softmax", "`train.loss`", "chosen by tuning; in merges `retain` is better"),
    ("pooling corrected for clients' priors", "`aggregation` of `voting`", "chosen by tuning on texts"),
    ("votes weighted by reliability", "`weighting`", "`bridge-equal-votes`"),
    ("what public samples look like", "`refine_labels`", "the `-refined` arms"),
    ("a downlink of what changed, a model that is not rounded", "always", "not measured apart"),
    (
        "sparse merges from a common start",
        "`trained_share`, `up_step`, `down_step`",
        "`random-mask`: without votes",
    ),
    ("merges that keep what clients have no samples of", "`retain`", "`bridge-no-retention`"),
    ("an exchange that is worth little is skipped", "`accumulate`", "not measured here"),
    ("a running mean at the server", "`ema`", "`bridge-long-ema`"),
)
NOT_BUILT = """\
Not built: votes with a certainty, votes where the others are uncertain, runs that stop by themselves, and the
two below."""
HEADS = """\
**Why one covariance.** The rivals `gaussian` and `gaussian-32` have one covariance for all classes. Two
others were tried on the same features, and given what clients could not have sent: variances and mixtures of
all samples together, not rounded. Their bytes are those of means as `gaussian` rounds them, and of variances
in steps of a quarter octave. Accuracy on the public images, of which no client has labels (seed 10, payloads
of ten clients; `benchmarks/gaussian_heads.py`):

{heads}

Variances of each class are always worse than one covariance of as many features or fewer, which costs less;
mixtures too, but for the last tenths on digits. Correlations are cheap, a bit or two each, and these features
are correlated within classes. So neither was built. Nor are correlations rounded more finely in later rounds
(255 levels in place of 3 are worth up to 2.9 points here, and twice as many features up to 27): to send them
again with more bits cannot be cheaper than to send these bits at once, which `levels` does."""
TUNED = """\
`python benchmarks/flagship.py --tune images` gave each arm 12 trials of up to 8 rounds on `fashion-10`, seed
0, with training images that no client has in place of the test set; the best trial sends the fewest bytes
until 82 % ([tuning](tuning.md)). All other tasks and seeds have the same settings. `gaussian-32`, the
controls and the parts of `bridge` were not tuned. The defaults of `random-mask` and the number of images
that `bridge` votes on come from the trials above, on 3,000 validation images of seed 0: `bridge` and
`random-mask` have had more attempts than their rivals, but for votes on half of the images, which
`voting-1000` has too. `bridge` was tuned before it retained anything, and before its start had a rate that
falls: both, and 1 as the weight of what is retained, were chosen on validation images of seed 0 of three of
these tasks. The parts with votes on 500 and 1,400 images, of which `voting` has the like, votes at once, and
refined labels were not tuned. `tune` tried up to 8 local epochs and 10 of distillation then, and `voting`
was given the most of both; so `-longer` has as many as `bridge`, by hand, for five rounds.

Published methods that are near to ours were tuned later, by `--tune published`, when `tune` tried up to 20
local epochs and 30 of distillation. `uwa-like` sends votes, as its soft labels cost more, and `fedekd-like`
is judged by its proxy, the model at the server."""
TUNED_TEXTS = """\
The arms of `bbc-5` were tuned in the same way on its own articles, by bytes until 92 %; with six more
trials of `bridge`, as the head of `benchmarks/results/flagship-texts.toml` says."""
MADE = """\
Made by `FEDISTILL_DATA=FOLDER python benchmarks/flagship.py --again`: {rows} rows, those of images of two to
ten minutes each on one core; it can be interrupted. Without `--again`, all arms on all tasks and seeds.
Rows are kept in `benchmarks/results/flagship.json`. Arms of one seed are parts of `bridge` left out, or
changed, and others that were not worth three. Which labels are right: `benchmarks/label_refinement.py`."""
