#!/usr/bin/env bash
# torch 2.13.0: `torch.utils.flop_counter` counts the weight gradient of a grouped convolution once for each group,
# and nothing at all for an LSTM or for a transformer layer in evaluation mode.
#
# Each of the two gradients of a convolution takes as many multiply-adds as its forward pass, so that backward /
# forward is 2. Of a depthwise convolution with 8 groups the counter says 9. `nn.LSTM` on a CPU, and the one
# operation that `nn.TransformerEncoderLayer` becomes in evaluation mode, have no formula, so that a model made of
# these costs 0, without a warning.
#
# Seen, and held here: 2 with one group, 9 with eight; 0 for both layers.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "torch==2.13.0" "numpy<3"

cat >count.py <<'PY'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

ratios = []
for groups in (1, 8):
    layer = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
    with FlopCounterMode(display=False) as counter:
        layer(torch.ones(1, 8, 10, 10, requires_grad=True)).sum().backward()
    counts = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    ratios.append(counts["aten.convolution_backward"] / counts["aten.convolution"])
    print(f"torch {torch.__version__}, {groups} groups: backward / forward = {ratios[-1]:g}, where 2 is right")

totals = []
for module, inputs in (
    (nn.LSTM(8, 8), torch.ones(5, 2, 8)),
    (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.ones(2, 5, 8)),
):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(inputs)
    totals.append(counter.get_total_flops())
    print(f"{type(module).__name__}: {totals[-1]} FLOPs, where more than 0 is right")
assert ratios == [2, 9] and totals == [0, 0]
PY
venv/bin/python count.py
