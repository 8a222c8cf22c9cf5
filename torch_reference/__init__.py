"""The same network with no hand-written derivative, to hold gradients against; public names, nothing else.

A gradient comes from autograd, on a plain loop or on `torch.nn.RNN`; from complex steps or central
differences in NumPy; or, for the linear network, from its published closed form.
"""

from torch_reference.gradients import gradients
from torch_reference.network import TorchNetwork, Unrolled, sequence_loss, unrolled
from torch_reference.numerical import central_difference, complex_step, linear_closed_form

__all__ = [
    "TorchNetwork",
    "Unrolled",
    "central_difference",
    "complex_step",
    "gradients",
    "linear_closed_form",
    "sequence_loss",
    "unrolled",
]
