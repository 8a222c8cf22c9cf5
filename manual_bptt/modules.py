"""RNN and RNNCell: torch.nn's names, options, errors, layers and directions, on the hand-written recurrence.

No mathematics: that is recurrence.py's. How the sequences of a batch lie in memory is layouts.py's.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from manual_bptt import checks, handover
from manual_bptt.activations import ACTIVATIONS
from manual_bptt.autocast import autocast_dtype, cast, cast_dtype
from manual_bptt.checkpointing import check as check_checkpoints
from manual_bptt.functional import run, run_whole
from manual_bptt.layouts import SETTINGS, Dense, Layout, layout_of
from manual_bptt.recurrence import Settings
from manual_bptt.transforms import is_looked_at, is_tracing, is_transforming
from manual_bptt.truncation import Truncation
from manual_bptt.truncation import check as check_truncation

_run_by_torch: Any = nn.RNN.forward
_MODES = {f"RNN_{name.upper()}": activation for name, activation in ACTIVATIONS.items()}
OF_TORCH = ("tanh", "relu")  # what torch.nn.RNN and torch.nn.RNNCell know


class RNN(nn.RNNBase):
    """A drop-in for `torch.nn.RNN`: the same constructor, parameters, initialisation, shapes and errors, and more.

    Every layer and direction is the recurrence h_t = f(U x_t + W h_{t-1} + b) of `rnn`, with its hand-written backward
    pass. It is a `torch.nn.RNNBase` but no `torch.nn.RNN`, of which torch.compile refuses every subclass:
    isinstance(m, torch.nn.RNN) is False.

    Args:
        input_size: D, the features of x_t.
        hidden_size: H, the units of each layer.
        num_layers: How many recurrences are stacked.
        nonlinearity: "tanh", "sigmoid", "relu" or "identity".
        bias: Whether there are bias_ih and bias_hh.
        batch_first: Whether input and output are (B, T, ...) instead of (T, B, ...). hx and h_n never are.
        dropout: Probability of an element of a layer's output to be zeroed, in training, for all layers but the last.
        bidirectional: Whether every layer also runs from the last step to the first.
        device: Where the parameters are made.
        dtype: Their floating or complex dtype; torch's default where None.
        truncation: How far back gradients are followed in time, in each layer and direction, counted from its own
            first step; see `rnn`. An attribute that may be changed at any time; None: all the way.
        checkpoint_every: K: every k-th state of each layer and direction is kept until backward, and the others are
            computed again then, which costs about one more forward pass. True: √T, rounded up. None or False: all are
            kept. Each layer still keeps what it reads, which above the first are all states of the layer below. An
            attribute that may be changed at any time. Under transforms of torch.func and in compiled programs all
            states are kept.

    Attributes:
        weight_ih_l{k}, weight_hh_l{k}, bias_ih_l{k}, bias_hh_l{k}: Parameters of layer k (U, W, and b in two parts),
            of shape (H, D), (H, H), (H,) and (H,); D is directions * H above the first layer. With "_reverse" at the
            end for the other direction. Drawn from U(-1/√H, 1/√H).

    Raises:
        ValueError: Unknown nonlinearity, a size or checkpoint_every below 1, dropout outside [0, 1], or proj_size,
            which only `torch.nn.LSTM` has.
        TypeError: A size that is no int, bias or batch_first that is no bool, truncation that is none, or
            checkpoint_every that is neither an int nor True, False or None.
    """

    _recorder: Any = None  # of an open record_gradients
    truncation: Any = None  # a Truncation, or None; torch.jit.script looks annotations up
    checkpoint_every: Any = None  # an int, a bool, or None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        truncation: Truncation | None = None,
        checkpoint_every: int | bool | None = None,
        **unknown: Any,
    ) -> None:
        if "proj_size" in unknown:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if unknown:
            raise TypeError(f"RNN.__init__() got an unexpected keyword argument {next(iter(unknown))!r}")
        if nonlinearity not in tuple(ACTIVATIONS):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from {_names(ACTIVATIONS)}.")
        check_truncation("RNN", truncation)
        check_checkpoints("RNN", checkpoint_every)
        super().__init__(
            "RNN_TANH",  # one of the modes that RNNBase knows
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self.nonlinearity = nonlinearity
        self.mode = f"RNN_{nonlinearity.upper()}"
        if truncation is not None:
            self.truncation = truncation
        if checkpoint_every is not None:
            self.checkpoint_every = checkpoint_every

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        lengths: Tensor | Iterable[int] | None = None,
    ) -> tuple[Any, Tensor]:
        """Run all layers and directions over a batch of sequences.

        Args:
            input: (T, B, D), or (B, T, D) where batch_first; (T, D), one sequence; a PackedSequence; or a nested tensor
                (B, j, D) of layout torch.jagged. Of the weights' dtype and device; under autocast, of any that it
                casts.
            hx: Initial states (layers * directions, B, H), without B for (T, D). None: zeros.
            lengths: Steps of each sequence, (B,), 0 to T: what comes after a sequence's end changes nothing. A tensor
                of dtype int64 or int32 on any device, or ints. Only for (T, B, D) and (B, T, D).

        Returns:
            output: The states of the last layer, both directions side by side (directions * H), in the layout of
                input; 0 after a sequence's end.
            h_n: The state of every layer and direction when it has seen the whole sequence, shaped as hx. For a
                sequence of length 0 that of hx.

        Raises:
            ValueError: input of another rank or dtype; lengths of another shape, or out of range (looked at on the
                CPU only).
            RuntimeError: input or hx of another size or on another device, hx of another dtype, T = 0, or another
                number of packed rows than the batch sizes say.
            TypeError: lengths of another dtype, or beside anything but (T, B, D) and (B, T, D).

        Gradients: input, hx and all parameters, by B3-B8, to any order; forward mode by T1 T2.
        Memory kept until backward: for each layer and direction its input and its states, (T, B, H), or with
        checkpoint_every every k-th of them. What is returned may be changed in place.
        Source: docs/derivation.md.
        """
        leaf = handover.leaf(self, input, hx, lengths)
        if leaf is not None:
            return leaf  # type: ignore[no-any-return]
        if self._recorder is not None:
            return self._recorder.run(self, input, hx, lengths)  # type: ignore[no-any-return]
        return self._run(input, hx, lengths)

    def _at_once(self, input: Tensor, hx: Tensor | None, weights: Sequence[Any]) -> tuple[Tensor, Tensor] | None:
        """The usual case, one layer in one direction over (T, B, D), by the kernel in C, which checks it itself.

        None in another case, and where something is wrong: then it is looked at one by one.
        """
        if self.num_layers > 1 or self.bidirectional or input.dim() != 3 or input.is_nested:
            return None
        every = self.checkpoint_every
        if self.truncation is not None or self._recorder is not None or not (every is None or every is False):
            return None
        if hx is not None and (hx.dim() != 3 or hx.shape[0] != 1):
            return None
        x = input.transpose(0, 1) if self.batch_first else input
        h0 = x.new_zeros(x.shape[1], self.hidden_size) if hx is None else hx[0]
        U, W, b, b2 = weights if self.bias else (*weights, None, None)
        settings = SETTINGS["batch first" if self.batch_first else "steps"][_MODES[self.mode].name]
        found = run_whole(x, h0, U, W, b, b2, settings)
        return None if found is None else found[1:]

    def _run(self, input: Any, hx: Tensor | None, lengths: Any) -> tuple[Any, Tensor]:
        """The forward pass."""
        weights = self._flat_weights
        is_usual = type(input) is Tensor and (hx is None or type(hx) is Tensor) and lengths is None
        if is_usual and not is_looked_at():
            found = self._at_once(input, hx, weights)
            if found is not None:
                return found
        if handover.wanted(weights) and _MODES[self.mode].name in OF_TORCH and lengths is None:
            if self.truncation is not None and not self.truncation.is_full and torch.is_grad_enabled():
                raise RuntimeError(f"RNN: expected no truncation where torch differentiates, got {self.truncation}")
            return _run_by_torch(self, input, hx)  # type: ignore[no-any-return]
        layout, initial = self._checked(input, hx, lengths, weights[0])
        dtype = autocast_dtype(layout.steps.device)
        if dtype is None:
            output, final = self._layers(layout, initial, weights)
        else:
            with torch.autocast(layout.steps.device.type, enabled=False):
                layout.steps, *weights = (cast(value, dtype) for value in (layout.steps, *weights))
                initial = None if initial is None else cast(initial, dtype)
                output, final = self._layers(layout, initial, weights)
        return output, layout.final(final)

    def _layers(self, layout: Layout, initial: Tensor | None, weights: Sequence[Tensor]) -> tuple[Any, Tensor]:
        """The output, and the last states of all layers and directions, (layers * directions, B, H)."""
        if initial is None:
            zeros = torch.zeros(layout.B, self.hidden_size, dtype=layout.steps.dtype, device=layout.steps.device)
        activation = _MODES[self.mode]
        check_truncation("RNN", self.truncation)
        check_checkpoints("RNN", self.checkpoint_every)
        record = None if self._recorder is None else self._recorder.next_call()
        each = 4 if self.bias else 2
        steps = layout.steps
        finals: list[Tensor] = []
        for layer in range(self.num_layers):
            is_last = layer + 1 == self.num_layers
            form = layout.form if is_last and type(layout) is Dense and not self.bidirectional else ""
            outputs = []
            for reverse in (False, True)[: self._directions]:
                place = len(finals)
                h0 = zeros if initial is None else initial[place]
                U, W, *biases = weights[place * each : (place + 1) * each]
                b, b2 = biases or (None, None)
                turn = layout.reverse if reverse else _as_it_is
                observe = record and partial(record, f"l{layer}{'_reverse' if reverse else ''}", layout, turn)
                settings = SETTINGS[form][activation.name]
                if observe is not None or layout.sizes is not None:
                    settings = replace(settings, sizes=layout.sizes, observe=observe)
                h = run(turn(steps), h0, U, W, b, b2, settings, layout.ended, self.truncation, self.checkpoint_every)
                if isinstance(h, tuple):  # of the last layer: what is given away
                    _, output, last = h
                    return output, torch.cat((*finals, last)) if finals else last
                finals.append(layout.last(h, h0))
                outputs.append(turn(h))
            steps = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
            if self.training and self.dropout > 0 and not is_last:
                steps = functional.dropout(steps, self.dropout)
        # in one direction the states are usually kept for backward: whoever changes the output in place changes a copy
        seen = is_transforming() or is_tracing() or torch.compiler.is_compiling()
        kept = not self.bidirectional and (steps.requires_grad or seen)
        return layout.output(steps, copy=kept, own=not (kept or seen)), torch.cat(finals)

    def _checked(self, input: Any, hx: Any, lengths: Any, weight: Tensor) -> tuple[Layout, Tensor | None]:
        """Raise what torch.nn.RNN raises; return the layout, and hx in its order."""
        if isinstance(input, PackedSequence):
            data: Tensor = input.data
            self._check_sizes(data, input.batch_sizes, weight)
        else:
            data = input
            if data.dim() not in (2, 3):
                raise ValueError(f"RNN: Expected input to be 2D or 3D, got {data.dim()}D tensor instead")
            if hx is not None and hx.dim() != data.dim():
                batched = "batched" if data.dim() == 3 else "unbatched"
                raise RuntimeError(
                    f"For {batched} {data.dim()}-D input, hx should also be {data.dim()}-D but got {hx.dim()}-D tensor"
                )
            if data.is_nested:
                _check_jagged(data)
            self._check_sizes(data if data.dim() == 3 else data.unsqueeze(0), None, weight)
        lengths = _checked_lengths(lengths, input, self.batch_first)
        _check_alike("input", data, weight)
        layout = layout_of(input, self.batch_first, lengths, hx)
        if layout.steps.shape[0] == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        if hx is None:
            return layout, None
        hx = layout.hidden(hx)
        self.check_hidden_size(hx, (self.num_layers * self._directions, layout.B, self.hidden_size))
        _check_alike("hidden", hx, weight)
        return layout, hx

    def _check_sizes(self, data: Tensor, batch_sizes: Tensor | None, weight: Tensor) -> None:
        dims = 3 if batch_sizes is None else 2
        if data.dtype != weight.dtype or data.dim() != dims or data.shape[-1] != self.input_size:
            self.check_input(data, batch_sizes)  # torch's own: it says what is wrong

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    # torch.nn.RNNBase keeps the weights a second time, as a list in the order of cuDNN, with weak references to see
    # whether one was replaced. Here the list is made when it is asked for.

    @property
    def _flat_weights(self) -> list[Any]:  # type: ignore[override]
        own = self._parameters
        return [own[name] if name in own else getattr(self, name, None) for name in self._flat_weights_names]

    def _init_flat_weights(self) -> None:
        self._flat_weight_refs = []

    def _weights_have_changed(self) -> bool:
        return False

    def flatten_parameters(self) -> None:
        """Do nothing: there is no cuDNN here that would want all weights in one block."""

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        state.pop("_recorder", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._init_flat_weights()

    def _replicate_for_data_parallel(self) -> Any:
        return nn.Module._replicate_for_data_parallel(self)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """As torch.nn.RNN, which never shows the nonlinearity; one that it does not know is shown."""
        known = self.nonlinearity in OF_TORCH
        shown = "" if known else f", nonlinearity={self.nonlinearity}"
        for name in ("truncation", "checkpoint_every"):
            value = getattr(self, name)
            shown += "" if value is None or value is False else f", {name}={value}"
        return super().extra_repr() + shown


class RNNCell(nn.RNNCell):
    """A drop-in for `torch.nn.RNNCell`: one step of the recurrence, h' = f(U x + W h + b), with its backward by hand.

    Args:
        input_size: D, the features of x.
        hidden_size: H, the units.
        bias: Whether there are bias_ih and bias_hh.
        nonlinearity: "tanh", "sigmoid", "relu" or "identity"; looked at when the cell is called.
        device: Where the parameters are made.
        dtype: Their floating or complex dtype; torch's default where None.

    Attributes:
        weight_ih, weight_hh, bias_ih, bias_hh: Parameters (U, W, and b in two parts) of shape (H, D), (H, H), (H,) and
            (H,), drawn from U(-1/√H, 1/√H).
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Run one step.

        Args:
            input: (B, D), or (D,) without a batch; of the weights' dtype and device, under autocast of any dtype that
                it casts.
            hx: The state before, (B, H) or (H,). None: zeros.

        Returns:
            h', the state after: (B, H) or (H,). It is kept until backward, so do not change it in place before.

        Raises:
            ValueError: input or hx of another rank.
            RuntimeError: Another size, dtype or device, or an unknown nonlinearity.

        Gradients, double backward, forward mode and memory kept until backward: as `rnn` with T = 1.
        Source: docs/derivation.md.
        """
        leaf = handover.leaf(self, input, hx)
        if leaf is not None:
            return leaf  # type: ignore[no-any-return]
        weights: Sequence[Any] = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        if handover.wanted(weights) and self.nonlinearity in OF_TORCH:
            return super().forward(input, hx)
        x, h0 = self._checked(input, hx, weights[0])
        dtype = autocast_dtype(x.device)
        if dtype is None:
            h = self._step(x, h0, *weights)
        else:
            with torch.autocast(x.device.type, enabled=False):
                values: Any = (each if each is None else cast(each, dtype) for each in (x, h0, *weights))
                x, h0, *weights = values
                h = self._step(x, h0, *weights)
        return h if input.dim() == 2 else h.squeeze(0)

    def _step(self, x: Tensor, h0: Tensor | None, U: Tensor, W: Tensor, b: Tensor | None, b2: Tensor | None) -> Tensor:
        """The state after, (B, H)."""
        if h0 is None:
            h0 = torch.zeros(x.shape[0], self.hidden_size, dtype=x.dtype, device=x.device)
        if b is None:
            b, b2 = b2, None
        activation = ACTIVATIONS[self.nonlinearity]
        if torch.compiler.is_compiling():
            h: Tensor = run(x.unsqueeze(0), h0, U, W, b, b2, Settings(activation)).squeeze(0)
        else:  # rows of one step: no view of anything
            h = run(x, h0, U, W, b, b2, Settings(activation, sizes=(x.shape[0],)))
        return h

    def _checked(self, input: Any, hx: Any, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Raise what torch.nn.RNNCell raises; return input and hx with a batch."""
        if input.dim() not in (1, 2):
            raise ValueError(f"RNNCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if hx is not None and hx.dim() not in (1, 2):
            raise ValueError(f"RNNCell: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")
        if self.nonlinearity not in tuple(ACTIVATIONS):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        x = input if input.dim() == 2 else input.unsqueeze(0)
        if x.shape[1] != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {x.shape[1]} expected {self.input_size}")
        _check_alike("input", input, weight)
        if hx is None:
            return x, None
        h0 = hx if input.dim() == 2 else hx.unsqueeze(0)
        if h0.shape[0] != x.shape[0]:
            raise RuntimeError(f"Input batch size {x.shape[0]} doesn't match hidden0 batch size {h0.shape[0]}")
        if h0.shape[1:] != (self.hidden_size,):
            raise RuntimeError(f"hidden0 has inconsistent hidden_size: got {h0.shape[1]}, expected {self.hidden_size}")
        _check_alike("hidden", hx, weight)
        return x, h0


def _as_it_is(steps: Tensor) -> Tensor:
    return steps


def _check_alike(symbol: str, value: Tensor, weight: Tensor) -> None:
    """RuntimeError for another device than the weights', or another dtype that autocast does not cast either."""
    if value.device != weight.device:
        found = f"found {symbol} tensor at {value.device} and parameter tensor at {weight.device}"
        if symbol == "hidden":
            found = f"found input tensor at {weight.device} and hidden tensor at {value.device}"
        other = "hidden" if symbol == "hidden" else "parameter"
        raise RuntimeError(f"Input and {other} tensors are not at the same device, {found}")
    if value.dtype != weight.dtype:
        dtype = autocast_dtype(value.device)
        if dtype is None or cast_dtype(value, dtype) != cast_dtype(weight, dtype):
            raise RuntimeError(
                f"{symbol} and weights must have the same dtype, but got {value.dtype} and {weight.dtype}"
            )


def _check_jagged(input: Tensor) -> None:
    if input.layout != torch.jagged or input.dim() != 3:
        raise ValueError(
            "RNN: expected a nested input of layout torch.jagged and shape (B, j, D), "
            f"got {input.layout} with {input.dim()} dimensions"
        )
    if input.lengths() is not None:  # type: ignore[attr-defined]
        raise ValueError("RNN: expected a nested input without holes, got one with lengths; use input.contiguous()")


def _checked_lengths(lengths: Any, input: Any, batch_first: bool) -> Tensor | None:
    """Return lengths as a tensor on the input's device."""
    if lengths is None:
        return None
    if isinstance(input, PackedSequence) or input.is_nested or input.dim() != 3:
        if isinstance(input, Tensor) and input.dim() == 2:
            raise TypeError("RNN: expected no lengths beside one sequence (T, D): add a batch axis to both")
        raise TypeError(f"RNN: expected no lengths beside a {type(input).__name__}, which has its own")
    if not isinstance(lengths, Tensor):
        if not isinstance(lengths, Iterable):
            raise TypeError(f"RNN: expected lengths to be a tensor or ints, got {type(lengths).__name__}")
        lengths = torch.tensor([_int(length) for length in lengths], dtype=torch.int64)
    assert isinstance(lengths, Tensor)
    if lengths.dtype not in checks.TOKEN_DTYPES:
        raise TypeError(f"RNN: expected lengths of dtype torch.int64 or torch.int32, got {lengths.dtype}")
    B, T = input.shape[:2] if batch_first else (input.shape[1], input.shape[0])
    checks.shape("RNN", "lengths", lengths, "B", (B,))
    checks.in_range("RNN", "lengths", lengths, "T", T)
    if lengths.is_meta and not input.is_meta:
        raise ValueError(f"RNN: expected lengths with values, on {input.device} like input, got them on meta")
    return lengths.to(input.device)


def _int(length: Any) -> Any:
    if isinstance(length, int) and not isinstance(length, bool):
        return length  # under torch.compile a symbol
    if isinstance(length, (bool, Tensor)) or not hasattr(length, "__index__"):
        raise TypeError(f"RNN: expected lengths to be ints, got a {type(length).__name__} among them")
    return operator.index(length)


def _names(table: Mapping[str, Any]) -> str:
    *others, last = (repr(name) for name in table)
    return f"{', '.join(others)} or {last}"
