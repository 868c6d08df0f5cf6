"""How many multiply-adds an operation of torch takes, from the shapes of its arguments.

Counted are matrix products, convolutions, attention and the layers of an LSTM; other recurrent layers consist
of products on the CPU, and are counted on CUDA as well. Not counted are sums, activations, normalisation,
look-ups of word vectors, distances, `nn.Bilinear` and decompositions of matrices.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

Operand = Any
"""An operation of torch, an argument or a result of one: a tensor, a number, or a list of these."""
aten = torch.ops.aten


def multiply_adds(operation: Operand, out: Operand, args: tuple[Operand, ...]) -> int:
    """Return those of an operation as a `TorchDispatchMode` sees it, with its result and its arguments."""
    # By its identity, which torch keeps as long as it runs: its hash takes longer than all the rest here.
    known = _by_identity.get(id(operation))
    if known is None:
        known = operation, _FORMULAS.get(getattr(operation, "overloadpacket", None))
        _by_identity[id(operation)] = known
    return 0 if known[1] is None else known[1](out, *args)


def _product(out: Operand, left: Tensor, right: Tensor, *rest: Operand) -> int:
    """(..., n, k) by (..., k, m)."""
    return left.numel() * right.shape[-1]


def _added_product(out: Operand, added: Tensor, left: Tensor, right: Tensor, *rest: Operand) -> int:
    return _product(out, left, right)


def _inner(out: Operand, left: Tensor, right: Tensor, *rest: Operand) -> int:
    """A matrix or a vector by a vector."""
    return left.numel()


def _added_inner(out: Operand, added: Tensor, left: Tensor, right: Tensor, *rest: Operand) -> int:
    return left.numel()


def _convolution(out: Tensor, inputs: Tensor, weight: Tensor, *rest: Operand) -> int:
    transposed: bool = rest[4]
    places = inputs if transposed else out
    return weight.numel() * places.shape[0] * prod(places.shape[2:])


def _convolution_backward(
    out: Operand, gradient: Tensor, inputs: Tensor, weight: Tensor, sizes: Operand, *rest: Operand
) -> int:
    """Each of both gradients takes what the forward pass takes.

    `torch.utils.flop_counter` multiplies that of grouped weights by the number of groups (torch 2.13).
    """
    wanted: list[bool] = rest[6]
    return _convolution(gradient, inputs, weight, None, *rest) * (wanted[0] + wanted[1])


def _attention(out: Operand, query: Tensor, key: Tensor, value: Tensor, *rest: Operand) -> int:
    return query.numel() * key.shape[-2] + prod(query.shape[:-1]) * value.shape[-2] * value.shape[-1]


def _attention_backward(
    out: Operand, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Operand
) -> int:
    """Scores are computed again; then there are gradients of values, scores, queries and keys."""
    scores, weighted = query.numel() * key.shape[-2], gradient.numel() * value.shape[-2]
    return 3 * scores + 2 * weighted


def _self_attention(tokens: Tensor) -> int:
    """Scores and weighted values of all heads, for texts (b, n, d) or a nested tensor of them."""
    texts = tokens.unbind() if tokens.is_nested else [tokens[0]] * len(tokens)
    return sum(2 * len(text) * text.numel() for text in texts)


def _fused_attention(out: Operand, *args: Operand) -> int:
    """What `nn.MultiheadAttention` becomes in evaluation mode."""
    query: Tensor = args[0]
    width: int = args[3]
    layers: list[Tensor] = [args[5], args[7]]
    return query.numel() // width * sum(map(torch.numel, layers)) + _self_attention(query)


def _fused_encoder_layer(out: Operand, *args: Operand) -> int:
    """What `nn.TransformerEncoderLayer` becomes in evaluation mode."""
    tokens: Tensor = args[0]
    width: int = args[1]
    layers: list[Tensor] = [args[3], args[5], args[14], args[16]]
    return tokens.numel() // width * sum(map(torch.numel, layers)) + _self_attention(tokens)


def _lstm(out: Operand, inputs: Tensor, of_inputs: Tensor, of_hidden: Tensor, *rest: Operand) -> int:
    """A layer on inputs (steps, b, d)."""
    return inputs.shape[0] * inputs.shape[1] * (of_inputs.numel() + of_hidden.numel())


def _lstm_backward(out: Operand, inputs: Tensor, of_inputs: Tensor, of_hidden: Tensor, *rest: Operand) -> int:
    return 2 * _lstm(out, inputs, of_inputs, of_hidden)


def _recurrent(out: Operand, inputs: Tensor, weights: list[Tensor], *rest: Operand) -> int:
    """All layers of any kind, by cuDNN, on inputs (steps, b, d) or (b, steps, d); vectors are biases."""
    return inputs.shape[0] * inputs.shape[1] * sum(one.numel() for one in weights if one.dim() == 2)


def _recurrent_backward(out: Operand, inputs: Tensor, weights: list[Tensor], *rest: Operand) -> int:
    return 2 * _recurrent(out, inputs, weights)


_FORMULAS: dict[Operand, Callable[..., int]] = {
    aten.mm: _product,
    aten.bmm: _product,
    aten.addmm: _added_product,
    aten.baddbmm: _added_product,
    aten.mv: _inner,
    aten.dot: _inner,
    aten.addmv: _added_inner,
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten._scaled_dot_product_flash_attention: _attention,
    aten._scaled_dot_product_flash_attention_backward: _attention_backward,
    aten._scaled_dot_product_efficient_attention: _attention,
    aten._scaled_dot_product_efficient_attention_backward: _attention_backward,
    aten._scaled_dot_product_cudnn_attention: _attention,
    aten._scaled_dot_product_cudnn_attention_backward: _attention_backward,
    aten._native_multi_head_attention: _fused_attention,
    aten._transformer_encoder_layer_fwd: _fused_encoder_layer,
    aten.mkldnn_rnn_layer: _lstm,
    aten.mkldnn_rnn_layer_backward: _lstm_backward,
    aten._cudnn_rnn: _recurrent,
    aten._cudnn_rnn_backward: _recurrent_backward,
}
"""Multiply-adds of an operation, from its result and its arguments."""

_by_identity: dict[int, tuple[Operand, Callable[..., int] | None]] = {}
"""Operations that have been seen, each of which is held, with their formulas."""
