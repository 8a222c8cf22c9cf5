"""How the sequences of a batch lie in memory, on the way into the recurrence and back. No mathematics.

The recurrence (recurrence.py) takes steps: (T, B, D), or rows (N, D) of sequences of different lengths. A layout is
made from what a module was given, holds the steps, and turns states into what the module returns.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from manual_bptt.activations import ACTIVATIONS
from manual_bptt.recurrence import Form, Settings

FORMS = {
    "steps": Form(lambda steps: steps, lambda steps: steps, lambda output: output),
    "batch first": Form(
        lambda steps: steps.transpose(0, 1), lambda steps: steps.transpose_(0, 1), lambda output: output.transpose(0, 1)
    ),
    "one sequence": Form(
        lambda steps: steps.squeeze(1), lambda steps: steps.squeeze_(1), lambda output: output.unsqueeze(1)
    ),
}

# of full BPTT, by how states that are given away apart are laid out ("": none are) and by f; making them takes its time
SETTINGS = {
    form: {name: Settings(activation, apart=FORMS.get(form)) for name, activation in ACTIVATIONS.items()}
    for form in (*FORMS, "")
}


class Dense:
    """Sequences of one length: (T, B, D), (B, T, D) where batch_first, or (T, D).

    Attributes:
        steps: The input as the recurrence takes it, here (T, B, D).
        sizes: Sequences at each step where the steps are rows (N, D), else None.
        ended: (T, B, 1), True after a sequence's end; None where nothing comes after it.
        B: Number of sequences.
        form: How the output is laid out, a name of FORMS.
    """

    sizes: Sequence[int] | None = None
    ended: Tensor | None = None

    def __init__(self, input: Tensor, batch_first: bool) -> None:
        self.batched = input.dim() == 3
        self.form = ("batch first" if batch_first else "steps") if self.batched else "one sequence"
        self.steps = FORMS[self.form].back(input)
        self.B = self.steps.shape[1]

    def reverse(self, steps: Tensor) -> Tensor:
        """Every sequence back to front, in new storage; undoes itself."""
        return steps.flip(0)

    def last(self, h: Tensor, h0: Tensor) -> Tensor:
        """The state at each sequence's end, (1, B, H), perhaps a view; h0 where a sequence has no step."""
        return h[-1:]

    def hidden(self, hx: Tensor) -> Tensor:
        """Bring initial states into the order of the steps: (L, B, H)."""
        return hx if self.batched else hx.unsqueeze(1)

    def final(self, hidden: Tensor) -> Tensor:
        """Bring final states (L, B, H) into the order of the input."""
        return hidden if self.batched else hidden.squeeze(1)

    def output(self, steps: Tensor, copy: bool = False, own: bool = False) -> Any:
        """Bring states into the layout of the input, with the strides that torch.nn.RNN's output has.

        As a view; copy: as a copy; own: themselves, since they are nobody else's.
        """
        form = FORMS[self.form]
        if own:
            return form.to_in_place(steps)
        output = form.to(steps)
        return output.clone() if copy else output


class Jagged(Dense):
    """A nested tensor (B, j, D) of layout torch.jagged: padded for the recurrence, with its own offsets in the end."""

    def __init__(self, input: Tensor) -> None:
        super().__init__(input.to_padded_tensor(0.0), batch_first=True)
        self.offsets = input.offsets()  # type: ignore[attr-defined]
        self.lengths = self.offsets.diff()
        sequence, time = _places(self.lengths, input.values().shape[0])
        self.rows = time * self.B + sequence

    def output(self, steps: Tensor, copy: bool = False, own: bool = False) -> Any:
        """Bring states into the layout of the input; always a copy."""
        rows = steps.flatten(0, 1).index_select(0, self.rows)
        return torch.nested.nested_tensor_from_jagged(rows, offsets=self.offsets)


class Packed:
    """A PackedSequence: rows of sequences of different lengths, longest first. Attributes and methods as Dense."""

    sizes: Sequence[int] | None
    ended: Tensor | None = None

    def __init__(self, input: PackedSequence) -> None:
        self.steps, self.batch_sizes, self.sorted_indices, self.unsorted_indices = input
        self.sizes = self.batch_sizes.tolist()
        self.B = self.sizes[0]
        expected, rows = sum(self.sizes), self.steps.shape[0]
        if rows != expected:
            raise RuntimeError(f"RNN: expected as many packed rows as the batch sizes say, {expected}, got {rows}")

    def reverse(self, steps: Tensor) -> Tensor:
        """Every sequence back to front within its length, in new storage; undoes itself."""
        time, sequence = _places(self.batch_sizes, steps.shape[0])
        return steps.index_select(0, self._row(self._lengths()[sequence] - 1 - time, sequence))

    def last(self, h: Tensor, h0: Tensor) -> Tensor:
        """The state at each sequence's end, (1, B, H)."""
        return h.index_select(0, self._row(self._lengths() - 1, torch.arange(self.B))).unsqueeze(0)

    def hidden(self, hx: Tensor) -> Tensor:
        """Bring initial states into the order of the steps, longest sequence first: (L, B, H)."""
        return hx if self.sorted_indices is None else hx.index_select(1, self.sorted_indices)

    def final(self, hidden: Tensor) -> Tensor:
        """Bring final states (L, B, H) into the order of the input."""
        return hidden if self.unsorted_indices is None else hidden.index_select(1, self.unsorted_indices)

    def output(self, steps: Tensor, copy: bool = False, own: bool = False) -> Any:
        """Bring states into the layout of the input."""
        rows = steps.clone() if copy else steps
        return PackedSequence(rows, self.batch_sizes, self.sorted_indices, self.unsorted_indices)

    def _lengths(self) -> Tensor:
        return (self.batch_sizes.unsqueeze(1) > torch.arange(self.B)).sum(0)

    def _row(self, time: Tensor, sequence: Tensor) -> Tensor:
        """Where a step of a sequence stands among the rows. All this is worked out on the CPU, as the batch sizes."""
        starts = self.batch_sizes.cumsum(0) - self.batch_sizes
        return (starts[time] + sequence).to(self.steps.device)


class Unpacked(Packed):
    """A PackedSequence as (T, B, D), for torch.compile: batch sizes have no values there to split rows by."""

    def __init__(self, input: PackedSequence, hx: Tensor | None) -> None:
        rows, self.batch_sizes, self.sorted_indices, self.unsorted_indices = input
        self.sizes = None
        T = self.batch_sizes.shape[0]
        self.B = int(self.batch_sizes[0])
        if hx is not None and hx.dim() == 3:  # a size that is known, checked when the compiled program runs
            message = "Expected hidden size of as many sequences as were packed"
            torch._check(hx.shape[1] == self.B, lambda: message)  # type: ignore[no-untyped-call]
            self.B = hx.shape[1]
        self.lengths = self._lengths().to(rows.device)
        time, sequence = _places(self.batch_sizes, rows.shape[0])
        self.rows = (time * self.B + sequence).to(rows.device)
        padded = rows.new_zeros(T * self.B, rows.shape[1]).index_copy(0, self.rows, rows)
        self.steps = padded.view(T, self.B, rows.shape[1])

    def output(self, steps: Tensor, copy: bool = False, own: bool = False) -> Any:
        """Bring states into the layout of the input; always a copy."""
        return super().output(steps.flatten(0, 1).index_select(0, self.rows))


class Padded:
    """Sequences of different lengths in T steps. Nothing depends on what stands in the padding. Methods as Dense.

    The padding is computed and thrown away, so that lengths may live on any device, be mapped over or traced.
    """

    sizes: Sequence[int] | None = None
    ended: Tensor

    def __init__(self, layout: Dense | Unpacked, lengths: Tensor) -> None:
        """Take sequences that a layout holds as (T, B, D), and how long each is, (B,)."""
        self.hidden, self.final, self.output = layout.hidden, layout.final, layout.output
        self.B = layout.B
        self.lengths = lengths
        self.time = torch.arange(layout.steps.shape[0], device=lengths.device).unsqueeze(1)  # (T, 1)
        self.ended = (self.time >= lengths).unsqueeze(2)
        self.steps = layout.steps.masked_fill(self.ended, 0)

    def reverse(self, steps: Tensor) -> Tensor:
        """Every sequence back to front within its length, in new storage; undoes itself."""
        partner = torch.where(self.time < self.lengths, self.lengths - 1 - self.time, self.time)
        return steps.gather(0, partner.unsqueeze(2).expand(steps.shape))

    def last(self, h: Tensor, h0: Tensor) -> Tensor:
        """The state at each sequence's end, (1, B, H); h0 where a sequence has no step."""
        end = (self.lengths - 1).clamp(min=0).unsqueeze(1)  # (B, 1)
        state = h.gather(0, end.expand(h0.shape).unsqueeze(0))
        return torch.where((self.lengths > 0).unsqueeze(1), state, h0)


Layout = Dense | Packed | Padded


def layout_of(input: Tensor | PackedSequence, batch_first: bool, lengths: Tensor | None, hx: Tensor | None) -> Layout:
    """Find the layout of a module's input, which has been checked."""
    if isinstance(input, PackedSequence):
        if torch.compiler.is_compiling():
            unpacked = Unpacked(input, hx)
            return Padded(unpacked, unpacked.lengths)
        return Packed(input)
    if input.is_nested:
        jagged = Jagged(input)
        return Padded(jagged, jagged.lengths)
    dense = Dense(input, batch_first)
    return dense if lengths is None else Padded(dense, lengths)


def _places(sizes: Tensor, N: int) -> tuple[Tensor, Tensor]:
    """Of each of N rows that lie in groups of the given sizes: its group, and its place in the group."""
    group = torch.repeat_interleave(sizes, output_size=N)
    starts = sizes.cumsum(0) - sizes
    return group, torch.arange(N, device=sizes.device) - starts[group]
