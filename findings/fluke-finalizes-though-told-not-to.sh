#!/usr/bin/env bash
# fluke-fl 0.8.1: `algorithm.run(rounds, share, finalize=False)` ends like one with `finalize=True`: the server sends
# its model once more, to every client that has ever taken part, and each client is finalized.
#
# The argument is documented, and nothing reads it. So a run that is played in pieces, as for timing or from a loop of
# one's own, ends after each piece: what crosses is counted too high by a model for each client that has taken part
# so far, and clients are evaluated in between where that is set.
#
# Seen, and held here: one round with two clients, who both take part. Models that cross: two down, two up, and two
# at the end, with either value.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "torch==2.13.0" "torchvision==0.28.0" "fluke-fl==0.8.1"

cat >piece.py <<'PY'
import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:  # built for CUDA, beside a torch for the CPU alone; none of its operators is used here
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")

from fluke import DDict, FlukeENV
from fluke.algorithms.fedavg import FedAVG
from fluke.comm import ChannelObserver
from fluke.data import DataSplitter, DummyDataContainer, FastDataLoader
from torch import nn


class Models(ChannelObserver):
    crossed = 0

    def message_received(self, by, message):
        self.crossed += message.msg_type == "model"


def piece(**options):
    environment = FlukeENV()
    environment.set_seed(0)
    environment.set_device("cpu")
    environment.set_inmemory(True)
    environment.set_eval_cfg(pre_fit=False, post_fit=False, locals=False, server=False)
    data = torch.randn(8, 4), torch.arange(8) % 2
    loaders = [FastDataLoader(*data, num_labels=2, batch_size=4) for _ in range(2)]
    client = DDict(
        batch_size=4,
        local_epochs=1,
        loss="CrossEntropyLoss",
        optimizer=DDict(name="SGD", lr=0.1),
        scheduler=DDict(name="StepLR", step_size=1, gamma=1.0),
    )
    algorithm = FedAVG(
        n_clients=2,
        data_splitter=DataSplitter(DummyDataContainer(loaders, [None, None], None, num_classes=2)),
        hyper_params=DDict(model=nn.Linear(4, 2), client=client, server=DDict(weighted=True)),
    )
    finalized = []
    for one in algorithm.clients:
        one.finalize = lambda end=one.finalize: (finalized.append(True), end())
    models = Models()
    algorithm.server.channel.attach(models)
    algorithm.run(1, 1.0, **options)
    return models.crossed, len(finalized)


found = {text: piece(**options) for text, options in (("default", {}), ("finalize=False", {"finalize": False}))}
for text, (crossed, finalized) in found.items():
    print(f"{text}: {crossed} models crossed, {finalized} clients finalized")
assert set(found.values()) == {(6, 2)}, found
PY
venv/bin/python piece.py 2>/dev/null
