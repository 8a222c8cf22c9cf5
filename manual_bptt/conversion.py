"""Turn torch.nn's recurrent modules into the hand-written ones and back, inside any model.

A module keeps its identity and all that it holds: only its class changes.
"""

import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from manual_bptt import modules

Model = TypeVar("Model", bound=nn.Module)

_HAND_WRITTEN: dict[type[nn.Module], type[nn.Module]] = {nn.RNN: modules.RNN, nn.RNNCell: modules.RNNCell}
_OF_TORCH = {hand_written: of_torch for of_torch, hand_written in _HAND_WRITTEN.items()}


def convert(model: Model) -> Model:
    """Turn every torch.nn.RNN and torch.nn.RNNCell of a model into the hand-written one, in place.

    Weights, hooks, parametrizations, device, dtype and training mode stay, and so does each module's identity. A class
    that somebody derived from torch.nn.RNN has a forward of its own and is left alone, with a warning.

    Args:
        model: Any module; it may be a torch.nn.RNN itself.

    Returns:
        The same object.

    Raises:
        TypeError: model is no torch.nn.Module.
        ValueError: A torch.nn.RNN has a proj_size. Nothing has been changed then.
    """
    found = _found("convert", model, _HAND_WRITTEN)
    for name, module in found.items():
        if getattr(module, "proj_size", 0) != 0:
            raise ValueError(f"convert: expected proj_size = 0 in {name}, got {module.proj_size}")
    _warn_of_subclasses("convert", model, tuple(_HAND_WRITTEN), done=tuple(_OF_TORCH))
    for module in found.values():
        _change_class(module, _HAND_WRITTEN)
        module.__dict__.pop("_flat_weights", None)  # torch's second list of the weights: a property of the new class
    return model


def restore(model: Model) -> Model:
    """Undo `convert`: turn every manual_bptt.RNN and manual_bptt.RNNCell of a model into torch.nn's, in place.

    Args:
        model: Any module; it may be a manual_bptt.RNN itself.

    Returns:
        The same object.

    Raises:
        TypeError: model is no torch.nn.Module.
        ValueError: A module has a nonlinearity that torch.nn does not know, or a truncation. Nothing has been changed
            then.
    """
    found = _found("restore", model, _OF_TORCH)
    for name, module in found.items():
        if module.nonlinearity not in modules.OF_TORCH:
            known = " or ".join(map(repr, modules.OF_TORCH))
            raise ValueError(f"restore: expected {known} as nonlinearity of {name}, got {module.nonlinearity!r}")
        truncation = getattr(module, "truncation", None)
        if truncation is not None and not truncation.is_full:
            raise ValueError(f"restore: expected no truncation in {name}, got {truncation}")
    _warn_of_subclasses("restore", model, tuple(_OF_TORCH))
    for module in found.values():
        for name in ("truncation", "checkpoint_every"):
            module.__dict__.pop(name, None)
        _change_class(module, _OF_TORCH)
    return model


def _found(function: str, model: Any, classes: Mapping[type[nn.Module], type[nn.Module]]) -> dict[str, Any]:
    """The modules that are exactly of these classes, by their path."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: expected model to be a torch.nn.Module, got {type(model).__name__}")
    return {name or "the model": module for name, module in model.named_modules() if _class(module) in classes}


def _class(module: nn.Module) -> type[nn.Module]:
    """The class of a module; a parametrization has put one of its own before it."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _warn_of_subclasses(
    function: str, model: nn.Module, classes: tuple[type[nn.Module], ...], done: tuple[type[nn.Module], ...] = ()
) -> None:
    for name, module in model.named_modules():
        cls = _class(module)
        if isinstance(module, classes) and cls not in classes and not issubclass(cls, done):
            where = f"{name} ({cls.__name__})" if name else cls.__name__
            warnings.warn(f"{function}: {where} is a class of its own and left as it is", stacklevel=3)


def _change_class(module: Any, classes: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    target = classes[_class(module)]
    if parametrize.is_parametrized(module):  # its class holds a property for each parametrized weight
        own = {name: value for name, value in vars(type(module)).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(f"Parametrized{target.__name__}", (target,), own)
    else:
        module.__class__ = target
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()
