"""`bptt flow` as its user meets it: verdicts, tables, figures, JSON, files of all kinds, messages.

Would catch: numbers that are not gradient_flow's, a model file that is read as another network, a padded batch of which
the padding is measured, a figure that is missing or empty or has text outside of its frame, an argument that is taken
and ignored, a message that does not say what came.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from manual_bptt import RNN, ElmanNetwork, chunked, gradient_flow, truncation_errors
from manual_bptt.cli import flow, main
from manual_bptt.cli.flow_source import drawn, saved, scaled
from manual_bptt.cli.saved import read_network

FIGURES = ("eigenvalues", "flow", "losses_and_states", "nonlinearities", "radii", "strategies", "truncations")
SMALL = ("--hidden", "6", "--steps", "12", "--batch", "4", "--draws", "5")
QUICK = ("--draws", "2", "--no-figures")


def run(*arguments: Any) -> int:
    return main(["flow", *map(str, arguments)])


@pytest.fixture
def saved_rnn(tmp_path: Path) -> tuple[nn.RNN, Path]:
    torch.manual_seed(0)
    rnn = nn.RNN(3, 5, num_layers=2, bidirectional=True)
    torch.save(rnn.state_dict(), tmp_path / "rnn.pt")
    return rnn, tmp_path / "rnn.pt"


def test_it_prints_the_verdict_and_writes_every_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*SMALL, "--json", "report.json") == 0
    printed = capsys.readouterr().out
    source = drawn(None, 6, None, 12, 4, "tanh", "every", 0)
    expected = gradient_flow(source.network, source.x, source.loss)["l0"]
    assert expected.verdict in printed
    assert "characters from the help topics of Python" in printed
    for nonlinearity in ("tanh", "identity"):
        assert f"The same with f = {nonlinearity} and W scaled to another spectral radius:" in printed
    assert re.search(r"^   as is +\S+ +×", printed, re.MULTILINE)
    assert sorted(path.name for path in Path("flow").iterdir()) == [f"{name}.png" for name in FIGURES]
    for name in FIGURES:
        data = Path("flow", f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) > 5000
        assert int.from_bytes(data[16:20], "big") <= 840  # pixels: what a README shows
        assert f"flow/{name}.png" in printed
    report = json.loads(Path("report.json").read_text())
    assert report["layers"]["l0"]["by_lag"] == expected.by_lag.tolist()
    assert report["layers"]["l0"]["kind"] == expected.gains.kind
    assert report["from_loss_to_l0"]["by_distance"] == pytest.approx(expected.by_lag.tolist())
    assert list(report["radii"]) == ["tanh", "identity"]
    assert list(report["radii"]["tanh"]) == ["0.5", "0.9", "1", "1.1", "1.5"]
    [chunks] = truncation_errors(source.network, source.x, [chunked(4)], source.loss)
    told = {each["truncation"]: each for each in report["truncations"]}
    assert told["chunked(4)"]["bias"] == chunks.bias
    assert f"{4:13}   {chunks.bias:10.3f}   " in printed
    assert set(told) == {
        name for k in (2, 4, 8) for name in (f"chunked({k})", f"windowed({k - 1})", f"randomized({1 - 1 / k:g})")
    }


def test_the_linear_network_decays_by_its_spectral_radius(capsys, tmp_path):
    options = ("--nonlinearity", "identity", "--radius", 0.8, "--steps", 200, "--hidden", 6, "--batch", 2, *QUICK)
    assert run(*options, "--loss", "last", "--json", tmp_path / "report.json") == 0
    printed = capsys.readouterr().out
    assert "W scaled to the spectral radius 0.8" in printed
    assert "max|λ| of W 0.8," in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["radii"]) == ["identity"]
    for radius, layer in report["radii"]["identity"].items():
        gains = layer["l0"]["by_lag"]
        assert (gains[190] / gains[110]) ** (1 / 80) == pytest.approx(float(radius), rel=0.01)
    assert not Path("flow").exists()


def test_the_same_seed_prints_the_same(capsys):
    printed = []
    for seed in (1, 1, 2):
        assert run(*SMALL, "--no-figures", "--seed", seed) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2]


def test_a_text_of_ones_own(tmp_path, capsys):
    file = tmp_path / "words.txt"
    file.write_text("naïve é " * 20, encoding="utf-8")
    assert run("--input", file, *SMALL, "--no-figures") == 0
    printed = capsys.readouterr().out
    assert "ElmanNetwork(7, 6, 7" in printed
    assert f"4 of T = 12 characters from {file}" in printed


@pytest.mark.parametrize("inside", ["alone", "model", "checkpoint"])
def test_a_saved_network_is_that_network(inside, saved_rnn, tmp_path, capsys):
    rnn, file = saved_rnn
    state = rnn.state_dict()
    if inside != "alone":
        state = {"embedding.weight": torch.zeros(2, 2), **{f"encoder.rnn.{name}": v for name, v in state.items()}}
    torch.save({"epoch": 3, "model_state_dict": state} if inside == "checkpoint" else state, file)
    network, part = read_network(file, None, "tanh")
    assert part == ("" if inside == "alone" else "encoder.rnn")
    x = torch.randn(7, 2, 3)
    torch.testing.assert_close(network(x.double())[0].float(), rnn(x)[0])
    assert run(file, "--steps", 8, *QUICK) == 0
    printed = capsys.readouterr().out
    for name in ("l0:", "l0_reverse:", "l1:", "l1_reverse:"):
        assert f"\n{name}" in printed
    assert "16 of T = 8 standard normal numbers, drawn with seed 0" in printed
    assert "half the sum of squares of the output, at every step" in printed
    assert "\nfrom the loss to the states of l0: " in printed
    assert "The same with f = tanh and every W scaled to another spectral radius; of these l0:" in printed


@pytest.mark.parametrize("bias", [True, False])
def test_other_saved_networks(bias, tmp_path, capsys):
    torch.manual_seed(0)
    cell, elman = nn.RNNCell(3, 5, bias, "relu"), ElmanNetwork(3, 5, 4, "sigmoid", bias)
    torch.save(cell.state_dict(), tmp_path / "cell.pt")
    torch.save(elman.state_dict(), tmp_path / "elman.pt")
    x = torch.randn(1, 2, 3, dtype=torch.float64)
    made, _ = read_network(tmp_path / "cell.pt", None, "relu")
    torch.testing.assert_close(made(x)[0][0].float(), cell(x[0].float()))
    made, _ = read_network(tmp_path / "elman.pt", None, "sigmoid")
    torch.testing.assert_close(made(x)[0].float(), elman(x.float())[0])
    assert run(tmp_path / "elman.pt", "--nonlinearity", "sigmoid", "--steps", 6, *QUICK) == 0
    np.save(tmp_path / "tokens.npy", np.arange(10).reshape(5, 2) % 3)
    assert run(tmp_path / "elman.pt", "--input", tmp_path / "tokens.npy", *QUICK) == 0
    assert "2 of T = 5 from" in capsys.readouterr().out


def test_one_of_several_networks_is_chosen_by_its_prefix(tmp_path, capsys):
    model = nn.ModuleDict({"slow": nn.RNN(2, 3), "fast": nn.RNN(2, 4)})
    torch.save(model.state_dict(), tmp_path / "two.pt")
    assert run(tmp_path / "two.pt", "--part", "fast", "--steps", 6, *QUICK) == 0
    assert "RNN(2, 4), f = tanh" in capsys.readouterr().out
    assert run(tmp_path / "two.pt", *QUICK) == 2
    assert "expected --part, since" in (error := capsys.readouterr().err)
    assert "several recurrent networks: 'slow', 'fast'" in error


def test_sequences_of_a_file_with_their_lengths(saved_rnn, tmp_path, capsys):
    rnn, model = saved_rnn
    generator = np.random.default_rng(0)
    x, lengths = generator.normal(size=(4, 9, 3)), [5, 9, 0, 2]
    np.savez(tmp_path / "x.npz", x=x, lengths=lengths)
    torch.save({"x": torch.from_numpy(x), "lengths": torch.tensor(lengths)}, tmp_path / "x.pt")
    given: dict[str, Tensor] = {}
    for name in ("x.npz", "x.pt"):
        source = saved(model, None, tmp_path / name, True, 0, 0, "tanh", "last", 0)
        assert source.lengths is not None
        assert source.lengths.tolist() == [9, 5, 2, 0]
        given[name] = source.x
        twin = RNN(3, 5, 2, bidirectional=True, batch_first=True, dtype=torch.float64)
        twin.load_state_dict(rnn.state_dict())

        def loss(output: Tensor) -> Tensor:
            return sum(output[row, max(0, end - 1)].square().sum() / 2 for row, end in enumerate(lengths))  # type: ignore[return-value]

        expected = gradient_flow(twin, torch.from_numpy(x), loss, lengths=lengths)
        found = gradient_flow(source.network, source.x, source.loss, lengths=source.lengths)
        for layer in found:
            torch.testing.assert_close(layer.by_step, expected[layer.name].by_step, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(given["x.npz"], given["x.pt"], rtol=0, atol=0)
    assert run(model, "--input", tmp_path / "x.npz", "--batch-first", "--draws", 2, "--output", tmp_path / "out") == 0
    assert f"4 of T = 9 from {tmp_path / 'x.npz'}, lengths 0 to 9" in capsys.readouterr().out


def test_scaling_leaves_the_network_alone():
    rnn = RNN(3, 5, 2, bidirectional=True, dtype=torch.float64)
    before = {name: value.clone() for name, value in rnn.state_dict().items()}
    made = scaled(rnn, 1.3, "identity")
    for name, value in made.named_parameters():
        if name.startswith("weight_hh"):
            assert torch.linalg.eigvals(value.detach()).abs().max().item() == pytest.approx(1.3)
        else:
            torch.testing.assert_close(value.detach(), before[name], rtol=0, atol=0)
    torch.testing.assert_close(rnn.state_dict(), before, rtol=0, atol=0)
    assert (rnn.nonlinearity, made.nonlinearity) == ("tanh", "identity")
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(made(2 * x)[0].abs().max() > 1, torch.tensor(True))


def boundary(figure: Any) -> list[str]:
    """Texts that leave the figure, or lie over one another within one panel's titles and labels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    texts = []
    for panel in figure.axes:
        texts += [panel.title, panel.xaxis.label, panel.yaxis.label]
    texts += [figure._suptitle, *(text for legend in figure.legends for text in legend.get_texts())]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text is not None and text.get_text()]
    wrong = [text for text, box in boxes if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1]
    for index, (text, box) in enumerate(boxes):
        wrong += [f"{text} over {other}" for other, place in boxes[index + 1 :] if box.overlaps(place)]
    return wrong


@pytest.mark.parametrize("layers", [0, 1, 2, 8])
def test_no_text_of_a_figure_is_cut_off_or_lies_over_another(layers, tmp_path):
    if layers == 0:
        source = drawn(None, 6, None, 20, 3, "tanh", "every", 0)
    else:
        torch.save(nn.RNN(3, 5, layers, bidirectional=True).state_dict(), tmp_path / "model.pt")
        source = saved(tmp_path / "model.pt", None, None, False, 12, 3, "tanh", "every", 0)
    findings = flow.find(source, 2)
    for path, draw in flow._figures(tmp_path / "figures").items():
        assert boundary(draw(findings)) == [], path.name


def test_what_cannot_be_compared_is_left_out_and_the_rest_is_told(tmp_path, capsys):
    state = nn.RNN(2, 3).state_dict()
    torch.save({**state, "weight_hh_l0": torch.zeros(3, 3)}, tmp_path / "nothing.pt")
    torch.save({**state, "bias_hh_l0": torch.full((3,), -1e6)}, tmp_path / "dead.pt")
    for name, nonlinearity, told in (
        ("nothing.pt", "tanh", "\nA W with the spectral radius 0 cannot be scaled to another one."),
        ("dead.pt", "relu", "\nl0: no lag can be seen: nothing comes from a later step"),
    ):
        file = tmp_path / name
        out = tmp_path / f"{name}-figures"
        assert run(file, "--nonlinearity", nonlinearity, "--steps", 8, "--draws", 2, "--output", out) == 0, name
        printed = capsys.readouterr().out
        assert told in printed
        assert (out / "radii.png").exists() == (name != "nothing.pt")


def test_an_error_that_draws_cannot_show_is_marked(tmp_path, capsys):
    torch.manual_seed(0)
    state = nn.RNN(2, 4, 2).state_dict()
    for name in ("weight_hh_l0", "weight_hh_l1"):
        state[name] = 1.5 * torch.linalg.qr(torch.randn(4, 4)).Q
    torch.save(state, tmp_path / "model.pt")
    options = ("--nonlinearity", "identity", "--loss", "last", "--steps", 60, "--draws", 20, "--no-figures")
    assert run(tmp_path / "model.pt", *options) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^ +2 .* over \S+$", printed, re.MULTILINE)
    assert "over: 20 draws have missed the rare ones that count most; it is more than that." in printed
    assert run("--radius", 1.5, "--nonlinearity", "identity", "--no-figures") == 0
    printed = capsys.readouterr().out
    assert "over" not in printed.partition("k states held")[2]
    row = re.search(r"^ +2 +0\.98\d +0\.97\d +(\S+)$", printed, re.MULTILINE)
    assert row
    assert float(row[1]) > 100  # exact: a term that grows faster than √p a step


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", 1), "argument --steps: expected a whole number from 2 to 400, got '1'"),
        (("--radius", 0), "argument --radius: expected a positive number, got '0'"),
        (("--radius", "nan"), "argument --radius: expected a positive number, got 'nan'"),
        (("--hidden", 0), "argument --hidden: expected a whole number from 1 to 1000, got '0'"),
        (("--draws", 1), "argument --draws: expected a whole number of at least 2, got '1'"),
        (("--loss", "first"), "argument --loss: invalid choice: 'first'"),
    ],
)
def test_bad_options_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def files(folder: Path) -> None:
    """Every wrong file that a message is tested on."""
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.pt").write_text("not a model")
    (folder / "latin.txt").write_bytes("naïve".encode("latin-1") * 40)
    (folder / "short.txt").write_text("abc")
    (folder / "text.npy").write_text("not an array")
    torch.save(nn.Linear(2, 3).state_dict(), folder / "linear.pt")
    torch.save(nn.LSTM(2, 3).state_dict(), folder / "lstm.pt")
    torch.save(nn.Linear(2, 3), folder / "pickled.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save({}, folder / "nothing.pt")
    good = nn.RNN(2, 3).state_dict()
    torch.save(good, folder / "rnn.pt")
    torch.save({**good, "bias_hh_l0": torch.zeros(4)}, folder / "shapes.pt")
    torch.save({**good, "weight_ih_l0": torch.zeros(3, 2, 1)}, folder / "rank.pt")
    torch.save({name: value for name, value in good.items() if name != "weight_ih_l0"}, folder / "half.pt")
    torch.save({**good, "weight_hh_l0": torch.full((3, 3), math.nan)}, folder / "nan.pt")
    torch.save(nn.RNN(2, 3, dtype=torch.complex64).state_dict(), folder / "complex.pt")
    torch.save((torch.ones(5, 2, 2), [5, 3]), folder / "pair.pt")
    torch.save({"x": torch.ones(5, 2, 2).to_sparse()}, folder / "sparse.pt")
    torch.save(nn.utils.rnn.pack_sequence([torch.ones(3, 2)]), folder / "packed.pt")
    torch.save(ElmanNetwork(2, 3, 4).state_dict(), folder / "elman.pt")
    for name, array in {
        "ok": np.ones((5, 2, 2)),
        "wide": np.ones((5, 2, 7)),
        "flat": np.ones((5, 2)),
        "one": np.ones((1, 2, 2)),
        "long": np.ones((401, 2, 2)),
        "inf": np.full((5, 2, 2), math.inf),
        "words": np.array([["a", "b"]]),
        "complex": np.ones((5, 2, 2), dtype=complex),
        "tokens": np.full((5, 2), 9),
    }.items():
        np.save(folder / f"{name}.npy", array)
    np.savez_compressed(folder / "damaged.npz", x=np.random.default_rng(0).normal(size=(50, 2, 2)))
    damaged = bytearray((folder / "damaged.npz").read_bytes())
    damaged[200:400] = bytes(200)
    (folder / "damaged.npz").write_bytes(damaged)
    np.savez(folder / "lengths.npz", x=np.ones((5, 2, 2)), lengths=[5, 6])
    np.savez(folder / "halves.npz", x=np.ones((5, 2, 2)), lengths=[5.0, 2.5])
    np.savez(folder / "y.npz", y=np.ones((5, 2, 2)))
    np.savez(folder / "ones.npz", x=np.ones((5, 2, 2)), lengths=[1, 1])
    np.savez(folder / "fine.npz", x=np.ones((5, 2, 2)), lengths=[5, 3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent.pt",), "expected absent.pt to be of use, got: No such file or directory"),
        ((".",), "expected . to be of use, got: Is a directory"),
        (
            ("empty.pt",),
            "expected empty.pt to be what torch.save wrote of parameters, such as model.state_dict(), got something",
        ),
        (
            ("text.pt",),
            "expected text.pt to be what torch.save wrote of parameters, such as model.state_dict(), got something",
        ),
        (
            ("pickled.pt",),
            "expected pickled.pt to be what torch.save wrote of parameters, such as model.state_dict(), got an object",
        ),
        (("list.pt",), "expected list.pt to hold a state_dict, names and tensors, got list"),
        (("nothing.pt",), "expected weight_hh_l0 and the like, or U, W and V, in nothing.pt, got nothing"),
        (("linear.pt",), "expected weight_hh_l0 and the like, or U, W and V, in linear.pt, got weight, bias"),
        (("lstm.pt",), "expected W, or weight_hh_l0, in lstm.pt to be square, got (12, 3): only vanilla networks are"),
        (("shapes.pt",), "expected the parameters of one network in shapes.pt, got: Error(s) in loading state_dict"),
        (
            ("rank.pt",),
            "expected matrices U and W, or weight_ih_l0 and weight_hh_l0, in rank.pt, got weight_ih_l0 (3, 2,",
        ),
        (
            ("half.pt",),
            "expected matrices U and W, or weight_ih_l0 and weight_hh_l0, in half.pt, got weight_hh_l0 (3, 3)",
        ),
        (("nan.pt",), "gradient_flow: expected weight_hh_l0 to be finite, got NaN or infinite numbers"),
        (("complex.pt",), "expected weight_ih_l0 in complex.pt to be real numbers, got (3, 2) of complex64"),
        (("rnn.pt", "--part", "x"), "expected --part to be one of '', got 'x'"),
        (("rnn.pt", "--hidden", 4), "expected no --hidden beside MODEL, which has its own, got one"),
        (("rnn.pt", "--radius", 1), "expected no --radius beside MODEL, which has its own, got one"),
        (("rnn.pt", "--batch-first"), "expected no --batch-first without MODEL and --input, got one"),
        (
            ("rnn.pt", "--input", "ok.npy", "--steps", 5),
            "expected no --steps beside --input, which has its own, got one",
        ),
        (("--part", "x"), "expected no --part without MODEL, got one"),
        (
            ("rnn.pt", "--input", "short.txt"),
            "expected --input beside a MODEL to be FILE.npy, FILE.npz or FILE.pt, got",
        ),
        (("rnn.pt", "--input", "absent.npy"), "expected absent.npy to be of use, got: No such file or directory"),
        (("rnn.pt", "--input", "text.npy"), "expected text.npy to be what numpy.save or savez wrote, got: "),
        (("rnn.pt", "--input", "wide.npy"), "expected (T, B, D) with D = 2 in wide.npy, got (5, 2, 7)"),
        (("rnn.pt", "--input", "damaged.npz"), "expected damaged.npz to be what numpy.save or savez wrote, got: "),
        (("rnn.pt", "--input", "pair.pt"), "expected x in pair.pt to be an array, got tuple"),
        (
            ("rnn.pt", "--input", "sparse.pt"),
            "expected x in sparse.pt to be a plain tensor, got a nested, sparse or meta",
        ),
        (
            ("rnn.pt", "--input", "packed.pt"),
            "expected packed.pt to be what torch.save wrote of a tensor, or x and lengths",
        ),
        (
            ("rnn.pt", "--input", "text.pt"),
            "expected text.pt to be what torch.save wrote of a tensor, or x and lengths",
        ),
        (("rnn.pt", "--input", "tokens.npy"), "got (5, 2): tokens have to be embedded, as the network gets them"),
        (("rnn.pt", "--input", "flat.npy"), "expected (T, B, D) with D = 2 in flat.npy, got (5, 2)"),
        (
            ("rnn.pt", "--input", "one.npy"),
            "expected 2 to 400 steps of one sequence or more in one.npy, got T = 1, B = 2",
        ),
        (("rnn.pt", "--input", "long.npy"), "expected 2 to 400 steps of one sequence or more in long.npy, got T = 401"),
        (("rnn.pt", "--input", "inf.npy"), "expected finite numbers in inf.npy, got NaN or infinite ones"),
        (("rnn.pt", "--input", "words.npy"), "expected x in words.npy to be real numbers, got dtype <U1"),
        (("rnn.pt", "--input", "complex.npy"), "expected x in complex.npy to be real numbers, got dtype complex128"),
        (("rnn.pt", "--input", "y.npz"), "expected y.npz to hold one array, or x and lengths, got y"),
        (
            ("rnn.pt", "--input", "lengths.npz"),
            "expected lengths of shape (2,), from 0 to T = 5, in lengths.npz, got shape (2,), from 5 to 6; is x",
        ),
        (
            ("rnn.pt", "--input", "halves.npz"),
            "expected lengths in halves.npz to be whole numbers (B,), got (2,) of float",
        ),
        (
            ("rnn.pt", "--input", "ones.npz"),
            "gradient_flow: expected a sequence of at least 2 steps, got 1 as the longest",
        ),
        (("elman.pt", "--input", "fine.npz"), "expected no lengths in fine.npz beside an ElmanNetwork, got some"),
        (("elman.pt", "--input", "tokens.npy"), "rnn: expected tokens x between 0 and D-1 = 1, got 9 at index (0, 0)"),
        (("--input", "ok.npy"), "expected a text, FILE.txt, as --input without a MODEL, got ok.npy"),
        (("--input", "latin.txt"), "expected latin.txt to be in UTF-8, got another byte in line 1"),
        (("--input", "short.txt"), "expected a text of more than 61 characters for T = 60, got 3"),
        (("--output", "short.txt"), "expected short.txt to be of use, got: File exists"),
        (("--output", "taken"), "to be a file, but it is a folder"),
        (("--json", "absent/report.json"), "to lie in a folder that exists"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files(tmp_path)
    (tmp_path / "taken" / "radii.png").mkdir(parents=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert run(*arguments, *(() if "--output" in arguments else ("--no-figures",))) == 2
    printed = capsys.readouterr()
    assert printed.out.count("\n") in (0, 3)  # nothing, or what was to be looked at
    assert printed.err.startswith("bptt flow: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_without_matplotlib_it_says_so_and_can_do_without(tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = None\nfrom manual_bptt.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    for extra, status in ((), 2), (("--no-figures",), 0):
        done = subprocess.run(
            [sys.executable, "-c", code, "flow", *SMALL, *extra],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert ("pip install 'manual-bptt[cli]'" in done.stderr) == (status == 2)
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        run("--help")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for option in ("--part", "--input", "--batch-first", "--loss", "--radius", "--draws", "--output", "--json"):
        assert re.search(rf"^  {option}\b", printed, re.MULTILINE)
