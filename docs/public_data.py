"""Makes docs/public-data.md from what benchmarks/public_data.py has measured; for `docs/generate.py`."""

import json
from pathlib import Path
from typing import Any

from writing import made_by, table

from fedistill.config.units import format_bytes

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "public-data.json"
TARGETS = (0.70, 0.75, 0.78, 0.80, 0.82)

WRITE = """\
Methods that label public samples need the same samples at the server and at every client. If the clients do
not have them already, somebody has to send them, and a plain copy of 2,000 small images for each of ten
clients costs more than all rounds. In `[task]`, `public` says which samples they are and what is sent:"""
KIND_HEADS = ("`public =`", "samples", "what is sent to each client (`bytes_public`)")
KINDS = (
    ("2000", "2,000 that are held out of the training data", "the images, as a Parquet file"),
    ('{ name = "mnist", samples = 2000 }', "2,000 of another data set", "the images, as a Parquet file"),
    (
        "{ samples = 200, quality = 0 }",
        "200 that are held out, as they look after WebP of this quality, 0 to 100",
        "one WebP file of all",
    ),
    (
        "{ samples = 2000, images = 20, quality = 0 }",
        "2,000 that both ends make of 20",
        "one WebP file of the 20",
    ),
    ("{ samples = 2000, images = 0 }", "2,000 that both ends draw", "nothing"),
)
HOW = """\
All but the number go together with `name` or `format` and `train`, except `images = 0`, which needs no data.

**Made.** A few images make any number of others: a view of one (mirrored or not, zoomed by up to a
quarter, slanted and moved a little), a mixture of two views, or one view beside another, cut along a line.
Every other image is seen through one to six random shapes, and is black elsewhere.

**Drawn.** One to six ellipses, rectangles and diamonds on black, in one colour or with a smooth texture; half
of the images are mirrored onto themselves.

What is made or drawn follows from the seed of the experiment. Only whole numbers are drawn and computed
with, so all machines make the same images to the last bit.

Made and drawn samples have no labels, so the control `server-alone` cannot use them. Texts are not made.
`bytes_public` of an arm in results.json is what is sent to all clients together; with `bytes_total` it makes
everything that crosses. Methods that use public samples at the server alone are charged nothing for them."""
SETTING = """\
Fashion-MNIST: 10 clients with skewed shares of 10,000 images (Dirichlet 0.3), all of them with cnn-s, as
the server has. Arms have the settings of [what an accuracy costs](flagship.md), each tuned by as many
trials on this task with real public images (`benchmarks/results/flagship-images.toml`); none is tuned for
images that are made or drawn. A cell has the bytes of everything, public data included, both directions and
all clients, until the server's model first reaches the accuracy on 3,000 training images that no client
has. The test set is not read. `made of 20` are 2,000 samples, made of 20 images; WebP has quality 0."""
FOUND = """\
**Drawn samples cost nothing, and are among the cheapest ways to 75 %.** With everything counted, `bridge`
with samples that both ends draw has 75 % for 8.4 kB and 80 % for 15.5 kB on seed 0, and for 11.7 and 23.3
kB on seed 1; `random-mask`, which needs no public data, for 9.7 and 15.6 kB (seed 0). From 82 % on
`random-mask` is ahead. Coded FedAvg is three times as dear at 80 %, statistics likewise, and these stop
there. What clients retain on odd images holds them back from 78 to 82 %: before `bridge` retained anything,
it had 80 % for 11.6 kB on seed 0 and for 18.9 kB on seed 1, and `retain = 0` leaves it out.

**`voting` on drawn samples has 72 % for 3.2 kB**, the least of all, and gets no further than 77 %: its
clients and its server keep learning from labels of odd images, where `bridge` goes over to weights.

**A few real images give a better start, and are not worth their bytes.** Samples made of 20 images begin
with 71 % where drawn ones have 63 % (seed 0), but the 7.6 kB of the images buy more in merges of weights. A
plain copy of 2,000 images for each client costs 8.6 MB in all, a thousand times what the rounds cost. As
many as fit into 21 kB for ten clients, 60 images small and lossy (WebP of quality 0), are too few to label:
`voting` stops at 67 %, and `bridge` has 75 % for 28.6 kB and 82 % for 43.6, images counted (seed 0).

**What limits it: the class alone says too little about an odd image.** In a trial outside of the library, a
model trained on the shares of the experts' votes, not on the class with most of them, was at 79.0 % in
place of 71.5 % (made of 20, seed 0); with shares rounded to thirds, at 77.5 % there, and with drawn samples
at 74.6 % in place of 68.3 % (seed 1: 72.4 and 65.7 %). With real images it was
the other way round. `bridge` sends classes.

What was tried and left out: samples from Gaussian mixtures of the public images' low frequencies, 12 points
below real images with labels of one good model; images of handwritten digits; crops of photographs, which
become useful inside of shapes; AVIF, JPEG and a cosine transform with the range coder, all longer than WebP
at the same error. Shapes are on black, as Fashion-MNIST is: they were tried with no other data. All this
was chosen on seed 0, by models trained on labels of one model that had all private images, and measured on
another draw of training images than that of the table."""
MADE = """\
A row is made by `python benchmarks/public_data.py TRAIN.parquet --seed SEED --ways WAY --arms ARM`; each is
kept with its command in `benchmarks/results/public-data.json`."""


def page(command: str) -> str:
    """The text of docs/public-data.md."""
    kept: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    kinds = table(KIND_HEADS, [(f"`{public}`", samples, sent) for public, samples, sent in KINDS])
    parts = [made_by(command, "docs/public_data.py"), "# Public data", WRITE, kinds, HOW]
    parts += ["## What it brings", SETTING]
    for seed, rows in kept.items():
        parts += [f"### {seed.capitalize()}", _costs(rows)]
    parts += ["## What was found", FOUND, MADE]
    return "\n\n".join(parts) + "\n"


def _costs(rows: dict[str, Any]) -> str:
    """A row for each arm and public set, arms together, each arm's cheapest set last."""
    heads = ("arm", "public data", "their bytes", *(f"{target:.0%}" for target in TARGETS), "last", "bytes")
    return table(heads, [_cells(name, row) for name, row in sorted(rows.items(), key=_place)])


def _place(item: tuple[str, dict[str, Any]]) -> tuple[str, int]:
    name, row = item
    return name.split("/")[1], -row["public"]


def _cells(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    (way, arm), public, points = name.split("/"), row["public"], row["curve"]
    costs = []
    for target in TARGETS:
        sent = next((sent for sent, reached in points if reached >= target), None)
        costs.append("-" if sent is None else format_bytes(sent + public))
    last, accuracy = points[-1]
    return f"`{arm}`", way, format_bytes(public), *costs, f"{accuracy:.1%}", format_bytes(last + public)
