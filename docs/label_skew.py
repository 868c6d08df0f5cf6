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
labels of an experiment are, from 0 (even) towards 1 (disjoint), and advises the two settings below
if they are strongly skewed and the method pools labels.

All figures are for Fashion-MNIST: 10 clients with 5,000 images in all, 1,000 public ones, mlp-s at
clients and server, batches of 32, SGD with momentum 0.9. Accuracy is measured after 8 rounds on 3,000
training images that were held out; the test set is never read. Each arm is tuned by 8 trials of 3
rounds, on further training images, at Dirichlet 0.1 and seed 0: local epochs 1, 3 or 8; learning rate
0.02, a third or three times of it; epochs on the pooled labels 1 or 3. Its best settings are carried
over to the other seeds and partitions. The name of a row gives a local loss and what the server does:
pool soft labels, pool votes (`votes`), average weights (`fedavg`), or another method with its own
defaults (with `-prior`, prior-corrected labels). `prior-3` is prior-corrected pooling with sharpness 3.
Figures are the server's accuracy; for COMET, which has no server model, the clients' mean."""
FOUND = """\
What works: *balanced softmax at the clients, or prior-corrected pooling at the server*. The first keeps
a client's model from favouring its most frequent classes; the second removes what bias is left in its
answers. With one local epoch the second does nearly all (from 52 to 69 % on validation images, and the
first to 60 %); both together are at 70 %. Once each arm is tuned, which for all of them means more local
epochs, either is worth 9 to 10 points, and both are worth no more than one. FedNTD's not-true loss is no
better. Votes with the pair lose nothing against soft labels, for a four-hundredth of the bytes; with the
pair, labels end two or three points below weights, which cost five times the bytes of soft labels.
`reliability`, the defence against clients that lie, costs honest clients nothing. `edge-fd`, whose
clients answer only samples that resemble their own data, does without either.

What does not: a plain mean and entropy reduction stay 10 points behind, tuned or not. Dawid-Skene does
well at first and loses it later. The median is worst of all that pool labels, since it takes what few
clients know for outliers. What a trial of 3 rounds likes may not last: `not-true/prior-3` and `dawid-skene`
lost 6 and 14 points between the trials and the end."""
BY_ALPHA = """\
How much the pair gains depends on how skewed the partition is. Both arms keep the settings that were
tuned at Dirichlet 0.1. `doctor` advises the pair for a skew of 0.55 or more, to experiments as they are:
untuned, it gained 13 to 39 points from there on, and 1 to 20 below."""


def page(command: str) -> str:
    """The text of docs/label-skew.md."""
    kept: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    parts = [
        made_by(command, "docs/label_skew.py"),
        "# Label skew",
        SETTING,
        FOUND,
        "## Dirichlet 0.1",
        "Bytes are sums over both directions and all clients, without public data, for seed 0.",
        _arms(kept),
        "## By skew",
        BY_ALPHA,
        _by_alpha(kept),
        "A row is made by `python benchmarks/skew.py TRAIN.parquet --alpha ALPHA --seed SEED --arms ARM`;"
        " each is kept with its command in `benchmarks/results/skew.json`.",
    ]
    return "\n\n".join(parts) + "\n"


def _arms(kept: dict[str, dict[str, Any]]) -> str:
    """Arms from best to worst by the mean over seeds."""
    seeds = {name.split()[-1]: group for name, group in kept.items() if name.startswith("alpha 0.1,")}
    rows = []
    for arm, first in next(iter(seeds.values())).items():
        found = [group[arm]["accuracy"][-1] for group in seeds.values() if arm in group]
        shown = [
            f"{100 * group[arm]['accuracy'][-1]:.1f}" if arm in group else "-" for group in seeds.values()
        ]
        tuned = ", ".join(f"{key.split('.')[-1]} {value}" for key, value in first["settings"].items())
        gained = f"{100 * first['own']:.1f} → {100 * first['best']:.1f}"
        cells = f"`{arm}`", *shown, format_bytes(first["bytes"]), gained, tuned or "as before"
        rows.append((sum(found) / len(found), cells))
    rows.sort(key=lambda row: -row[0])
    heads = ("arm", *(f"seed {seed}" for seed in seeds), "bytes", "tuning", "settings")
    return table(heads, [cells for _, cells in rows])


def _by_alpha(kept: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, group in kept.items():
        asked = re.fullmatch(r"alpha ([\d.]+), seed (\d+)", name)
        arms = ("cross-entropy/era", "balanced/prior-3")
        if asked and all(arm in group for arm in arms):
            before, after = (100 * group[arm]["accuracy"][-1] for arm in arms)
            skew = group[arms[0]]["label_skew"]
            gain = f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}"
            rows.append((-skew, (asked[1], asked[2], f"{skew:.2f}", *gain)))
    heads = ("Dirichlet", "seed", "skew", "`dsfl` as it is", "with the pair", "gain")
    return table(heads, [cells for _, cells in sorted(rows)])
