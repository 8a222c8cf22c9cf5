"""Back-propagation through time for vanilla recurrent networks, written out by hand. Public names, nothing else."""

from manual_bptt.functional import readout, rnn, softmax_cross_entropy, squared_error
from manual_bptt.network import BPTTResult, ElmanNetwork, bptt

__all__ = [
    "BPTTResult",
    "ElmanNetwork",
    "bptt",
    "readout",
    "rnn",
    "softmax_cross_entropy",
    "squared_error",
]
