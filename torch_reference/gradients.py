"""Every gradient and every intermediate, by autograd alone; network and loss are network.py's."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, islice

import torch
from torch import Tensor

from torch_reference.network import TorchNetwork, sequence_loss, unrolled


@torch.enable_grad()
def gradients(
    parameters: Mapping[str, Tensor],
    x: Tensor,
    targets: Tensor,
    h0: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    loss: str = "cross_entropy",
    time: str = "sum",
    batch: str = "sum",
    ignore_index: int = -100,
    network: str = "unrolled",
) -> dict[str, Tensor]:
    """Differentiate the loss of a whole sequence by autograd.

    The caller's tensors are copied first: their graphs, `requires_grad` and `.grad` stay as they are.

    Args:
        parameters: U (H, D), W (H, H), V (K, H) and, where used, b (H,) and c (K,).
        x: (T, B, D), or int64 tokens (T, B) where the network is "unrolled".
        targets: as in `sequence_loss`.
        h0: (B, H); None means zeros.
        nonlinearity: "tanh", "sigmoid", "relu" or "identity"; "tanh" or "relu" for "nn.RNN".
        loss: "cross_entropy" or "squared_error".
        time: "sum", "mean" or "last".
        batch: "sum" or "mean".
        ignore_index: class index of a step that does not count.
        network: "unrolled", the plain loop, or "nn.RNN", torch's own implementation.

    Returns:
        Detached tensors of the parameters' dtype: loss; h (T, B, H); o and y_hat (T, B, K), y_hat being
        softmax(o), or o for "squared_error"; do (T, B, K); dU, dW, dV; dh0, for h0=None at the zeros; and
        db, dc, dx where b, c and a float x were given. "unrolled" adds a, dh and da (T, B, H); dh and da are
        the total derivatives dL/dh_t and dL/da_t: every path counts, those through later steps too.

    Raises:
        ValueError: if a name is unknown, or if "nn.RNN" is asked for what it does not have.
    """
    if network not in ("unrolled", "nn.RNN"):
        raise ValueError(f"gradients: expected network to be one of 'unrolled', 'nn.RNN', got {network!r}")
    x = _leaf(x) if x.is_floating_point() else x
    h0 = _leaf(parameters["U"].new_zeros(x.shape[1], parameters["U"].shape[0]) if h0 is None else h0)

    if network == "unrolled":
        leaves = {name: _leaf(parameters[name]) for name in "UWVbc" if name in parameters}
        steps = unrolled(leaves, x, h0, nonlinearity)
        h, o = torch.stack(steps.h), torch.stack(steps.o)
        result = {"a": torch.stack(steps.a), "h": h, "o": o}
        wrt = {"do": [o], "dh": steps.h, "da": steps.a}
    else:
        module = TorchNetwork.from_parameters(parameters, nonlinearity)
        leaves = dict(module.named_by_equation())
        o, h = module(x, h0)
        result = {"h": h, "o": o}
        wrt = {"do": [o]}
    result["y_hat"] = o.softmax(-1) if loss == "cross_entropy" else o
    result["loss"] = sequence_loss(o, targets, loss=loss, time=time, batch=batch, ignore_index=ignore_index)

    wrt |= {"d" + name: [leaf] for name, leaf in leaves.items()}
    wrt |= {"dx": [x], "dh0": [h0]} if x.is_floating_point() else {"dh0": [h0]}
    # materialize_grads: zeros where the loss does not depend on a tensor
    found = iter(torch.autograd.grad(result["loss"], [*chain(*wrt.values())], materialize_grads=True))
    for name, tensors in wrt.items():
        slopes = list(islice(found, len(tensors)))
        result[name] = torch.stack(slopes) if name in ("dh", "da") else slopes[0]
    return {name: tensor.detach() for name, tensor in result.items()}


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()
