"""A model that reads text: embedding or one-hot vectors, a recurrence, an output layer. By hand, or torch's own twin.

The twin, engine "nn.RNN", has the same parameters and computes the same with torch.nn.RNN, torch.nn.functional.linear
and cross_entropy: nothing in it is written by hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from manual_bptt.functional import readout, softmax_cross_entropy
from manual_bptt.modules import RNN

ENGINES = ("hand", "nn.RNN")
LOSSES = ("last", "every")
IGNORED = -100  # the target of a step after a text's end


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
        dropout: Probability of an entry of what the recurrence reads and of the states that are read out to be zeroed
            in training.
        parts: Numbers that stand for a token; above 1 the mean of their vectors is read, without those of 0.
        loss: Where a text is asked for its label: at its "last" state (in both directions), or at "every" step, whose
            answers are averaged. A long text is asked for the next character at every step.
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
    parts: int = 1
    loss: str = "last"
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
            tokens: (T, B), pieces of text of one length: an output for each step. Or texts (T_i,) of any lengths,
                (T_i, parts) where a token has several: an output for each text, or with the loss at every step for
                each of its steps.
            hx: The state before, (layers, B, H); None: zeros.

        Returns:
            o, (T, B, K) or (B, K), with `lengths` for `loss` and `answers` to know what stands after a text's end; and
            the last state (layers · directions, B, H).
        """
        if isinstance(tokens, Tensor):
            h, last = self.recurrence(self._read(tokens), hx)
            return self._output(functional.dropout(h, self.shape.dropout, self.training)), last
        packed = pack_sequence(list(tokens), enforce_sorted=False)
        states, last = self.recurrence(PackedSequence(self._read(packed.data), *packed[1:]), hx)
        if self.shape.loss == "every":
            h, _ = pad_packed_sequence(states)
        else:
            h = torch.cat((last[-2], last[-1]), 1) if self.shape.bidirectional else last[-1]
        h = functional.dropout(h, self.shape.dropout, self.training)
        return (self._output(h) if h.dim() == 3 else self._output(h.unsqueeze(0)).squeeze(0)), last

    def lengths(self, tokens: Tensor | Sequence[Tensor]) -> Tensor | None:
        """How many steps count of each text, (B,); None where o has no others."""
        if isinstance(tokens, Tensor) or self.shape.loss == "last":
            return None
        return torch.tensor([len(text) for text in tokens], device=self.head.weight.device)

    def loss(self, o: Tensor, targets: Tensor, lengths: Tensor | None) -> Tensor:
        """The cross-entropy, summed over everything that is asked; of a text that is asked at every step the mean.

        Args:
            o: (T, B, K) or (B, K), as `forward` returns it.
            targets: Classes, (B,), or of the pieces of a long text (T, B).
            lengths: As `lengths` returns them.
        """
        if lengths is not None:
            targets = targets.expand(o.shape[:2]).masked_fill(_ended(o, lengths), IGNORED)
        if self.shape.engine == "hand":
            o, targets = (o, targets) if o.dim() == 3 else (o.unsqueeze(0), targets.unsqueeze(0))
            time = "sum" if lengths is None else "mean"
            return softmax_cross_entropy(o, targets, time=time, ignore_index=IGNORED)
        if lengths is None:
            return functional.cross_entropy(o.flatten(0, -2), targets.flatten(), reduction="sum")
        each = functional.cross_entropy(o.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED)
        return (each.view(targets.shape).sum(0) / lengths).sum()

    def answers(self, o: Tensor, lengths: Tensor | None) -> Tensor:
        """Logarithms of the probabilities of the classes, (B, K), but for a summand: of several steps the mean."""
        if lengths is None:
            return o
        each = o.log_softmax(2).masked_fill(_ended(o, lengths).unsqueeze(2), 0)
        return each.sum(0) / lengths.unsqueeze(1)

    def _read(self, tokens: Tensor) -> Tensor:
        if self.embedding is None:
            x = functional.one_hot(tokens, self.shape.entries).to(self.head.weight.dtype)
        elif self.shape.parts > 1:
            bags = tokens.flatten(0, -2)
            x = functional.embedding_bag(bags, self.embedding.weight, mode="mean", padding_idx=0)
            x = x.view(*tokens.shape[:-1], self.shape.embedding)
        else:
            x = self.embedding(tokens)
        return functional.dropout(x, self.shape.dropout, self.training)

    def _output(self, h: Tensor) -> Tensor:
        if self.shape.engine == "hand":
            return readout(h, self.head.weight, self.head.bias)
        return self.head(h)  # type: ignore[no-any-return]


def _ended(o: Tensor, lengths: Tensor) -> Tensor:
    """Which steps of o (T, B, K) come after a text's end, (T, B)."""
    return torch.arange(o.shape[0], device=o.device).unsqueeze(1) >= lengths
