"""Back-propagation through time for vanilla recurrent networks, written out by hand. Public names, nothing else."""

from manual_bptt.clipping import clip_gradient_norm, clip_gradient_value
from manual_bptt.conversion import convert, restore
from manual_bptt.functional import readout, rnn, softmax_cross_entropy, squared_error
from manual_bptt.gradient_flow import GradientFlow, LayerFlow, gradient_flow
from manual_bptt.modules import RNN, RNNCell
from manual_bptt.network import BPTTResult, ElmanNetwork, bptt
from manual_bptt.recording import GradientRecord, StateGradients, record_gradients
from manual_bptt.segments import Segment, tbptt
from manual_bptt.truncation import Truncation, chunked, full, randomized, windowed
from manual_bptt.truncation_errors import TruncatedGradient, truncation_errors

__all__ = [
    "RNN",
    "BPTTResult",
    "ElmanNetwork",
    "GradientFlow",
    "GradientRecord",
    "LayerFlow",
    "RNNCell",
    "Segment",
    "StateGradients",
    "TruncatedGradient",
    "Truncation",
    "bptt",
    "chunked",
    "clip_gradient_norm",
    "clip_gradient_value",
    "convert",
    "full",
    "gradient_flow",
    "randomized",
    "readout",
    "record_gradients",
    "restore",
    "rnn",
    "softmax_cross_entropy",
    "squared_error",
    "tbptt",
    "truncation_errors",
    "windowed",
]
