"""A model that reads text: embedding or one-hot vectors, a recurrence, an output layer. By hand, or torch's own twin.

The twin, engine "nn.RNN", has the same parameters and computes the same with torch.nn.RNN, torch.nn.functional.linear
and cross_entropy: nothing in it is written by hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from manual_bptt.functional import readout, softmax_cross_entropy
from manual_bptt.modules import RNN

ENGINES = ("hand", "nn.RNN")


@dataclass(frozen=True)
class Shape:
    """What a model is made of; plain numbers and names, as a model file keeps them.

    Attributes:
        entries: How many numbers a text may hold.
        outputs: K, the classes, or the characters that may follow.
        embedding: Length of the vectors that the recurrence reads; 0: one-hot vectors.
        hidden: H.
        layers: Recurrences on top of one another.
        bidirectional: Whether they also run from the end; only where a text has one label.
        nonlinearity: f.
        dropout: Probability of an entry of what the recurrence reads and of its last state to be zeroed in training.
        engine: "hand" or "nn.RNN".
        dtype: "float32" or "float64".
    """

    entries: int
    outputs: int
    embedding: int = 0
    hidden: int = 128
    layers: int = 1
    bidirectional: bool = False
    nonlinearity: str = "tanh"
    dropout: float = 0.0
    engine: str = "hand"
    dtype: str = "float32"


class TextModel(nn.Module):
    """Reads numbers of a vocabulary, one sequence or many, and gives outputs o.

    Args:
        shape: What it is made of.

    Attributes:
        embedding: torch.nn.Embedding, or None for one-hot vectors.
        recurrence: manual_bptt.RNN or torch.nn.RNN.
        head: torch.nn.Linear, whose parameters are V and c.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        dtype = getattr(torch, shape.dtype)
        self.embedding = nn.Embedding(shape.entries, shape.embedding, dtype=dtype) if shape.embedding else None
        cls = RNN if shape.engine == "hand" else nn.RNN
        self.recurrence: RNN | nn.RNN = cls(
            shape.embedding or shape.entries,
            shape.hidden,
            shape.layers,
            shape.nonlinearity,
            bidirectional=shape.bidirectional,
            dtype=dtype,
        )
        self.head = nn.Linear(shape.hidden * (1 + shape.bidirectional), shape.outputs, dtype=dtype)

    def forward(self, tokens: Tensor | Sequence[Tensor], hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Read texts.

        Args:
            tokens: (T, B), pieces of text of one length: an output for each step. Or texts (T_i,) of any lengths: an
                output for each text, from the last state.
            hx: The state before, (layers, B, H); None: zeros.

        Returns:
            o, (T, B, K) or (B, K); and the last state (layers · directions, B, H).
        """
        if isinstance(tokens, Tensor):
            h, last = self.recurrence(self._read(tokens), hx)
            return self._output(h), last
        packed = pack_sequence(list(tokens), enforce_sorted=False)
        _, last = self.recurrence(PackedSequence(self._read(packed.data), *packed[1:]), hx)
        h = torch.cat((last[-2], last[-1]), 1) if self.shape.bidirectional else last[-1]
        h = functional.dropout(h, self.shape.dropout, self.training)
        return self._output(h.unsqueeze(0)).squeeze(0), last

    def loss(self, o: Tensor, targets: Tensor) -> Tensor:
        """The summed cross-entropy of o, (T, B, K) or (B, K), and classes (T, B) or (B,)."""
        if self.shape.engine == "hand":
            o, targets = (o, targets) if o.dim() == 3 else (o.unsqueeze(0), targets.unsqueeze(0))
            return softmax_cross_entropy(o, targets)
        return functional.cross_entropy(o.flatten(0, -2), targets.flatten(), reduction="sum")

    def _read(self, tokens: Tensor) -> Tensor:
        if self.embedding is None:
            x = functional.one_hot(tokens, self.shape.entries).to(self.head.weight.dtype)
        else:
            x = self.embedding(tokens)
        return functional.dropout(x, self.shape.dropout, self.training)

    def _output(self, h: Tensor) -> Tensor:
        if self.shape.engine == "hand":
            return readout(h, self.head.weight, self.head.bias)
        return self.head(h)  # type: ignore[no-any-return]
