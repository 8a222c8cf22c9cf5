"""`bptt flow`: how gradients flow back through time in a network, in words, numbers and figures.

Exit status: 0 done, 2 unusable arguments.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from manual_bptt.activations import ACTIVATIONS
from manual_bptt.checkpoints import is_model
from manual_bptt.cli.arguments import positive, whole
from manual_bptt.cli.flow_source import EVERY, Source, drawn, saved, scaled, trained
from manual_bptt.cli.lesson import LONGEST
from manual_bptt.files import check_writable, write_atomically
from manual_bptt.gradient_flow import GradientFlow, LayerFlow, gradient_flow
from manual_bptt.truncation import chunked, randomized, windowed
from manual_bptt.truncation_errors import TruncatedGradient, truncation_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RADII = (0.5, 0.9, 1.0, 1.1, 1.5)
USUAL = {"hidden": 32, "steps": 60, "batch": 16}
DECOMPOSED = 1e8  # about how many multiplications singular values may take: steps · rows · H³


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that is printed and drawn.

    Attributes:
        source: What was looked at.
        flow: Of the network as it is.
        radii: By nonlinearity, then by spectral radius of W: the flow of the network so changed. Empty where a W has
            the radius 0.
        truncations: By states held: how a truncated gradient compares with the full one, chunked, windowed, randomized.
            Empty where the full one is 0.
    """

    source: Source
    flow: GradientFlow
    radii: dict[str, dict[float, GradientFlow]]
    truncations: dict[int, list[TruncatedGradient]]


def add_parser(commands: Any) -> None:
    """Add the subcommand and its options."""
    parser = commands.add_parser(
        "flow",
        help="see how gradients vanish or explode on their way back through time",
        description="Say whether the gradients of a network vanish or explode through time and from which distance on, "
        "compare truncated gradients with the full one, and draw figures of it. Without MODEL a network is drawn that "
        "predicts the next character of a text. Exit status: 0 done, 2 unusable arguments.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        type=Path,
        metavar="MODEL",
        help="model.pt of bptt train; or what torch.save wrote of the state_dict of a vanilla RNN, of a model that "
        "holds one, or an ElmanNetwork",
    )
    parser.add_argument(
        "--part", metavar="PREFIX", help="where MODEL holds several RNNs: the prefix of one's parameters in it"
    )
    parser.add_argument(
        "--input",
        type=Path,
        metavar="FILE",
        help="without MODEL: a text, .txt (default: Python's own help topics); with one of bptt train: texts such as "
        "it was trained on (default: those); with parameters: sequences (T, B, D), .npy or .pt, or x and lengths, "
        ".npz or .pt (default: standard normal numbers)",
    )
    parser.add_argument("--batch-first", action="store_true", help="the sequences in FILE are (B, T, D)")
    parser.add_argument(
        "--nonlinearity",
        choices=tuple(ACTIVATIONS),
        help="f, which parameters alone do not tell (default: tanh)",
    )
    parser.add_argument("--loss", choices=(EVERY, "last"), help="a loss at every step (default), or at the last alone")
    parser.add_argument(
        "--hidden", type=whole(1, 1000), metavar="H", help=f"units of a drawn network (default: {USUAL['hidden']})"
    )
    parser.add_argument(
        "--radius",
        type=positive,
        metavar="R",
        help="spectral radius that W of a drawn network is scaled to (default: as torch.nn.RNN draws it)",
    )
    parser.add_argument(
        "--steps",
        type=whole(2, LONGEST),
        metavar="T",
        help=f"steps where FILE does not say (default: {USUAL['steps']})",
    )
    parser.add_argument(
        "--batch", type=whole(1), metavar="B", help=f"sequences where FILE does not say (default: {USUAL['batch']})"
    )
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, metavar="S", help="default: 0")
    parser.add_argument(
        "--draws",
        type=whole(2),
        default=100,
        metavar="N",
        help="gradients drawn for each random truncation of several layers; of one its error is exact (default: 100)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("flow"), metavar="FOLDER", help="where the figures go (default: flow)"
    )
    parser.add_argument("--no-figures", action="store_true", help="print alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to FILE")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command with parsed options; return its exit status.

    Raises:
        ValueError: Options that exclude each other, or a file that holds something else.
        OSError: A file cannot be read or written.
        RuntimeError: matplotlib is missing.
    """
    if options.json is not None:
        check_writable(options.json)
    figures = {} if options.no_figures else _figures(options.output)
    source = _source(options)
    print("\n".join(source.told), flush=True)
    findings = find(source, options.draws)
    print("\n".join(_told(findings)))
    drawn_figures = {path: made for path, draw in figures.items() if (made := draw(findings)) is not None}
    if drawn_figures:
        from manual_bptt.cli.figures import png

        for path, made in drawn_figures.items():
            write_atomically(path, png(made))
        print(f"\nfigures: {', '.join(map(str, drawn_figures))}")
    if options.json is not None:
        write_atomically(options.json, json.dumps(as_data(findings), indent=2, allow_nan=False).encode())
    return 0


def _source(options: argparse.Namespace) -> Source:
    """What the options ask to look at."""
    steps, batch = options.steps or USUAL["steps"], options.batch or USUAL["batch"]
    if options.model is not None and is_model(options.model):
        for name in ("nonlinearity", "loss", "part", "hidden", "radius", "batch_first"):
            if getattr(options, name) not in (None, False):
                shown = name.replace("_", "-")
                raise ValueError(f"expected no --{shown} beside a model of bptt train, which has its own, got one")
        return trained(options.model, options.input, steps, batch, options.seed)
    of_file = options.model is not None and options.input is not None
    beside = {
        "--part": (options.part is not None, options.model is None, "without MODEL"),
        "--batch-first": (options.batch_first, not of_file, "without MODEL and --input"),
        "--hidden": (options.hidden is not None, options.model is not None, "beside MODEL, which has its own"),
        "--radius": (options.radius is not None, options.model is not None, "beside MODEL, which has its own"),
        "--steps": (options.steps is not None, of_file, "beside --input, which has its own"),
        "--batch": (options.batch is not None, of_file, "beside --input, which has its own"),
    }
    for name, (given, useless, reason) in beside.items():
        if given and useless:
            raise ValueError(f"expected no {name} {reason}, got one")
    how = (options.nonlinearity or "tanh", options.loss or EVERY, options.seed)
    if options.model is None:
        return drawn(options.input, options.hidden or USUAL["hidden"], options.radius, steps, batch, *how)
    return saved(options.model, options.part, options.input, options.batch_first, steps, batch, *how)


def find(source: Source, draws: int) -> Findings:
    """Measure everything."""
    network, x, loss = source.network, source.x, source.loss
    T, H = x.shape[0], network.hidden_size
    rows = min(8, int(DECOMPOSED / (T * H**3)))
    flow = gradient_flow(network, x, loss, rows=rows, lengths=source.lengths)

    def with_radius(radius: float, nonlinearity: str) -> GradientFlow:
        changed = scaled(network, radius, nonlinearity)
        return gradient_flow(changed, x, loss, rows=0, by_loss=False, lengths=source.lengths)

    radii = {}
    if all(layer.eigenvalues[0] != 0 for layer in flow):
        for nonlinearity in dict.fromkeys((network.nonlinearity, "identity")):
            radii[nonlinearity] = {radius: with_radius(radius, nonlinearity) for radius in RADII}
    truncations = {}
    held = 2
    while held < T and any(layer.dh.any() and layer.slopes.any() for layer in flow):
        generator = torch.Generator().manual_seed(0)
        kinds = [chunked(held), windowed(held - 1), randomized(1 - 1 / held, generator)]
        truncations[held] = truncation_errors(network, x, kinds, loss, draws=draws, lengths=source.lengths)
        held *= 2
    return Findings(source, flow, radii, truncations)


def _told(findings: Findings) -> Iterator[str]:
    """What is printed, line by line."""
    yield f"\n{findings.flow}"
    several = len(findings.flow.layers) > 1
    for nonlinearity, by_radius in findings.radii.items():
        which = ("every W", "; of these l0") if several else ("W", "")
        yield f"\nThe same with f = {nonlinearity} and {which[0]} scaled to another spectral radius{which[1]}:"
        yield "  max|λ|  σ_max  a step   lag 10   verdict"
        as_it_is = {"as is": findings.flow} if nonlinearity == findings.source.network.nonlinearity else {}
        for radius, flow in (as_it_is | {f"{radius:g}": flow for radius, flow in by_radius.items()}).items():
            layer = flow["l0"]
            gain = layer.gains
            tenth = f"{layer.by_lag[10].item():.0e}" if len(layer.by_lag) > 10 else ""
            short = gain.kind if gain.since is None else f"{gain.kind} from lag {gain.since}"
            yield f"  {radius:>6}  {layer.sigma_max:5.3g}  {f'×{gain.rate:.2f}':<7}  {tenth:<7}  {short}"
    if not findings.radii:
        yield "\nA W with the spectral radius 0 cannot be scaled to another one."
    if findings.truncations:
        yield "\nTruncated gradients of the recurrence beside the full one g: root mean square of ‖difference‖ / ‖g‖"
        yield "  k states held   chunked(k)   windowed(k-1)   randomized(1-1/k)"
        for held, (chunks, window, random) in findings.truncations.items():
            error = f"{random.error:.3g}" if random.is_seen else f"over {random.error:.3g}"
            yield f"  {held:13}   {chunks.error:10.3f}   {window.error:13.3f}   {error:>17}"
        yield "  Chunks and windows err in the same way each time (bias); random steps scatter about the right."
        yield "  Time: full, chunks and random steps take at most one product with W a step, a window takes k - 1."
    unseen = [each[2].draws for each in findings.truncations.values() if not each[2].is_seen]
    if unseen:
        yield f"  over: {unseen[0]} draws have missed the rare ones that count most; it is more than that."


def _figures(folder: Path) -> dict[Path, Callable[[Findings], "Figure | None"]]:
    """The figures by the file each goes to, all in a folder that is there and can be written to."""
    try:
        from manual_bptt.cli import flow_figures, flow_pictures
    except ModuleNotFoundError as error:
        raise RuntimeError(
            "figures need the package matplotlib, which is not installed: pip install 'manual-bptt[cli]'; "
            "--no-figures goes without"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Callable[[Findings], Figure | None]] = {
        "flow": flow_figures.flow,
        "losses_and_states": flow_figures.losses_and_states,
        "eigenvalues": flow_figures.eigenvalues,
        "radii": flow_figures.radii,
        "truncations": flow_figures.truncations,
        "strategies": flow_pictures.strategies,
        "nonlinearities": flow_pictures.nonlinearities,
    }
    paths = {folder / f"{name}.png": draw for name, draw in figures.items()}
    for path in paths:
        check_writable(path)
    return paths


def as_data(findings: Findings) -> dict[str, Any]:
    """All numbers as plain data; what is no number is None."""
    return {
        "told": list(findings.source.told),
        "from_loss_to_l0": {"by_distance": _plain(findings.flow.gains.values.tolist()), **_verdict_data(findings.flow)},
        "layers": {layer.name: _layer_data(layer) for layer in findings.flow},
        "radii": {
            nonlinearity: {
                f"{radius:g}": {layer.name: _layer_data(layer) for layer in flow} for radius, flow in by_radius.items()
            }
            for nonlinearity, by_radius in findings.radii.items()
        },
        "truncations": [
            {
                "states_held": held,
                "truncation": str(each.truncation),
                "bias": each.bias,
                "deviation": each.deviation,
                "error": each.error,
                "draws": each.draws,
                "is_seen": each.is_seen,
            }
            for held, compared in findings.truncations.items()
            for each in compared
        ],
    }


def _layer_data(layer: LayerFlow) -> dict[str, Any]:
    arrays = (
        "dh",
        "outside",
        "by_step",
        "by_loss",
        "by_lag",
        "bounds",
        "floors",
        "singular_values",
        "lyapunov",
        "slopes",
        "saturated",
    )
    return {
        "nonlinearity": layer.nonlinearity,
        **_verdict_data(layer),
        "sigma_max": layer.sigma_max,
        "gamma": layer.gamma,
        "eigenvalues": [[value.real, value.imag] for value in layer.eigenvalues.tolist()],
        **{name: None if getattr(layer, name) is None else _plain(getattr(layer, name).tolist()) for name in arrays},
    }


def _verdict_data(flow: GradientFlow | LayerFlow) -> dict[str, Any]:
    gains = flow.gains
    return {"kind": gains.kind, "since": gains.since, "rate": _plain(gains.rate), "verdict": flow.verdict}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value if math.isfinite(value) else None
