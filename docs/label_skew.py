"""Makes docs/label-skew.md from what benchmarks/skew.py has measured; `docs/generate.py` writes it."""

import json
import re
from pathlib import Path
from typing import Any

from writing import made_by, table

from fedistill.config.units import format_bytes

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "skew.json"

SETTING = """\
What helps if each client has few classes, and what does not. `fedistill doctor` shows how skewed the
labels of an experiment are, from 0 (even) towards 1 (disjoint), and advises the pair of
settings that did best here if they are strongly skewed and the method pools labels.

All figures are for Fashion-MNIST, 10 clients, one convolutional network of 106,000 weights at clients
and server, one local epoch of SGD (0.02, momentum 0.9) and batches of 32. `full` has 20,000 private and
8,000 public images, `small` a quarter of each. Accuracy is measured on 3,000 training images that were
held out; the test set is never read. The name of a row gives a local loss and what the server does: pool
soft labels, pool votes (`votes`), average weights (`fedavg`), or another method with its own defaults
(with `-prior`, prior-corrected labels). `prior-3` is prior-corrected pooling with sharpness 3. Figures
are the server's accuracy after round 5; for COMET, which has no server model, the clients' mean."""
FOUND = """\
What works: *balanced softmax at the clients with prior-corrected pooling at the server*. The first
keeps a client's model from favouring its most frequent classes; the second removes what bias remains in
its answers. FedNTD's not-true loss is about as good as balanced softmax; both together are not better.
Votes with the same pair keep most of the accuracy for a three-hundredth of the bytes. Prior correction
alone, or balanced softmax alone, gains half as much. Methods whose clients answer only samples that
resemble their own data (`edge-fd`) do as well without either. SCARLET's published defaults are meant for
hundreds of rounds; with its few labels per round, prior correction helps while the cache fills, and
little afterwards.

What does not work: entropy reduction, a plain mean, medians and trimmed means. The robust ones are
worst of all, since they treat what few clients know as outliers. Weighting by confidence trusts a client
that has only seen one class, since that client is confident about everything. Dawid-Skene does well at
first and no better than a majority later. Label smoothing does not help here."""
BY_ALPHA = """\
How much the pair gains depends on how skewed the partition is (at `small`): the less skew, the smaller
the gain. With other tasks and more rounds a small lead can be reversed, so `doctor` advises the pair
only for a skew of 0.55 or more."""


def page(command: str) -> str:
    """The text of docs/label-skew.md."""
    kept: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    parts = [
        made_by(command, "docs/label_skew.py"),
        "# Label skew",
        SETTING,
        FOUND,
        "## Dirichlet 0.1, full",
        "Accuracy after each of rounds 1 to 5, for each seed. Bytes are sums over both directions and all"
        " clients, without public data.",
        _arms(kept, "full", curves=True),
        "## Dirichlet 0.1, small",
        _arms(kept, "small", curves=False),
        "## By skew",
        BY_ALPHA,
        _by_alpha(kept),
        "A row is made by `python benchmarks/skew.py TRAIN.parquet --scale SCALE --alpha ALPHA --seed SEED"
        " --arms ARM`; each is kept with its command in `benchmarks/results/skew.json`.",
    ]
    return "\n\n".join(parts) + "\n"


def _arms(kept: dict[str, dict[str, Any]], scale: str, curves: bool) -> str:
    """Arms from best to worst by the first seed that they have."""
    seeds = [group for name, group in kept.items() if name.startswith(f"{scale}, alpha 0.1,")]
    arms = dict.fromkeys(arm for group in seeds for arm in group)
    rows = []
    for arm in arms:
        found = [group.get(arm) for group in seeds]
        first = next(one for one in found if one)
        shown = [_curve(one, curves) for one in found]
        rows.append((first["accuracy"][-1], (f"`{arm}`", *shown, format_bytes(first["bytes"]))))
    rows.sort(key=lambda row: -row[0])
    heads = ("arm", *(f"seed {number}" for number in range(len(seeds))), "bytes")
    return table(heads, [row for _, row in rows])


def _curve(found: dict[str, Any] | None, whole: bool) -> str:
    if found is None:
        return "-"
    values = [f"{100 * value:.1f}" for value in found["accuracy"]]
    return " ".join(values) if whole else values[-1]


def _by_alpha(kept: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, group in kept.items():
        asked = re.fullmatch(r"small, alpha ([\d.]+), seed (\d+)", name)
        arms = ("cross-entropy/era", "balanced/prior-3")
        if asked and all(arm in group for arm in arms):
            before, after = (100 * group[arm]["accuracy"][-1] for arm in arms)
            skew = group[arms[0]]["label_skew"]
            gain = f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}"
            rows.append((-skew, (asked[1], asked[2], f"{skew:.2f}", *gain)))
    heads = ("Dirichlet", "seed", "skew", "`dsfl` as it is", "with the pair", "gain")
    return table(heads, [cells for _, cells in sorted(rows)])
