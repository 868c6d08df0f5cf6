"""Distillation losses: how a student follows what others know."""

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax


def soft_cross_entropy(logits: Tensor, probs: Tensor) -> Tensor:
    """Mean of ``-sum_c q_c log p_c`` over a batch; logits and target probabilities are (b, C)."""
    return -(probs * log_softmax(logits, dim=1)).sum(dim=1).mean()


def kl(logits: Tensor, probs: Tensor) -> Tensor:
    """Mean KL divergence from targets (b, C) to the softmax of logits (b, C), in nats."""
    return kl_div(log_softmax(logits, dim=1), probs, reduction="batchmean")


def logit_mae(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute error between logits, both (b, C) (FedMD's published code)."""
    return torch.nn.functional.l1_loss(logits, targets)
