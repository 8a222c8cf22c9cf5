"""What the oracle says beside its findings, and what it does not say: facts, guesses, and places that it cannot know.

Would catch: a fact that is given for the cause of numbers which it does not explain; one mistake told as five; a cause
that was not proved (weights made inside, something kept); a wrong slope called a wrong carry; right code called wrong
because rounding is large, the problem grows without bound, a library is another or a default parameter was added; wrong
code called right because the sequences are short, the batch is always three, a method overwrites, or a function is
misspelt; a convention by which nothing could be judged.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from homework_files import as_module, edited, homework
from test_checking import BACKWARD, CS231N, FORWARD, PAIR, Array, course, ids, main, spoilt
from test_checking_limits import cancelling

from manual_bptt.cli.own_candidate import own_candidate
from torch_reference import CONVENTIONS, Calls, Convention, check, rendering
from torch_reference.conventions import find_convention
from torch_reference.course_problems import (
    LONG,
    draw_problem,
    kind_of,
    long,
    others,
    standard_sizes,
    truth,
    witnessed_truth,
)
from torch_reference.reports import LevelReport

TEXT = homework("cs231n").text
SLOPE = ("da = dnext_h * (1 - next_h**2)", "da = dnext_h * (1 - 0.9 * next_h**2)")  # no catalogue has it
FADING = ("rnn_step_forward(x[:, t], prev_h, Wx", "rnn_step_forward(x[:, t], 0.9 * prev_h, Wx")
NOTHING = "No mistake in the catalogue explains these numbers."


def sequence(*edits: tuple[str, str], key: str | None = None) -> LevelReport:
    replacements = () if key is None else homework("cs231n").mistakes[key]
    return main(check(as_module(edited(TEXT, replacements, edits)), "cs231n", level="sequence"))


def facts_of(level: LevelReport) -> list[tuple[str, bool]]:
    return [(finding.id, finding.explains) for finding in level.findings]


# Facts explain nothing by themselves


@pytest.mark.parametrize("key", ["P1", "P2"])
def test_a_fact_beside_an_unknown_mistake_is_no_cause(key: str) -> None:
    level = sequence(SLOPE, key=key)
    assert facts_of(level) == [(key, False)]
    assert level.unexplained == "these numbers"
    assert level.first_wrong is not None
    where = {"P1": "dL/da", "P2": "dL/dh or dL/da"}  # sums that grow from call to call do not answer probes
    assert (level.first_wrong.quantity, level.first_wrong.step) == (where[key], 5)


def test_a_fact_is_told_after_the_sentence_that_nothing_explains_the_numbers() -> None:
    report = check(as_module(edited(TEXT, homework("cs231n").mistakes["P1"], (SLOPE,))), "cs231n", level="sequence")
    text = rendering.text(report, width=200)
    assert f"  Cause: {NOTHING}\n  Found: P1, argument changed in place." in text
    assert "(inferred from the gradients that were returned)" in text
    assert report.to_dict()["unexplained"] == "these numbers"


def test_a_missing_result_does_not_explain_the_others() -> None:
    level = sequence(SLOPE, ("return dx, dh0, dWx, dWh, db", "return None, dh0, dWx, dWh, db"))
    assert facts_of(level) == [("S3", False)]
    assert level.unexplained == "these numbers"


def test_a_missing_result_alone_needs_no_explanation() -> None:
    level = sequence(("return dx, dh0, dWx, dWh, db", "return None, dh0, dWx, dWh, db"))
    assert facts_of(level) == [("S3", False)]
    assert level.unexplained == ""


def test_what_explains_the_forward_pass_alone_says_so() -> None:
    level = sequence(SLOPE, ("a = x @ Wx + prev_h @ Wh + b ", "a = x @ Wx + prev_h @ Wh "))
    assert facts_of(level) == [("M50", True)]
    assert level.unexplained == "the gradients beside it"


def test_gradients_in_another_order_are_one_mistake() -> None:
    level = sequence(("return dx, dh0, dWx, dWh, db", "return dWx, dWh, db, dx, dh0"))
    assert facts_of(level) == [("S5", True)]
    assert level.findings[0].note == "dWx, dWh, db, dx, dh0 stand there"
    assert level.unexplained == ""


def test_wrong_gradients_in_another_order_are_told_by_their_shapes() -> None:
    level = sequence(SLOPE, ("return dx, dh0, dWx, dWh, db", "return dWx, dWh, db, dx, dh0"))
    assert facts_of(level) == [("S2", False)]
    assert "dx, dh0, dWx, dWh and db look exchanged, each has another's shape" in level.findings[0].note


def test_several_results_amiss_are_one_fact() -> None:
    level = sequence(("return dx, dh0, dWx, dWh, db", "return dx, dh0, dWx * 1j, dWh * 1j, db"))
    assert facts_of(level) == [("S3", False)]
    assert level.findings[0].note.count("expected an array") == 2


# No cause that was not proved


def test_noise_in_the_states_is_not_weights_made_inside() -> None:
    noisy = (
        "    return np.stack(h, axis=1), cache\n",
        "    return np.stack(h, axis=1) + 1e-3 * np.random.rand(), cache\n",
    )
    assert facts_of(sequence(noisy)) == [("P5", False)]


def test_noise_in_a_gradient_is_not_something_kept() -> None:
    level = sequence(("return dx, dh0, dWx, dWh, db", "return dx, dh0, dWx * (1 + np.random.rand()), dWh, db"))
    assert facts_of(level) == [("P5", False)]
    assert "drawn at random" in level.findings[0].hint
    assert level.findings[0].title == "other results from call to call"


def test_a_state_that_is_kept_beside_an_unknown_forward_pass_is_no_weight() -> None:
    level = sequence(
        ("rnn_step_forward(x[:, t], prev_h, Wx", "rnn_step_forward(x[:, t], 0.9 * prev_h, Wx"), key="M15-h0"
    )
    assert facts_of(level) == [("P5", False)]


def test_an_argument_without_effect_need_not_have_another_in_its_place() -> None:
    level = sequence(
        FADING,
        ("a = x @ Wx + prev_h @ Wh + b ", "a = x @ Wx + prev_h @ Wh "),
    )
    assert facts_of(level) == [("P6", False)]
    assert level.findings[0].cause == "An argument has no effect on the result."


# The same factor at one size is another one at another


@pytest.mark.parametrize("factor", [3, 5, 7, 1 / 3])
def test_a_constant_is_not_a_size(factor: float) -> None:
    level = main(
        check(spoilt(**{name: lambda value: factor * value for name in ("dx", "dh0", "dWx", "dWh", "db")}), "cs231n")
    )
    assert ids_of(level) == []
    assert any(note.startswith("every gradient is") for note in level.notes)
    assert ids_of(sequence(("db = da.sum(axis=0)", "db = da.sum(axis=0) / 3"))) == []


def ids_of(level: LevelReport) -> list[str]:
    return [finding.id for finding in level.findings]


def test_all_sizes_of_the_second_problem_are_others() -> None:
    for name, convention in CONVENTIONS.items():
        for level in convention.levels:
            kind = kind_of(convention, level)
            first = standard_sizes(kind)
            second = others(kind, first)
            same = {size for size, one, other in zip("TNDHK", first, second, strict=True) if one == other}
            assert same <= ({"T", "D", "H"} if level == "step" else {"N"} if convention.one_sequence else set()), name


# Where it goes wrong first


@pytest.mark.parametrize(
    ("slope", "place"),
    [
        ("h[min(t + 1, len(x) - 1)]", ("dL/da", 4)),  # that of the step after, but for the last step
        ("(h[t] if t == len(x) - 1 else 0)", ("dL/da", 4)),
        ("0.9 * h[t]", ("dL/da", 5)),
    ],
)
def test_a_wrong_slope_is_not_taken_for_a_wrong_carry(slope: str, place: tuple[str, int]) -> None:
    text = homework("goodfellow").text
    in_sequence = ("        da_t = dh_t * (1 - h[t] ** 2)  # B4\n", f"        da_t = dh_t * (1 - ({slope}) ** 2)\n")
    level = main(check(as_module(edited(text, (in_sequence,))), "goodfellow", level="sequence"))
    assert level.first_wrong is not None
    assert (level.first_wrong.quantity, level.first_wrong.step) == place
    assert ids_of(level) == []


def test_where_no_probe_can_be_given_either_may_be_wrong() -> None:
    text = homework("kth").text
    slope = next(line for line in text.splitlines() if "B4" in line)
    wrong = slope.replace("**2", "**2 * (1 if t == len(X.T) - 1 else 0.9)")
    assert wrong != slope
    level = main(check(as_module(edited(text, ((slope, wrong),))), "kth"))
    assert level.first_wrong is not None
    assert (level.first_wrong.quantity, level.first_wrong.step) == ("dL/dh or dL/da", 5)


# What rounding can do


@pytest.mark.parametrize("key", [None, "M30"])
def test_what_float32_cannot_judge_is_neither_right_nor_wrong(key: str | None) -> None:
    report = check(course("cs231n", *([key] if key else [])), "cs231n", dtype="float32", problem=cancelling(1e-6))
    assert report.verdict == "unusable"
    assert "on this problem float32 cannot judge dWx" in main(report).trouble
    assert "take another seed" in main(report).trouble


@pytest.mark.parametrize("share", [1e-5, 1e-7])
def test_where_large_terms_cancel_float64_is_judged_by_what_it_can_do(share: float) -> None:
    assert check(PAIR, "cs231n", problem=cancelling(share)).verdict == "right"
    assert ids(check(course("cs231n", "M30"), "cs231n", problem=cancelling(share))) == ["M30"]


def test_what_cancels_in_a_shared_initial_state_is_allowed_for() -> None:
    shared = replace(
        find_convention("cs231n"), names={**find_convention("cs231n").names, "h0": "h0 H"}, name="shared h0"
    )
    shared = replace(shared, levels={"sequence": shared.levels["sequence"]})

    def rnn_backward(dh: Array, cache: Any) -> tuple[Array, ...]:
        dx, dh0, *others = BACKWARD(dh, cache)
        return (dx, dh0.sum(0), *others)

    def rnn_forward(x: Array, h0: Array, *weights: Array) -> Any:
        return FORWARD(x, np.broadcast_to(h0, (len(x), h0.shape[-1])), *weights)

    problem = cancelling(1e-3)
    assert check((rnn_forward, rnn_backward), shared, dtype="float32", problem=problem).verdict == "right"


def test_no_factor_is_read_off_noise() -> None:
    wrong = spoilt(db=lambda value: value + 1, dWx=np.zeros_like)
    notes = main(check(wrong, "cs231n", dtype="float32", problem=cancelling(1e-4))).notes
    assert not any("every gradient is" in note for note in notes)


@pytest.mark.parametrize("nonlinearity", ["relu", "identity"])
@pytest.mark.parametrize("T", [12, 30, 64])
def test_problems_stay_bounded(nonlinearity: str, T: int) -> None:
    kind = kind_of(CONVENTIONS["goodfellow"].changed(nonlinearity=nonlinearity), "network")
    for seed in range(6):
        problem = draw_problem(kind, seed, standard_sizes(kind)._replace(T=T))
        states = truth(problem)
        assert np.abs(states["a"]).max() < 30
        assert np.abs(states["o"]).max() < 60


@pytest.mark.parametrize("seed", range(3))
def test_right_homework_with_relu_is_right_at_any_length(seed: int) -> None:
    relu = (
        (
            "        h_t = np.tanh(x_t @ U.T + h_prev @ W.T + b)",
            "        h_t = np.maximum(x_t @ U.T + h_prev @ W.T + b, 0)",
        ),
        ("da_t = dh_t * (1 - h[t] ** 2)", "da_t = dh_t * (h[t] > 0)"),
    )
    module = as_module(edited(homework("goodfellow").text, relu))
    for dtype in ("float64", "float32"):
        report = check(
            module, "goodfellow", level="sequence", nonlinearity="relu", dtype=dtype, seed=seed, sizes={"T": 30}
        )
        assert report.verdict == "right"


# Right homework of other styles


def guarded(logarithm: str) -> Any:
    return check(as_module(edited(TEXT, (("np.log(probs[word])", logarithm),))), "cs231n")


def test_a_guarded_logarithm_is_right() -> None:
    for logarithm in ("np.log(probs[word] + 1e-8)", "np.log(np.maximum(probs[word], 1e-12))"):
        assert guarded(logarithm).verdict == "right"
    assert any("guarded against zero" in note for note in main(guarded("np.log(probs[word] + 1e-8)")).notes)
    assert guarded("np.log(probs[word] + 1e-2)").verdict == "wrong"


def test_parameters_in_another_order_with_a_default_more() -> None:
    def rnn_forward(x: Array, Wx: Array, Wh: Array, b: Array, h0: Array, verbose: bool = False) -> Any:
        return FORWARD(x, h0, Wx, Wh, b)

    assert check((rnn_forward, BACKWARD), "cs231n").verdict == "right"


def test_arrays_of_the_other_library() -> None:
    import torch

    def rnn_forward(x: Any, h0: Any, Wx: Any, Wh: Any, b: Any) -> Any:
        h = [h0]
        for t in range(x.shape[1]):
            h.append(torch.tanh(x[:, t] @ Wx + h[-1] @ Wh + b))
        return torch.stack(h[1:], 1), (x, h, Wx, Wh)

    def rnn_backward(dh: Any, cache: Any) -> Any:
        x, h, Wx, Wh = cache
        dx, carry = torch.zeros_like(x), torch.zeros_like(h[0])
        dWx, dWh, db = torch.zeros_like(Wx), torch.zeros_like(Wh), torch.zeros_like(Wh[0])
        for t in reversed(range(x.shape[1])):
            da = (dh[:, t] + carry) * (1 - h[t + 1] ** 2)
            dx[:, t], carry = da @ Wx.T, da @ Wh.T
            dWx, dWh, db = dWx + x[:, t].T @ da, dWh + h[t].T @ da, db + da.sum(0)
        return dx, carry, dWx, dWh, db

    assert check((rnn_forward, rnn_backward), "cs231n", arrays="torch").verdict == "right"
    assert check((rnn_forward, rnn_backward), "cs231n").verdict == "unusable"


def test_a_network_may_leave_out_the_gradients_of_its_input() -> None:
    def rnn_gradients(*arguments: Any) -> Any:
        loss, gradients = RIGHT_D2L.rnn_gradients(*arguments)
        return loss, *(gradients[name] for name in ("dW_xh", "dW_hh", "db_h", "dW_hq", "db_q"))

    assert check({"rnn_gradients": rnn_gradients}, "d2l").verdict == "right"


RIGHT_D2L = course("d2l")

CELL = ("dW_ih", "dW_hh", "db_ih", "db_hh")

# Wrong homework that looks right


@pytest.mark.parametrize("k", [9, 12, 20, 35])
def test_truncation_after_many_steps_is_seen(k: int) -> None:
    chunks = ("dnext_h = dh[:, t] + dprev_h", f"dnext_h = dh[:, t] + dprev_h * ((t + 1) % {k} != 0)")
    report = check(as_module(edited(TEXT, (chunks,))), "cs231n", level="sequence")
    assert ids(report) == ["M11"]
    assert main(report).findings[0].note == f"nothing crosses a border every {k} steps"
    assert main(report).sizes["T"] == LONG


def test_every_level_but_one_step_has_a_long_problem() -> None:
    for convention in CONVENTIONS.values():
        for level in convention.levels:
            sizes = long(kind_of(convention, level))
            assert (sizes is None) == (level == "step")
            assert sizes is None or sizes.T == LONG


def test_a_method_that_overwrites_its_gradients_is_seen_without_a_loop_over_time() -> None:
    text = homework("mytorch").text
    cell = text[: text.index("\ndef rnn_forward")]
    right = check(as_module(cell), "mytorch")
    assert (right.verdict, [level.level for level in right.levels]) == ("right", ["step"])
    for edits, names in (
        ((("self.dW_hh +=", "self.dW_hh ="),), ["dW_hh"]),
        (
            tuple((f"self.{n} +=", f"self.{n} =") for n in ("dW_ih", "dW_hh", "db_ih", "db_hh")),
            ["dW_ih", "dW_hh", "db_ih", "db_hh"],
        ),
    ):
        level = main(check(as_module(edited(cell, edits)), "mytorch"))
        assert facts_of(level) == [("M35", True)]
        assert [gradient.name for gradient in level.gradients if not gradient.ok] == names
        assert all("share is gone" in gradient.trouble for gradient in level.gradients if not gradient.ok)


@pytest.mark.parametrize(
    ("old", "new", "note"),
    [
        ("def rnn_loss(", "def rnn_los(", "network is not looked at: expected rnn_loss; it has rnn_los"),
        (
            "def rnn_forward(",
            "def rnn_forwards(",
            "sequence is not looked at: expected rnn_forward; it has rnn_forwards",
        ),
        ("def rnn_backward(", "def bptt_of_mine(", "sequence is not looked at: expected rnn_backward"),
    ],
)
def test_a_level_that_is_left_out_for_want_of_a_name_is_said(old: str, new: str, note: str) -> None:
    notes = check(as_module(edited(TEXT, ((old, new),))), "cs231n").notes
    assert any(each.startswith(note) for each in notes)
    assert not any("not looked at" in each for each in check(CS231N, "cs231n").notes)


def test_no_function_of_the_convention_s_own_is_said_to_be_another_s() -> None:
    for level in ("step", "sequence", "network"):
        assert not any("not looked at" in note for note in check(CS231N, level=level).notes)


def test_what_another_level_sees_is_not_said_to_be_unseen() -> None:
    report = check(course("goodfellow"), "goodfellow")
    assert [level.blind for level in report.levels] == [(), ()]
    without = {**vars(course("d2l"))}
    report = check(without, "d2l")
    assert not {"M12", "M17"} & {id_ for level in report.levels for id_, _, _ in level.blind}


# Conventions by which nothing could be judged

NAMES = {"xs": "x NTD", "s0": "h0 NH", "s": "h NTH", "A": "U DH", "B": "W PH", "d": "b H", "lab": "y NT", "L": "loss"}
RUN, BACK = "run(xs, s0, A, B, d) -> s, kept", "gradients(ds, kept) -> {dA, dB, dd, ds0}"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"levels": {}}, "expected levels to map at least one of step, sequence, network to Calls"),
    ({"levels": {"sequence": [Calls(RUN, BACK)]}}, "expected sequence to be Calls, or a tuple of Calls, got list"),
    ({"levels": {"sequence": RUN}}, "expected sequence to be Calls, or a tuple of Calls, got str"),
    ({"levels": {"sequence": Calls(RUN.replace(", kept", ""))}}, "expected run(xs, s0, A, B, d) to return a gradient"),
    (
        {"levels": {"sequence": Calls(RUN, "gradients(kept) -> {dA, dB}")}},
        "expected run(xs, s0, A, B, d) and gradients(kept) to take the upstream gradient, ds",
    ),
    (
        {"levels": {"network": Calls("net(xs, s0, A, B, d) -> L, {dA, dB}")}},
        "expected net(xs, s0, A, B, d) to take the targets, lab",
    ),
    ({"levels": {"step": Calls(RUN, BACK)}}, "expected no axis T in the arrays of one step"),
    (
        {"levels": {"sequence": Calls("run(xs, s0, A, B) -> s, kept", BACK)}},
        "to take what gradients are returned of, got none of d",
    ),
    (
        {"names": {**NAMES, "A2": "U DH"}, "levels": {"sequence": Calls(RUN.replace("A,", "A, A2,"), BACK)}},
        "to take U once",
    ),
    ({"names": {**NAMES, "xs": "x TD"}}, "expected an axis N in all of x, h and y, or in none"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_a_convention_by_which_nothing_could_be_judged_is_refused(change: dict[str, Any], message: str) -> None:
    usual: dict[str, Any] = {"names": NAMES, "levels": {"sequence": Calls(RUN, BACK)}}
    Convention(name="ours", title="", **usual)
    with pytest.raises(ValueError, match="Convention ours: ") as refused:
        Convention(name="ours", title="", **{**usual, **change})
    assert message in str(refused.value)


def test_a_pair_of_functions_that_is_no_pair_is_explained() -> None:
    with pytest.raises(TypeError, match=r"give two functions as a pair, \(forward, backward\)"):
        check(FORWARD, BACKWARD)  # type: ignore[arg-type]


def test_keys_that_were_returned_are_named_where_one_is_missing() -> None:
    def gradients(dh: Array, cache: Any) -> dict[str, Array]:
        dx, dh0, dWx, dWh, db = BACKWARD(dh, cache)
        return {"dx": dx, "dprev": dh0, "dWx": dWx, "dW_h": dWh, "db": db}

    level = main(check((FORWARD, gradients), "cs231n"))
    assert facts_of(level) == [("S1", False)]
    assert "dh0: missing: expected a result named dh0, got dprev, dW_h" in level.findings[0].note


def test_a_convention_file_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    from manual_bptt.cli.convention_file import named_convention

    (tmp_path / "letters_of_ours.py").write_text("NAMES = " + repr(NAMES), "utf-8")
    (tmp_path / "course.py").write_text(
        "from letters_of_ours import NAMES\nfrom torch_reference import Calls, Convention\n"
        f"ours = Convention('ours', '', NAMES, {{'sequence': Calls({RUN!r}, {BACK!r})}})\n",
        "utf-8",
    )
    assert named_convention(str(tmp_path / "course.py")).name == "ours"


# What a second reviewer found


@pytest.mark.parametrize("spared", ["mask[:, -1] = True", "mask[0] = True"])
def test_a_mask_that_is_not_applied_at_the_end_or_in_one_sequence_is_seen(spared: str) -> None:
    weight = "    dscores *= mask[:, :, None] / N"
    changed = (weight, f"    mask = mask.copy()\n    {spared}\n{weight}")
    assert check(as_module(edited(TEXT, (changed,))), "cs231n", level="network").verdict == "wrong"


MYTORCH = homework("mytorch").text
CELL_ALONE = MYTORCH[: MYTORCH.index("\ndef rnn_forward")]
LEANING = {
    "state": (("da = delta * (1 - h_t**2)", "da = delta * (1 - self.h**2)"),),
    "input gradient": (
        (
            "return da @ self.W_ih, da @ self.W_hh",
            "self.dx = getattr(self, 'dx', 0) + da @ self.W_ih\n        return self.dx, da @ self.W_hh",
        ),
    ),
}


@pytest.mark.parametrize("leaning", LEANING)
def test_a_cell_that_leans_on_what_it_kept_is_wrong_by_itself(leaning: str) -> None:
    text = edited(CELL_ALONE, LEANING[leaning])
    if leaning == "state":
        line = next(line for line in text.splitlines() if "np.tanh(" in line)
        assert line.strip().startswith("return ")
        text = edited(text, ((line, line.replace("return ", "self.h = ") + "\n        return self.h"),))
    assert check(as_module(text), "mytorch").verdict == "wrong"
    assert check(as_module(CELL_ALONE), "mytorch").verdict == "right"


@pytest.mark.parametrize("seed", range(4))
def test_one_gradient_that_is_not_clipped_is_seen(seed: int) -> None:
    text = homework("karpathy").text
    clip = next(line for line in text.splitlines() if "in (dWxh" in line or "in [dWxh" in line)
    wrong = as_module(edited(text, ((clip, clip.replace(", dby", "")),)))
    assert check(wrong, "karpathy", seed=seed).verdict == "wrong"
    assert check(course("karpathy"), "karpathy", seed=seed).verdict == "right"


@pytest.mark.parametrize("seed", range(9))
def test_relu_with_a_loss_at_the_last_step(seed: int) -> None:
    convention = find_convention("goodfellow").changed(nonlinearity="relu", time="last")
    for level in convention.levels:
        kind = kind_of(convention, level)
        for sizes in (standard_sizes(kind), long(kind)):
            assert sizes is not None
            witnessed_truth(draw_problem(kind, seed, sizes))


@pytest.mark.parametrize("without", ["h0", "b", "c"])
def test_what_a_convention_has_no_name_for_is_zero(without: str) -> None:
    names = {**NAMES, "C": "V HK", "e": "c K"}
    gone = {"h0": "s0", "b": "d", "c": "e"}[without]
    del names[gone]
    taken = [name for name in ("xs", "lab", "s0", "A", "B", "d", "C", "e") if name in names]
    returned = [f"d{name}" for name in ("A", "B", "d", "C", "e") if name in names]
    call = Calls(f"net({', '.join(taken)}) -> L, {{{', '.join(returned)}}}")
    ours = Convention("ours", "", names, {"network": call})
    report = check(own_candidate(ours), ours)
    assert report.verdict == "right"


EXTRAS = {
    "cs231n": ('"db_vocab": db_vocab}', '"db_vocab": db_vocab, "dh": dh, "h": None}'),
    "goodfellow": ('"dW": dW, "db": db}', '"dW": dW, "db": db, "dh": carry, "da": da_t, "h": None, "loss": 0.0}'),
}


@pytest.mark.parametrize("name", EXTRAS)
def test_what_nobody_asked_for_is_not_judged(name: str) -> None:
    report = check(as_module(edited(homework(name).text, (EXTRAS[name],))), name)
    assert report.verdict == "right"


def test_any_small_guard_of_the_logarithm_is_right() -> None:
    for guard in ("np.finfo(np.float32).eps", "5e-8", "2e-16"):
        assert guarded(f"np.log(probs[word] + {guard})").verdict == "right"


def test_a_default_whose_name_the_convention_knows_is_left_alone() -> None:
    def rnn_forward(x: Array, h0: Array, Wx: Array, Wh: Array, b: Array, y: Any = None, h: Any = None) -> Any:
        assert y is None
        assert h is None
        return FORWARD(x, h0, Wx, Wh, b)

    def rnn_backward(dh: Array, cache: Any, loss: Any = None) -> Any:
        assert loss is None
        return BACKWARD(dh, cache)

    assert check((rnn_forward, rnn_backward), "cs231n").verdict == "right"


def test_a_placeholder_for_the_loss_is_called_so() -> None:
    text = homework("goodfellow").text
    line = next(line for line in text.splitlines() if line.strip().startswith("loss = "))
    level = main(check(as_module(edited(text, ((line, "    loss = 0.0"),))), "goodfellow", level="network"))
    assert [(finding.id, finding.note) for finding in level.findings] == [("M46", "the loss is zero")]


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (("dh[t] = do[t] @ V ", "dh[t] = -do[t] @ V "), ("M19", "it is subtracted")),
        (("da[t] = dh[t] * (1 - h[t] ** 2)", "da[t] = 2 * dh[t] * (1 - h[t] ** 2)"), ("M27", "it counts twice")),
        (("dh[t] = do[t] @ V ", "dh[t] = 0 * do[t] @ V "), ("M19", "it is missing")),
    ],
)
def test_one_mistake_is_not_told_as_two(edit: tuple[str, str], named: tuple[str, str]) -> None:
    text = homework("goodfellow").text
    level = main(check(as_module(edited(text, (edit,))), "goodfellow", level="network"))
    assert [(finding.id, finding.note) for finding in level.findings] == [named]


@pytest.mark.parametrize(
    "edit",
    [
        ("    carry = np.zeros_like(h0)  # what", "    carry = h0.copy()  # what"),
        ("dh_t = dh[t] + carry  # B3", "dh_t = np.ones_like(dh[t]) + carry"),
        ("dh_t = dh[t] + carry  # B3", "dh_t = dh[t] + carry + h[t]"),
        ("dh_t = dh[t] + carry  # B3", "dh_t = np.sort(dh[t], 1) + carry"),
        ("dh_t = dh[t] + carry  # B3", "dh_t = dh[t].mean(1, keepdims=True) + carry"),
    ],
)
def test_a_wrong_sum_is_not_taken_for_a_wrong_slope(edit: tuple[str, str]) -> None:
    text = homework("goodfellow").text
    level = main(check(as_module(edited(text, (edit,))), "goodfellow", level="sequence"))
    assert level.first_wrong is not None
    assert level.first_wrong.quantity in ("dL/dh", "dL/dh or dL/da")
    assert level.first_wrong.step == 5


def test_a_name_that_is_part_of_a_word_is_no_name() -> None:
    names = {**NAMES, "h": "h0 NH"}
    del names["s0"]
    calls = Calls("run(xs, h, A, B, d) -> s, kept", "gradients(ds, kept) -> {dA, dB, dd}")
    ours = Convention("ours", "", names, {"sequence": calls})

    def run(xs: Array, h: Array, A: Array, B: Array, d: Array) -> Any:
        s, cache = FORWARD(xs, h, A, B, d)
        return s, (cache, s, xs)

    count = iter(range(100))

    def gradients(ds: Array, kept: Any) -> Any:
        cache, *_ = kept
        _, _, dA, dB, dd = BACKWARD(ds, cache)
        return {"dA": dA * (1 + 1e-3 * next(count)), "dB": dB * 2, "dd": dd}

    level = main(check((run, gradients), ours))
    assert ("P5", False) in facts_of(level)


@pytest.mark.parametrize(
    "change",
    [
        {"levels": {"network": Calls("net(xs, lab, s0, A, B, d) -> L", autograd=True)}, "arrays": "torch"},
        {"levels": {"sequence": Calls("run(xs, s0, A, B, d) -> s", autograd=True)}},
        {"levels": {"sequence": Calls(RUN, BACK)}, "clip": True},
    ],
)
def test_more_conventions_that_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Convention ours: expected (autograd|clip)"):
        Convention("ours", "", NAMES, **change)


def test_numbers_of_other_kinds() -> None:
    for options in ({"seconds": "3"}, {"seconds": None}, {"memory": "1"}):
        with pytest.raises(ValueError, match="to be a positive number"):
            check(PAIR, "cs231n", **options)  # type: ignore[arg-type]
    report = check(PAIR, "cs231n", level="sequence", seed=np.int64(3))  # type: ignore[arg-type]
    assert json.loads(json.dumps(report.to_dict()))["seed"] == 3
