"""What the backward pass of each layer and direction of a network sees: states, what enters, what arrives.

For gradient_flow.py and truncation_errors.py, which measure on it. The network is run once, without truncation and
dropout; a loss can be followed back as a whole or step by step.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from manual_bptt import checks, recurrence
from manual_bptt.activations import ACTIVATIONS, Activation
from manual_bptt.conversion import convert
from manual_bptt.modules import RNN
from manual_bptt.network import ElmanNetwork
from manual_bptt.truncation import Truncation

Input = Tensor | PackedSequence
Loss = Callable[[Any], Tensor]
Lengths = Tensor | Sequence[int] | None


@dataclass(frozen=True)
class Pass:
    """What one layer does in one direction; in float64, steps in the order of the direction, padded.

    Attributes:
        e: The part of dL/dh_t that enters from outside, (T, B, H); 0 after a sequence's end.
        total: dL/dh_t, (T, B, H); 0 after a sequence's end.
        ordered: The same with its steps in the order of the input.
        h: The states, (T, B, H).
        running: Whether a sequence has that step, (T, B).
        W: (H, H).
        activation: f.
        x: What the first layer reads, (T, B, D); None above it.
        h0: (B, H).
    """

    e: Tensor
    total: Tensor
    ordered: Tensor
    h: Tensor
    running: Tensor
    W: Tensor
    activation: Activation
    x: Tensor | None
    h0: Tensor


class Observed:
    """A network that has been run on an input, ready to have losses followed back.

    Attributes:
        T: Steps of the longest sequence.
        layers: Names of layers and directions, "l0", "l0_reverse", "l1", ….
        biases: How many bias vectors each of them adds up.
    """

    def __init__(
        self, function: str, network: nn.Module, x: Input, loss: Loss | None, hx: Tensor | None, lengths: Lengths
    ) -> None:
        """Check everything, run a copy of the network, and find the gradient of its output.

        Raises:
            TypeError, ValueError: As `gradient_flow` says.
        """
        loss = _checked(function, network, x, loss, lengths)
        made: Any = copy.deepcopy(network)
        self._watcher = _Watcher()
        with torch.enable_grad():
            if isinstance(made, ElmanNetwork):
                made.truncation = None
                o, self._h = made(x, hx)
                self._output, self._network, self._parameters = o.detach().requires_grad_(), made, []
                result: Any = self._output
                self._x: Any = x
                self._hx = hx
                self.biases = int(made.b is not None)
            else:
                made = _converted(function, made)
                made.truncation, made._recorder = None, self._watcher
                self._parameters = list(made.parameters())
                for parameter in self._parameters:
                    parameter.requires_grad_()
                result, _ = made(x, hx, lengths=lengths)
                self._output = result.data if isinstance(result, PackedSequence) else result
                self._network, self._hx = made, hx
                self._arguments, self._lengths = (x, hx), lengths
                self.biases = 2 * made.bias
            value = loss(result)
            if not isinstance(value, Tensor) or value.dim() != 0:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"{function}: expected loss to return a loss without dimensions, got {got}")
            entering = None
            if value.requires_grad:
                [entering] = torch.autograd.grad(value, [self._output], retain_graph=True, allow_unused=True)
        if entering is None:
            raise ValueError(f"{function}: expected a loss that depends on the output, got one that does not")
        if not value.isfinite() or not entering.isfinite().all():
            raise ValueError(f"{function}: expected a finite loss and gradient, got a loss of {value.item()}")
        self._entering = entering
        self._packed = result if isinstance(result, PackedSequence) else None
        self._batch_first = bool(getattr(network, "batch_first", False))
        self.passes = self._followed(entering)
        self.layers = list(self.passes)
        self.T = next(iter(self.passes.values())).h.shape[0]
        if self.T < 2:
            raise ValueError(f"{function}: expected a sequence of at least 2 steps, got {self.T} as the longest")
        for name, each in self.passes.items():
            for symbol, found in (("states", each.h), ("gradients", each.total)):
                wrong = (~found.isfinite()).flatten(1).any(1).nonzero()
                if len(wrong):
                    raise ValueError(
                        f"{function}: expected finite {symbol}, got others in {name}, at step {int(wrong[0]) + 1} for "
                        "the first time; fewer steps or float64 may help"
                    )

    def by_loss(self) -> Iterator[dict[str, Tensor]]:
        """Give, for the output of each step s, ‖its share in dL/dh_t‖ by layer, (T,), t in the order of the input."""
        for s in range(self.T):
            entering = torch.zeros_like(self._entering)
            if self._packed is not None:
                first = int(self._packed.batch_sizes[:s].sum())
                rows = slice(first, first + int(self._packed.batch_sizes[s]))
                entering[rows] = self._entering[rows]
            else:
                time = 1 if self._batch_first else 0
                entering.select(time, s).copy_(self._entering.select(time, s))
            yield {name: each.ordered.flatten(1).norm(dim=1) for name, each in self._followed(entering).items()}

    def gradient(self, truncation: Truncation | None) -> Tensor:
        """The gradient of all parameters of the recurrence in one row, in float64, under a truncation."""
        self._network.truncation = truncation
        with torch.enable_grad():
            if isinstance(self._network, ElmanNetwork):
                network = self._network
                parameters = [each.requires_grad_() for each in (network.U, network.W, network.b) if each is not None]
                output = network(self._x, self._hx)[0]
            else:
                self._network._recorder, parameters = None, self._parameters
                output = self._network(*self._arguments, lengths=self._lengths)[0]
                output = output.data if isinstance(output, PackedSequence) else output
            found = torch.autograd.grad([output], parameters, [self._entering])
        return torch.cat([each.double().flatten() for each in found])

    def _followed(self, entering: Tensor) -> dict[str, Pass]:
        """Follow a gradient of the output back."""
        if isinstance(self._network, ElmanNetwork):
            return {"l0": self._of_network(entering)}
        self._watcher.passes = {}
        torch.autograd.grad(
            [self._output], self._parameters, [entering], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        per_layer = 2 if self._network.bidirectional else 1
        B = next(iter(self._watcher.passes.values()))[0].B
        zeros = torch.zeros(self._network.num_layers * per_layer, B, self._network.hidden_size)
        found = {}
        for name in sorted(self._watcher.passes):
            layout = self._watcher.passes[name][0]
            hx = zeros if self._hx is None else layout.hidden(self._hx.detach()).double()
            place = per_layer * int(name[1:].partition("_")[0]) + name.endswith("_reverse")
            found[name] = _pass(name, *self._watcher.passes[name], hx[place])
        return found

    def _of_network(self, do: Tensor) -> Pass:
        network = self._network
        e = (do @ network.V.detach()).double()  # B3, first term
        h, W = self._h.detach().double(), network.W.detach().double()
        activation = ACTIVATIONS[network.nonlinearity]
        settings = recurrence.Settings(activation)
        with torch.no_grad():
            da = recurrence.through_time(e, h, W, None, settings)
            total = recurrence.state_gradient(e, da, h, W, None, settings)
        x = self._x
        x = functional.one_hot(x.long(), network.input_size) if recurrence.are_tokens(x) else x
        h0 = torch.zeros_like(h[0]) if self._hx is None else self._hx.detach().double()
        return Pass(
            e, total, total, h, torch.ones_like(h[..., 0], dtype=torch.bool), W, activation, x.detach().double(), h0
        )


class _Watcher:
    """What a module takes for its recorder: keeps what the backward pass of each layer and direction sees."""

    run = staticmethod(RNN._run)

    def __init__(self) -> None:
        self.passes: dict[str, Any] = {}

    def next_call(self) -> Callable[..., None]:
        def keep(name: str, *seen: Any) -> None:
            self.passes[name] = seen

        return keep


@torch.no_grad()
def _pass(
    name: str,
    layout: Any,
    turn: Callable[[Tensor], Tensor],
    dh: Tensor,
    da: Tensor,
    h: Tensor,
    W: Tensor,
    ended: Tensor | None,
    settings: recurrence.Settings,
    h0: Tensor,
) -> Pass:
    """Bring what was seen into one layout and float64."""
    total = recurrence.state_gradient(dh, da, h, W, ended, settings)
    ordered = turn(total)
    x = turn(layout.steps) if name.startswith("l0") else None
    if settings.sizes is not None:  # packed: the rows of all steps
        sizes = list(settings.sizes)
        dh, total, ordered, h = (_padded(each, sizes) for each in (dh, total, ordered, h))
        x = None if x is None else _padded(x, sizes)
        running = torch.arange(h.shape[1], device=h.device) < torch.tensor(sizes, device=h.device).unsqueeze(1)
    else:
        running = torch.ones_like(h[..., 0], dtype=torch.bool) if ended is None else ~ended.squeeze(2)
        if dh.masked_fill(running.unsqueeze(2), 0).any():
            warnings.warn(
                "the loss reads the output after a sequence's end, where it is 0: output[-1] is the last state of the "
                "longest sequence alone",
                stacklevel=2,
            )
        dh = dh.masked_fill(~running.unsqueeze(2), 0)
    T = int(running.any(1).sum())
    e, total, ordered, h = (each[:T].double() for each in (dh, total, ordered, h))
    x = None if x is None else x[:T].double()
    return Pass(e, total, ordered, h, running[:T], W.double(), settings.activation, x, h0.to(h))


def _padded(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rows of packed sequences as (T, B, H), 0 after each sequence's end."""
    return nn.utils.rnn.pad_sequence(list(torch.split_with_sizes(rows.detach(), list(sizes)))).transpose(0, 1)


def _converted(function: str, module: Any) -> Any:
    """The hand-written module, without dropout."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of derived classes, which are refused here
        module = convert(module)
    if not isinstance(module, RNN):
        raise TypeError(
            f"{function}: expected a torch.nn.RNN itself, got {type(module).__name__}, which is derived from it "
            "and may compute something else"
        )
    return module.eval()


def _checked(function: str, network: nn.Module, x: Input, loss: Loss | None, lengths: Lengths) -> Loss:
    """Raise for a network, input or parameters that cannot be looked at; return the loss, or what stands for none."""
    if not isinstance(network, (RNN, nn.RNN, ElmanNetwork)):
        kind = type(network)
        raise TypeError(
            f"{function}: expected network to be a manual_bptt.RNN, torch.nn.RNN or ElmanNetwork, "
            f"got {kind.__module__}.{kind.__name__}; of a model with one inside take that, with what goes into it"
        )
    for name, parameter in network.named_parameters():
        if not parameter.is_floating_point():
            raise TypeError(f"{function}: expected {name} to be real, got {parameter.dtype}")
        if not parameter.isfinite().all():
            raise ValueError(f"{function}: expected {name} to be finite, got NaN or infinite numbers")
    if isinstance(network, ElmanNetwork) and (lengths is not None or isinstance(x, PackedSequence)):
        raise TypeError(
            f"{function}: expected neither lengths nor a PackedSequence for an ElmanNetwork, got one of them: "
            "leave the steps after a sequence's end out of the loss"
        )
    if loss is not None and not callable(loss):
        raise TypeError(f"{function}: expected loss to be a function of the output, got {type(loss).__name__}")
    if isinstance(x, PackedSequence):
        T, shape = x.batch_sizes.shape[0], f"batch sizes {x.batch_sizes.tolist()}"
    else:
        T, shape = _steps(function, network, x), str(tuple(x.shape))
    if T < 2:
        raise ValueError(f"{function}: expected at least 2 steps, got T = {T} in {shape}")
    values = x.data if isinstance(x, PackedSequence) else x
    if not values.isfinite().all():
        raise ValueError(f"{function}: expected x to be finite, got NaN or infinite numbers")
    return _half_squares if loss is None else loss


def _steps(function: str, network: nn.Module, x: Tensor) -> int:
    """T of an input, checked for its rank."""
    checks.tensor(function, "x", x)
    ranks = (2, 3) if isinstance(network, ElmanNetwork) and recurrence.are_tokens(x) else (3,)
    if x.is_nested:
        raise ValueError(f"{function}: expected x padded, with lengths, or packed, got a nested tensor")
    if x.dim() not in ranks:
        raise ValueError(f"{function}: expected x with a batch, (T, B, D) or (B, T, D), got {tuple(x.shape)}")
    return x.shape[1 if getattr(network, "batch_first", False) else 0]


def _half_squares(output: Any) -> Tensor:
    values: Tensor = output.data if isinstance(output, PackedSequence) else output
    return values.square().sum() / 2
