"""Makes docs/training.md, with tables of settings from the classes that read them; for `docs/generate.py`."""

from collections.abc import Callable

from pydantic import BaseModel
from writing import made_by

from fedistill.config.schedules import Constant, Cosine, Step
from fedistill.config.training import Augment, EarlyStopping, NotTrue, Train, TrainOptimizer

INTRODUCTION = """\
How models are trained on labels is set in `[train]`, for all arms, and in the `train` of an arm, which
takes over what it leaves out. Every method that trains obeys every setting here, in one process, in
worker processes, on Flower and resumed, with the same bits; what cannot be obeyed is refused before
round 1."""
EXAMPLE = """\
```toml title="training.toml"
rounds = 3

[task]
name = "digits"
clients = 3
limit = 300
public = 60

[models]
clients = ["cnn-s"]
server = "cnn-s"

[train]
epochs = 3
optimizer = { name = "sgd", lr = 0.05, momentum = 0.9 }

[[arms]]
name = "plain"
method = "fedavg"

[[arms]]
name = "cosine"
method = "fedavg"
train = { optimizer = { nesterov = true, clip_norm = 5.0, schedule = "cosine(warm_up=1)" } }

[[arms]]
name = "adamw"
method = "fedavg"
train = { optimizer = { name = "adamw", lr = 0.003, decay = "matrices" } }

[[arms]]
name = "augmented"
method = "fedavg"
train = { augment = { crop = 1 } }

[[arms]]
name = "stopped"
method = "fedavg"
train = { epochs = 10, early_stopping = { share = 0.1, patience = 2 } }

[[arms]]
name = "own"
method = "fedavg"
train = { optimizer = { name = "my_training:rmsprop", lr = 0.001 }, loss = "my_training:focal" }
```

```python title="my_training.py"
import torch
from torch.nn.functional import cross_entropy


def rmsprop(parameters, lr):
    return torch.optim.RMSprop(parameters, lr=lr, momentum=0.5)


def focal(logits, labels):
    loss = cross_entropy(logits, labels, reduction="none")
    return (1 - torch.exp(-loss)) ** 2 * loss
```

```console
$ fedistill compare training.toml --out runs/training
```"""
OPTIMIZERS = """\
An arm that names another optimizer takes over none of the first one's settings, schedule and all.
Momentum and Adam's moments last from round to round where a method keeps the client's model; where the
model comes from the server, each round begins with a fresh optimizer, as in FedAvg.

Your own optimizer is `module:function`, called as `function(parameters, lr=lr)`, so that classes of
torch work as they are: `"torch.optim:RMSprop"`. It must keep what it remembers in its `state`; two
steps with and without saving in between are compared before round 1. Its learning rates follow `lr` and
the schedule, in the proportions that the function gives its groups. `weight_decay`, `decay` and
`momentum` belong into the function; `clip_norm` is for all optimizers. A site of a Flower network must
allow the module, as any other.

Where a client trains two models at once (`fml`, `fedkd`, `fedekd-like`), `clip_norm` bounds the
gradient of both together. Optimizers that belong to a method's own settings, such as that of `feddf`'s
distillation, have all of this except a schedule."""
SCHEDULES = """\
The factor on `lr` follows from the number of the round or step alone. Let *t* be that number, from 0,
after a warm-up of *w*, and *T* how many there are after it. During the warm-up the factor of round or
step *i* is (*i* + 1) / (*w* + 1); then it is

- `constant`: 1, which is of use with a warm-up;
- `cosine`: `final` + (1 - `final`) (1 + cos(π *t* / *T*)) / 2;
- `step`: `falls_to` to the power of ⌊*t* / `every`⌋.

A schedule over rounds counts the rounds of the run: a client that was away comes back at the rate of
the round that it comes back in, and one that makes up for rounds without an exchange (`accumulate`)
trains at the rate of the round of the exchange. A schedule over steps starts
from its beginning in each local
training and each distillation by this optimizer, and its length is the largest number of steps there;
early stopping does not shorten it. Starts that all clients make alike from labels (`bridge`, students
of statistics) have a schedule of their own, half a cosine over steps from the full rate, since a client
may make its own in a later round.

`fedistill tune` varies the schedule if it is asked to: `--vary 'train.optimizer.schedule=["cosine",
"cosine(warm_up=2)"]'`."""
STOPPING = """\
The samples to keep from training are drawn once for a client, by its stream of random numbers, and are
the same in all rounds. After each epoch their mean loss is taken, in evaluation mode and without
augmentation: of the loss on labels alone, without the terms of a method; of two models at once, the
sum. Training goes back to model and optimizer after the best epoch, to the bit as if it had had no
other. The model that a round begins with does not count as an epoch: a client always sends something
that it has learned. With `steps`, the loss is taken after each pass over the samples and at the end.

A client for which fewer than 5 samples would be held out trains to the end on all; `doctor` and every
run name those clients before round 1, and warn of a training of one epoch, which cannot be ended. The
passes over what is held out are in the counted multiply-adds, and the copy of the best epoch in the
memory ([what it costs a client](client-cost.md)). `server-alone` holds out a part of its public set.
Message weights, class counts, prototypes and statistics are still those of all samples of a client."""
LOSSES = """\
Your own loss is `module:function` of logits, float32 (n, C), and labels, int64 (n,). It returns a
scalar, or one value for each sample, of which the mean is taken; before round 1 it is tried with 3
samples and with 1, and must have a finite gradient. It takes the place of cross-entropy in training on
private labels and in `server-alone`. Losses between models (distillation, generated features, the net
of `fedgkt`'s server) stay those of the method. `label_smoothing` is for the losses that are built in."""
AUGMENTATION = """\
A batch is changed as a whole, by a stream of random numbers of the client and the round, whenever a
model is trained on labels. Images are flipped, then cropped, then erased; black is 0. A word that is
taken out leaves no gap, and where a text would lose all of its words, it
keeps them; special tokens of a
tokenizer of your own are words here. Distillation takes public samples as they are, and so does all
prediction: logits, features and labels that a method sends are of unchanged samples, except the mean
outputs of `fd`, which come from the training itself. With `not_true`, the model's first outputs are of
unchanged samples too.

Erasing is random erasing (Zhong et al., [arXiv 1708.04896](https://arxiv.org/abs/1708.04896)) with
black in place of noise: a rectangle of 2 % to a third of the image, its sides in a ratio of 0.3 to 3.3.

What it costs on one core, for a batch of 32 images (`python benchmarks/augmentation.py`, fastest of 60; a
machine that does other work has slower steps, and smaller shares):

| images | step of `cnn-s` | flip | crop | erase | all three |
| --- | ---: | ---: | ---: | ---: | ---: |
| 28 by 28, grey | 2.47 ms | 0.03 ms (1 %) | 0.11 ms (4 %) | 0.10 ms (4 %) | 0.24 ms (10 %) |
| 32 by 32, colour | 3.17 ms | 0.07 ms (2 %) | 0.28 ms (9 %) | 0.15 ms (5 %) | 0.59 ms (19 %) |

Dropping words takes 0.03 ms for 16 texts of 64 words: 14 % of a step of `bag`, a thousandth of one of
`textcnn`."""
START = """\
`models.start` names a saved model: its folder ([saved models](saved-models.md)), that of an arm's models
or of a run with one model at the server, or a safetensors file with PyTorch's names. It may differ between
arms. Paths are relative to the experiment file.

```toml title="again.toml"
rounds = 2

[task]
name = "digits"
clients = 3
limit = 300

[models]
clients = ["cnn-s"]
server = "cnn-s"
start = "runs/training/models/cosine"

[[arms]]
method = "fedavg"
```

```console
$ fedistill compare again.toml --out runs/again
```

The server's model starts from it, and so do models that travel and those that all clients build alike,
if names and shapes of their weights are those of the file; frozen parameters must have the same values.
Models that clients keep for themselves are drawn as ever. If no model of an arm fits, the run is
refused with the first difference; a method that has no use for a start says so in `doctor`.

Bytes. A drawn start costs nothing, since everybody draws it from the seed. A saved one has to come to
clients:

- where the server sends its weights in full, as `fedavg` does in fp32, it comes in the first message
  and is counted there, as ever;
- where clients must hold it before round 1, it is counted as set-up, 4 bytes per weight for each client
  whose model it is: if all clients build their models alike (`random-mask`, `bridge`, `tally-like`,
  `cfd`, `fedgkt`, `fedgen` with `share = "predictor"`), or if the codec of the downlink codes
  differences to it (`stc`, `top-k`, `qsgd`, ...);
- else it stays at the server, and costs nothing.

On a Flower network nothing but messages is sent: each site must have the file under the same path, as
it has the public data. The run keeps the file's digest (`start_digest`): a
site, and `resume`, refuse another file."""

MEASURED = """\
None of this is better everywhere. On digits (`limit = 500`, 5 clients, Dirichlet 0.5, `fedavg` with `cnn-s`,
10 rounds of 4 epochs in batches of 32, SGD with `lr = 0.05, momentum = 0.9`), with `seeds = 3`:

| `train` of the arm | server@global after round 10 | multiply-adds of a client |
| --- | ---: | ---: |
| as above | 94.4 % ± 0.8 | 974 M |
| `optimizer = { schedule = "cosine" }` | 93.4 % ± 1.0 | 974 M |
| `augment = { crop = 1 }` | 90.3 % ± 1.2 | 974 M |
| `early_stopping = { share = 0.1, patience = 1 }` | 92.5 % ± 1.9 | 716 M |

None gains here, and early stopping saves a quarter of the work for two points. Settings were not tuned. Try
them on held-out training data (`fedistill tune`) before you believe in any."""


def page(command: str, settings: Callable[[type[BaseModel]], str]) -> str:
    """The text of docs/training.md; ``settings`` makes the table of a class."""
    parts = [
        made_by(command, "docs/training_page.py, or the settings in src/fedistill/config/"),
        "# Training",
        INTRODUCTION,
        EXAMPLE,
        "## Settings of `train`",
        settings(Train),
        "`not_true` has:",
        settings(NotTrue),
        "## Optimizers",
        "`train.optimizer` has:",
        settings(TrainOptimizer),
        OPTIMIZERS,
        "## Schedules of the learning rate",
        "A name, a short spelling such as `cosine(warm_up=3)`, or a table. All have:",
        settings(Constant),
        "`cosine` and `step` have besides:",
        settings(Cosine),
        settings(Step),
        SCHEDULES,
        "## Early stopping",
        settings(EarlyStopping),
        STOPPING,
        "## Losses",
        LOSSES,
        "## Augmentation",
        settings(Augment),
        AUGMENTATION,
        "## A saved model to start from",
        START,
        "## Measured",
        MEASURED,
    ]
    return "\n\n".join(parts) + "\n"
