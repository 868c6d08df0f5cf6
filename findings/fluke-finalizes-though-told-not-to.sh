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
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
# What fluke imports for this, without the dependencies that it does not, such as a torch for another machine.
venv/bin/pip install --quiet --disable-pip-version-check --no-deps fluke-fl==0.8.1 torchvision==0.28.0 \
    antlr4-python3-runtime==4.9.3 attrs==26.1.0 cerberus==1.3.8 charset-normalizer==3.5.3 cloudpickle==3.1.3 \
    cycler==0.12.1 dill==0.4.1 diskcache==5.6.3 fonttools==4.68.0 joblib==1.6.0 kiwisolver==1.5.1 \
    lightning-utilities==0.15.3 matplotlib==3.11.2 narwhals==2.29.0 numpy==2.4.6 omegaconf==2.3.1 \
    packaging==26.4 pandas==3.1.1 pillow==13.0.0 psutil==7.2.2 pyarrow==26.0.1 pyparsing==3.3.3 \
    python-dateutil==4.0.0 pyyaml==6.0.4 rich==15.0.0 scikit-learn==1.9.1 scipy==1.17.1 seaborn==0.13.2 \
    setuptools==84.2.1 threadpoolctl==3.8.0 torchmetrics==1.9.0 tqdm==4.70.1

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
