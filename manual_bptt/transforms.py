"""Whether somebody looks at every operator: vmap, forward mode or a tracer. Kernels must not write in place then.

PyTorch has no public question for some of these; every private name that the package uses stands here.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import unwrap_if_dead
from torch._functorch.autograd_function import WrappedCtx
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import Function, forward_ad
from torch.nn.utils._expanded_weights.expanded_weights_impl import ExpandedWeight
from torch.overrides import has_torch_function
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import _CachedTorchDispatchMode, _CachingTorchDispatchMode
from torch.utils.flop_counter import _FlopCounterMode

_BATCHED = torch._C._dispatch_key_parse("Batched")  # a gradient under autograd.grad(..., is_grads_batched=True)
_keys = torch._C._dispatch_keys
_before_dispatch: Any = torch._ops._mode_stack_state_for_pre_dispatch  # 0: make_fx(pre_dispatch=True)
_transforms_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state
_PROXY = torch._C._TorchDispatchModeKey.PROXY  # make_fx, and torch.func.linearize by it


def watched(first: Tensor, *others: Tensor) -> bool:
    """Whether a transform of torch.func, a tracer, batched gradients or forward mode need operators out of place.

    Args:
        first: The gradient from above in a backward pass: batched gradients come down with it.
        others: What else the kernel reads.
    """
    return (
        is_transforming()
        or torch._C._get_dispatch_mode(_PROXY) is not None
        or _before_dispatch.get(0) is not None
        or (_dispatch_modes() > 0 and any(map(_reads, _get_current_dispatch_mode_stack())))
        or is_tracing()
        or _keys(first).has(_BATCHED)
        or (forward_ad._current_level >= 0 and any(map(_has_tangent, (first, *others))))
    )


def is_transforming() -> bool:
    """Whether a transform of torch.func looks on."""
    return _transforms_active()


def outside() -> Any:
    """A context in which transforms of torch.func do not look on."""
    return nullcontext() if torch.compiler.is_compiling() else torch._C._DisableFuncTorch()


def is_recording() -> bool:
    """Whether operators are recorded to be differentiated or saved by torch, and a Function would get lost.

    torch.jit.trace cannot save one, torch.export drops its gradient, and torch.func inside torch.compile differentiates
    it wrongly.
    """
    compiling = torch.compiler.is_compiling()
    return is_tracing() or (compiling and (is_transforming() or torch.compiler.is_exporting()))


def is_tracing() -> bool:
    """Whether torch.jit.trace looks on."""
    return _tracing_state() is not None


def is_mapped(ctx: object) -> bool:
    """Whether a Function's context is one of torch.func's; vmap's takes both modes to save the same tensors."""
    return isinstance(ctx, WrappedCtx)


def is_looked_at() -> bool:
    """Whether a transform, dispatch mode, tracer, forward mode or Dynamo looks on: then there must be operators."""
    return bool(
        torch.compiler.is_compiling()
        or _transforms_active()
        or _dispatch_modes() > 0
        or _before_dispatch.get(0) is not None
        or _tracing_state() is not None
        or forward_ad._current_level >= 0
    )


def has_forward_mode() -> bool:
    """Whether forward mode is on."""
    return bool(forward_ad._current_level >= 0)


def has_autocast() -> bool:
    """Whether autocast is on for any device."""
    return bool(torch._C._is_any_autocast_enabled())


def are_expanded(weights: Sequence[object]) -> bool:
    """Whether weights collect per-sample gradients for torch.nn.utils (call_for_per_sample_grads)."""
    return has_torch_function(weights) and any(isinstance(weight, ExpandedWeight) for weight in weights)


def _reads(mode: object) -> bool:
    """Whether a dispatch mode reads results: selective checkpointing, or a FLOP counter that knows no addmm_."""
    return isinstance(mode, (_CachingTorchDispatchMode, _CachedTorchDispatchMode, _FlopCounterMode))


def _has_tangent(value: Tensor) -> bool:
    return forward_ad.unpack_dual(value).tangent is not None  # type: ignore[no-untyped-call]


def apply(function: type[Function], *args: Any) -> Any:
    """Call function.apply(*args) without its binding of default arguments, which takes as long as several small steps.

    The rest is what apply itself does.
    """
    if is_transforming():
        return function.apply(*args)  # type: ignore[no-untyped-call]
    living = [unwrap_if_dead(each) if isinstance(each, Tensor) else each for each in args]
    plain: Any = super(Function, function)
    return plain.apply(*living)


def has_values(value: Tensor) -> bool:
    """Whether the entries of a tensor can be looked at without making anybody wait or breaking a transform."""
    real = value.device.type == "cpu" and not isinstance(value, FakeTensor)
    return real and not torch.compiler.is_compiling() and not watched(value)
