"""torch.utils.flop_counter counts the weight gradient of a grouped convolution once for each group.

    python findings/torch-flop-counter-multiplies-grouped-convolutions.py

Each gradient of a convolution takes as many multiply-adds as its forward pass. For 8 groups, torch 2.13
counts nine times the forward pass for both together in place of twice. It also misses attention and LSTM
layers on the CPU, and the single operation that `nn.TransformerEncoderLayer` becomes in evaluation mode. So
`fedistill.training.multiply_adds` has formulas of its own.
"""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

layer = nn.Conv2d(8, 8, 3, padding=1, groups=8)
with FlopCounterMode(display=False) as counter:
    layer(torch.ones(1, 8, 10, 10, requires_grad=True)).sum().backward()
counts = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
forward, backward = counts["aten.convolution"], counts["aten.convolution_backward"]
print(f"torch {torch.__version__}: backward / forward = {backward / forward:g}, expected 2")

layers: list[tuple[nn.Module, torch.Tensor]] = [
    (nn.LSTM(8, 8), torch.ones(5, 2, 8)),
    (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.ones(2, 5, 8)),
]
for module, inputs in layers:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(inputs)
    print(f"{type(module).__name__}: {counter.get_total_flops()} FLOPs, expected more than 0")
