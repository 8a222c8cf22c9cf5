"""Where torch cannot look into a hand-written Function, and what is done there instead.

- torch.jit.trace and ONNX export save torch's own operators: with tanh or relu the module runs as torch.nn.RNN.
- torch.nn.utils' per-sample gradients (ExpandedWeights) know torch.nn.RNN's operator and no other: the same.
- torch.fx.symbolic_trace looks into every module that is not torch.nn's: the module becomes a leaf by itself.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.utils._pytree import tree_leaves

from manual_bptt.transforms import are_expanded, is_tracing


def wanted(weights: Sequence[Tensor]) -> bool:
    """Whether torch's own operator has to run."""
    return is_tracing() or are_expanded(weights) or (torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export())


def leaf(module: nn.Module, input: Any, hx: Any, lengths: Any = None) -> Any:
    """What a tracer of torch.fx puts in the place of a call of the module, or None where none looks on."""
    if type(input) is Tensor and (hx is None or type(hx) is Tensor) and lengths is None:
        return None
    args, kwargs = (input, hx), {} if lengths is None else {"lengths": lengths}
    tracer: Any = next((value.tracer for value in tree_leaves((args, kwargs)) if isinstance(value, Proxy)), None)
    if tracer is None or tracer.root is module:
        return None
    return tracer.create_proxy("call_module", tracer.path_of_module(module), args, kwargs)
