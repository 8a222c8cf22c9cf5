"""The same network with no hand-written derivative, to hold gradients against; public names, nothing else.

A gradient comes from autograd, on a plain loop or on `torch.nn.RNN`; from complex steps or central
differences in NumPy; or, for the linear network, from its published closed form. `check` and `assert_gradients` hold
somebody's own backward pass against them and say what is wrong with it.
"""

from torch_reference.checking import assert_gradients, check
from torch_reference.conventions import CONVENTIONS, Calls, Convention
from torch_reference.gradients import gradients
from torch_reference.network import TorchNetwork, Unrolled, sequence_loss, unrolled
from torch_reference.numerical import central_difference, complex_step, linear_closed_form

__all__ = [
    "CONVENTIONS",
    "Calls",
    "Convention",
    "TorchNetwork",
    "Unrolled",
    "assert_gradients",
    "central_difference",
    "check",
    "complex_step",
    "gradients",
    "linear_closed_form",
    "sequence_loss",
    "unrolled",
]
