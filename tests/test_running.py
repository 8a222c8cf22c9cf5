"""A homework can do anything, and the one who runs it gets an outcome or a reason, soon, and nothing left over.

Would catch: a homework that hangs, ends or fills this process by a loop, a crash, an exit, a flood of output or of
results, or bytes on a line that is not its own; a reason that names the wrong function or line, or quotes files
that the student does not know; results that differ between this process and a child, lose their dtype, or show a
later state; an argument changed in place that goes unseen, state not kept between programs, globals not given back;
processes, files, threads or descriptors left behind.
"""

import _thread
import contextlib
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from torch_reference import child as child_module
from torch_reference.running import Call, Child, Failure, InProcess, Opaque, Outcome, Program, Result

posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")

COURSE = """
import functools
import numpy as np
from numpy import tanh
from helper import softmax

calls = 0
bias = None
W = np.ones(2)

def step(x, h, *, scale=1.0):
    h = tanh(x + scale * h)
    return h, (x, h)

def count(*args, **kwargs):
    global calls
    calls += 1
    return calls

def add_bias(x):
    return x + bias

def stretch_bias():
    bias[:] = 2 * bias

def reset():
    global calls
    calls = 100

def keep(x):
    return x

def spoil(x, parameters, inputs):
    x += 1
    parameters["Wax"][0] = 9
    inputs.append(3)
    parameters["new"] = 1

def take(cache):
    return cache[0] is cache[1], type(cache).__name__

def zero(h):
    h[...] = 0

def values():
    return {
        "numbers": (1, 2.5, True, None, 3 + 4j, np.float32(0.1), np.int64(7), float("inf"), 10**40),
        "text": "x\\ud800é",
        ("a", 1): [np.arange(3), np.float32([1, 2]).T, np.array([True]), np.array(["é"]), np.zeros((2, 0))],
        2: {"function": keep, "set": {1}, "generator": (i for i in ())},
        "objects": np.array([None]),
        "huge": 10**5000,
        "nothing": np.array(5.0),
    }

def around():
    knot = []
    knot.append(knot)
    return knot

def nothing():
    pass

class RNNCell:
    made = 0

    def __init__(self, input_size, hidden_size):
        RNNCell.made += 1
        self.W = np.zeros((hidden_size, input_size))
        self.dW = np.ones_like(self.W)

    def zero_grad(self):
        self.dW[...] = 0

    def forward(self, x):
        return x @ self.W.T

    def backward(self, delta, x):
        self.dW += delta.T @ x
        return delta @ self.W

    @staticmethod
    def still(a): pass

    @classmethod
    def of_class(cls, a): pass

class Wider(RNNCell):
    def wide(self): pass

half = functools.partial(keep, 0.5)
_hidden = keep
"""
HELPER = """
import numpy as np

def softmax(o, axis=-1):
    e = np.exp(o)
    return e / e.sum(axis)
"""
Make = Callable[..., Any]


def written(folder: Path, source: str, name: str = "homework.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(source), "utf-8")
    return path


def imported(path: Path) -> Any:
    """Import a file in this process, its folder on the path of imports meanwhile."""
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location("homework_in_process", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules["homework_in_process"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
        sys.modules.pop("helper", None)
    return module


def called(function: str, *arguments: Any, **keywords: Any) -> Program:
    return Program((Call(function, arguments, keywords),))


def result(runner: Any, function: str, *arguments: Any, **keywords: Any) -> Any:
    return runner.run(called(function, *arguments, **keywords)).results[0]


def failure(of: Callable[[], object]) -> Failure:
    with pytest.raises(Failure) as caught:
        of()
    assert str(caught.value) == caught.value.message
    return caught.value


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def is_gone(pid: int) -> bool:
    for _ in range(100):
        if not alive(pid):
            return True
        time.sleep(0.01)
    return False


@pytest.fixture(autouse=True)
def nothing_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test may leave a temporary file, a thread, a descriptor or a process."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = (threading.active_count(), descriptors(), children())
    yield
    assert list(folder.iterdir()) == []
    assert (threading.active_count(), descriptors(), children()) == before


def descriptors() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def children() -> list[str]:
    """Number the processes of homeworks that run now."""
    file = Path(f"/proc/self/task/{os.getpid()}/children")
    return [pid for pid in file.read_text().split() if is_child_script(pid)] if file.exists() else []


def is_child_script(pid: str) -> bool:
    return b"child.py" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let Ctrl-C interrupt, which a job in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def homework(tmp_path: Path) -> Iterator[Make]:
    """Make a child of a source text."""
    made: list[Child] = []

    def make(source: str, name: str = "homework.py", **options: Any) -> Child:
        made.append(Child(written(tmp_path, source, name), **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module", params=["child", "in process"])
def course(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The same homework in this process and in one of its own."""
    folder = tmp_path_factory.mktemp("course")
    written(folder, HELPER, "helper.py")
    path = written(folder, COURSE)
    with Child(path) if request.param == "child" else InProcess(imported(path)) as runner:
        yield runner


# what comes back


def test_signatures(course):
    signatures = course.signatures()
    assert signatures["step"] == ("x", "h", "scale")
    assert signatures["count"] == ("*args", "**kwargs")
    assert signatures["softmax"] == ("o", "axis")
    assert signatures["RNNCell"] == ("input_size", "hidden_size")
    assert signatures["RNNCell.backward"] == ("delta", "x")
    assert signatures["RNNCell.still"] == signatures["RNNCell.of_class"] == ("a",)
    assert signatures["Wider.wide"] == ()
    assert signatures["Wider.forward"] == ("x",)
    assert "half" in signatures
    assert not {"tanh", "np", "_hidden", "functools", "RNNCell.__init__", "calls"} & set(signatures)


def test_values_come_back_as_they_are(course):
    values = result(course, "values")
    numbers = values["numbers"]
    assert numbers == (1, 2.5, True, None, 3 + 4j, np.float32(0.1), 7, float("inf"), 10**40)
    assert [type(number) for number in numbers[5:7]] == [np.float32, np.int64]
    assert type(numbers[2]) is bool
    assert values["text"] == "x\\ud800é"
    arrays = values["a", 1]
    assert [array.dtype.str for array in arrays] == ["<i8", "<f4", "|b1", "<U1", "<f8"]
    assert [array.shape for array in arrays] == [(3,), (2,), (1,), (1,), (2, 0)]
    assert arrays[3][0] == "é"
    assert values[2] == {"function": Opaque("function"), "set": Opaque("set"), "generator": Opaque("generator")}
    assert values["objects"] == Opaque("numpy.ndarray of dtype object")
    assert isinstance(values["huge"], Opaque)
    assert values["nothing"].shape == ()
    assert result(course, "nothing") is None


def test_a_list_that_holds_itself_has_an_end(course):
    knot, depth = result(course, "around"), 0
    while isinstance(knot, list):
        knot, depth = knot[0], depth + 1
    assert depth == child_module.DEEPEST
    assert isinstance(knot, Opaque)


def test_arguments_arrive_as_they_are(course):
    for dtype, shape in itertools.product(["float64", "float32", "int64", "bool"], [(), (0, 3), (2, 3)]):
        x = np.ones(shape, dtype)[..., ::-1] if shape else np.ones(shape, dtype)
        kept = result(course, "keep", x)
        assert kept.dtype == x.dtype
        assert kept.shape == x.shape
        np.testing.assert_array_equal(kept, x)
    assert result(course, "keep", {"a": [x, (1, None)], 2: True})["a"][1] == (1, None)


def test_an_earlier_result_is_the_same_object(course):
    x, h = np.array([0.5]), np.array([2.0])
    first, second = Call("step", (x, h), {"scale": 0.5}), Call("step", (x, Result(0, 0)))
    parts = Call("take", ((Result(1, 1), Result(1, 1)),))
    whole = Call("keep", (Result(1),))
    outcome = course.run(Program((first, second, parts, whole)))
    h1 = np.tanh(x + 0.5 * h)
    np.testing.assert_array_equal(outcome.results[0][0], h1)
    np.testing.assert_array_equal(outcome.results[1][0], np.tanh(x + h1))
    assert outcome.results[2] == (True, "tuple")
    np.testing.assert_array_equal(outcome.results[3][0], outcome.results[1][0])
    assert outcome.changed == ()


def test_a_result_is_as_it_was_after_its_call(course):
    x = np.array([1.0, np.nan])
    outcome = course.run(Program((Call("keep", (x,)), Call("zero", (Result(0),)), Call("keep", (Result(0),)))))
    np.testing.assert_array_equal(outcome.results[0], x)
    np.testing.assert_array_equal(outcome.results[2], [0, 0])
    assert set(outcome.changed) == {(0, "x"), (1, "h")}  # what was kept is what was given


def test_arguments_changed_in_place_are_named(course):
    given = (np.array([1.0, np.nan]), {"Wax": np.ones(2), "Waa": np.full(2, np.nan)}, [1, 2])
    outcome = course.run(Program((Call("keep", given[:1]), Call("spoil", given))))
    assert outcome.changed == ((1, "x"), (1, "parameters['Wax']"), (1, "parameters['new']"), (1, "inputs"))
    assert given[0][0] == 1
    assert list(given[1]) == ["Wax", "Waa"]
    assert given[2] == [1, 2]


def test_state_is_kept_between_programs(course):
    first = result(course, "count")
    assert [result(course, "count"), result(course, "count", 1, a=2)] == [first + 1, first + 2]


def test_globals_are_set_read_and_given_back(course):
    program = Program(
        (Call("stretch_bias"), Call("add_bias", (np.zeros(2),)), Call("count")),
        set={"bias": np.array([1.0, 2.0]), "new": 5},
        read=("bias", "new", "W", "unknown"),
        before=("reset", "absent"),
    )
    for _ in range(2):
        outcome = course.run(program)
        np.testing.assert_array_equal(outcome.results[1], [2, 4])
        assert outcome.results[2] == 101
        np.testing.assert_array_equal(outcome.read["bias"], [2, 4])
        assert list(outcome.read) == ["bias", "new", "W"]
    assert course.run(Program((), read=("bias", "new"))).read == {"bias": None}


def test_globals_are_set_where_the_function_is(tmp_path):
    """A function that a file imports from another sees the globals of that other file."""
    written(tmp_path, "b = 1\ndef shifted(x): return x + b\n", "part.py")
    path = written(tmp_path, "from part import shifted\n")
    program = Program((Call("shifted", (1,)),), set={"b": 10}, read=("b",))
    with Child(path) as runner:
        assert runner.run(program) == Outcome((11,), {"b": 10}, ())
        assert result(runner, "shifted", 1) == 2


def test_a_class_is_built_and_read(course):
    x, delta = np.ones((2, 3)), np.ones((2, 4))
    program = Program(
        (Call("RNNCell.forward", (x,)), Call("RNNCell.backward", (delta, x)), Call("keep", (Result(0),))),
        owner="RNNCell",
        construct=(3, 4),
        set={"W": np.full((4, 3), 2.0)},
        read=("dW", "made", "unknown"),
        before=("zero_grad", "absent"),
    )
    made = course.run(program).read["made"]
    for number in (made + 1, made + 2):
        outcome = course.run(program)
        np.testing.assert_array_equal(outcome.results[2], np.full((2, 4), 6.0))
        np.testing.assert_array_equal(outcome.results[1], np.full((2, 3), 8.0))
        np.testing.assert_array_equal(outcome.read["dW"], np.full((4, 3), 2.0))
        assert outcome.read["made"] == number
        assert "unknown" not in outcome.read


def test_functions_can_be_given_by_name():
    def local(x):
        x[0] = 5
        return x

    runner = InProcess({"f": local, "one": 1})
    assert runner.signatures() == {"f": ("x",)}
    assert runner.run(called("f", np.zeros(1))).changed == ((0, "x"),)
    assert "it has: f" in failure(lambda: result(runner, "g")).message


TORCH = """
import torch

class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return 2 * x * w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        if (x < 0).any():
            return g.wrong
        return 2 * g * w, 2 * g * x

apply = Doubled.apply

def doubled(x, w, n, k=None):
    return Doubled.apply(x, w), x.detach()

def cut(x):
    return x.detach()

def kinds(x):
    return [x.dtype == torch.float32, x.T, x.to(torch.bfloat16), torch.nn.Parameter(x), x.to_sparse(), x.to("meta")]

def numbers(x):
    return x.sum().item()

def changing(x):
    x.mul_(2)
"""


@pytest.fixture(scope="module")
def torch_runners(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    """Both runners of a torch homework, started once: importing torch takes a second."""
    path = written(tmp_path_factory.mktemp("torch"), TORCH)
    namespace: dict[str, Any] = {"__name__": "torch_homework"}
    exec(compile(TORCH, str(path), "exec"), namespace)
    # torch's own libraries, 600 MB, do not count
    with Child(path, memory=300 << 20) as runner:
        yield [InProcess(namespace), runner]


@pytest.mark.parametrize("which", [0, 1], ids=["in process", "child"])
class TestTorch:
    def test_tensors_come_back_as_arrays(self, torch_runners, which):
        x = np.float32([[1, 2, 3]])
        single, transposed, half, parameter, sparse, meta = (
            torch_runners[which].run(Program((Call("kinds", (x,)),), arrays="torch")).results[0]
        )
        assert single is True
        for array in (transposed.T, half, parameter, sparse):
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, x)
        assert meta == Opaque("torch.Tensor")

    def test_autograd_differentiates(self, torch_runners, which):
        x, w, upstream = np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([1.0, -1.0])
        call = Call("doubled", (x, w, 3), {"k": np.array([1.0])})
        program = Program((call,), arrays="torch", differentiate=((0, upstream), (0, (upstream, None))))
        for gradients in torch_runners[which].run(program).gradients:
            assert list(gradients) == [0, 1, "k"]
            np.testing.assert_array_equal(gradients[0], 2 * upstream * w)
            np.testing.assert_array_equal(gradients[1], 2 * upstream * x)
            assert gradients["k"] is None

    def test_a_function_of_autograd_itself(self, torch_runners, which):
        assert "apply" in torch_runners[which].signatures()
        call = Call("apply", (np.ones(2), np.ones(2)))
        outcome = torch_runners[which].run(Program((call,), arrays="torch", differentiate=((0, np.ones(2)),)))
        np.testing.assert_array_equal(outcome.gradients[0][0], [2, 2])

    @pytest.mark.parametrize(
        ("call", "upstream", "kind", "fragment"),
        [
            (Call("cut", (np.ones(2),)), np.ones(2), "graph", "cannot differentiate"),
            (Call("numbers", (np.ones(2),)), np.ones(()), "return", "a tensor is needed"),
            (Call("changing", (np.ones(2),)), np.ones(2), "error", "in-place"),
            (Call("doubled", (np.ones(2), np.ones(2), 1)), np.ones(3), "return", "shape (3,), got (2,)"),
            (Call("doubled", (-np.ones(2), np.ones(2), 1)), np.ones(2), "error", "g.wrong"),
        ],
        ids=["detached", "number", "in-place", "shape", "backward"],
    )
    def test_why_it_cannot(self, torch_runners, which, call, upstream, kind, fragment):
        program = Program((call,), arrays="torch", differentiate=((0, upstream),))
        found = failure(lambda: torch_runners[which].run(program))
        assert found.kind == kind
        assert found.function == call.function
        assert fragment in found.message

    def test_a_tensor_changed_in_place_is_named(self, torch_runners, which):
        outcome = torch_runners[which].run(Program((Call("changing", (np.ones(2),)),), arrays="torch"))
        assert outcome.changed == ((0, "x"),)


def test_gradients_need_a_graph_even_where_the_caller_has_none():
    runner = InProcess({"f": lambda x: x * x})
    program = Program((Call("f", (np.ones(2),)),), arrays="torch", differentiate=((0, np.ones(2)),))
    with torch.no_grad():
        np.testing.assert_array_equal(runner.run(program).gradients[0][0], [2, 2])


# what goes wrong in a call

WRONG = """
import sys
import numpy as np

class Odd(Exception):
    def __str__(self):
        raise KeyError

class NoText(Exception):
    def __str__(self):
        return 5

class Cell:
    def forward(self, x): return x / self.unknown

def divide(x):
    return inner(x)

def inner(x):
    return x.reshape(7)  # seven

def unwritten():
    raise NotImplementedError("write me")

def odd(): raise Odd
def no_text(): raise NoText
def colours(): raise ValueError("\\x1b[31mred\\x07 é \\ud800")
def long(): raise ValueError("long " * 100_000)
def deep(): return deep()
def leave(): sys.exit("bye")
def quietly(): sys.exit()
def none(x): pass
def pair(x): return x, x
def single(x): return x
def named(x): return {"dx": x}
def many(): return list(range(300_000))
def wide(): return np.broadcast_to(1.0, (10**6, 10**6))
def half(): return np.zeros(20 << 20)
def folded():
    knot = [1]
    for _ in range(29): knot = [knot, knot]
    return knot
"""


@pytest.fixture(scope="module", params=["child", "in process"])
def wrong(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = written(tmp_path_factory.mktemp("wrong"), WRONG)
    with Child(path) if request.param == "child" else InProcess(imported(path)) as runner:
        yield runner


def test_an_exception_is_told_with_the_students_line(wrong):
    found = failure(lambda: result(wrong, "divide", np.ones(3)))
    assert (found.kind, found.function) == ("error", "divide")
    first, second = found.message.splitlines()
    assert first == "divide: ValueError: cannot reshape array of size 3 into shape (7,)"
    assert second == "homework.py, line 20: return x.reshape(7)  # seven"


@pytest.mark.parametrize(
    ("function", "kind", "fragment"),
    [
        ("unwritten", "error", "unwritten: NotImplementedError: write me\nhomework.py, line 23:"),
        ("odd", "error", "Odd: (its text cannot be shown)"),
        ("no_text", "error", "NoText: (its text cannot be shown)"),
        ("colours", "error", "\\x1b[31mred\\x07 é \\ud800"),
        ("deep", "error", "RecursionError: maximum recursion depth exceeded"),
        ("leave", "exit", "exit was called (SystemExit: bye)"),
        ("quietly", "exit", "exit was called"),
        ("inner", "error", "missing 1 required positional argument: 'x'"),
        ("absent", "missing", "there is no function absent in homework.py; it has: Cell, NoText, Odd, colours, deep"),
        ("Cell.backward", "missing", "no function Cell.backward in Cell"),
        ("np", "missing", "there is no function np"),
        ("many", "flood", "many returned more than"),
        ("wide", "flood", "wide returned more than 256 MB"),
        ("folded", "flood", "folded returned more than"),
    ],
)
def test_why_a_call_fails(wrong, function, kind, fragment):
    found = failure(lambda: result(wrong, function))
    assert found.kind == kind
    assert found.function == function
    assert fragment in found.message
    assert len(found.message) < 1000
    assert "child.py" not in found.message
    assert result(wrong, "single", 1) == 1


def test_what_all_calls_return_is_limited(wrong):
    found = failure(lambda: wrong.run(Program((Call("half"), Call("half")))))
    assert (found.kind, found.function) == ("flood", "half")


@pytest.mark.parametrize(
    ("function", "item", "kind", "fragment"),
    [
        ("none", 0, "none", "none returned None (is there a return statement?); the next call needs value 1 of it"),
        ("pair", 2, "return", "pair returned a tuple of 2; the next call needs value 3 of it"),
        ("pair", "dx", "return", "pair returned a tuple of 2; the next call needs key 'dx' of it"),
        ("single", 0, "return", "single returned one numpy.ndarray; the next call needs value 1"),
        ("named", "dh0", "return", "named returned a dict with the keys dx; the next call needs key 'dh0' of it"),
    ],
)
def test_a_part_that_was_not_returned(wrong, function, item, kind, fragment):
    program = Program((Call(function, (np.ones(2),)), Call("single", (Result(0, item),))))
    found = failure(lambda: wrong.run(program))
    assert (found.kind, found.function) == (kind, function)
    assert fragment in found.message


def test_methods_and_constructors_fail_by_their_names(wrong):
    cell = {"owner": "Cell"}
    found = failure(lambda: wrong.run(Program((Call("Cell.forward", (1,)),), **cell)))
    assert "Cell.forward: AttributeError" in found.message
    found = failure(lambda: wrong.run(Program((Call("Cell.backward", (1,)),), **cell)))
    assert found.message == "there is no function backward in Cell; it has: forward"
    found = failure(lambda: wrong.run(Program((Call("Cell.forward", (1,)),), construct=(1, 2), **cell)))
    assert (found.kind, found.function) == ("error", "Cell")


@pytest.mark.parametrize(
    ("program", "fragment"),
    [
        (Program((), arrays="jax"), "expected 'numpy' or 'torch', got 'jax'"),
        (Program((Call("single", (Result(0),)),)), "expected a Result of an earlier call"),
        (Program((Call("single"),), differentiate=((0, 1),)), "expected arrays='torch'"),
        (Program((Call("single"),), arrays="torch", differentiate=((1, 1),)), "there is no call 1"),
    ],
)
def test_a_program_that_is_none(wrong, program, fragment):
    with pytest.raises(ValueError, match=fragment):
        wrong.run(program)


def test_what_cannot_travel_is_refused(homework):
    runner = homework("def f(x): return x")
    for value in (object(), np.array([None]), {1}):
        with pytest.raises(ValueError, match="expected arrays"):
            result(runner, "f", value)


def test_a_users_interrupt_is_not_the_homeworks():
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        result(InProcess({"f": stop}), "f")


# what goes wrong while a file is loaded


@pytest.mark.parametrize(
    ("source", "kind", "fragment"),
    [
        ("x = 1\ndef f(:\n    pass\n", "syntax", "homework.py, line 2: invalid syntax\ndef f(:"),
        ("def f():\npass\n", "syntax", "homework.py, line 2: expected an indented block"),
        ("x = 'é\x00'", "syntax", "null bytes"),
        ("(" * 5000, "syntax", "homework.py"),
        (
            "x = 1\ny = x + z\n",
            "error",
            "loading homework.py: NameError: name 'z' is not defined\nhomework.py, line 2:",
        ),
        ("import a_course_that_is_not_here", "error", "No module named 'a_course_that_is_not_here'"),
        ("import broken", "syntax", "broken.py, line 1"),
        ("import sys\nsys.exit(3)", "exit", "exit was called (SystemExit: 3)"),
        ("raise KeyboardInterrupt", "error", "KeyboardInterrupt"),
        ("input()", "error", "EOFError"),
        ("import os\nos._exit(0)", "crash", "loading homework.py ended the whole process (it exited with status 0)"),
    ],
)
def test_why_a_file_cannot_be_loaded(homework, tmp_path, source, kind, fragment):
    written(tmp_path, "def f(:", "broken.py")
    found = failure(lambda: homework(source))
    assert found.kind == kind
    assert found.function is None
    assert fragment in found.message
    assert "child.py" not in found.message


def test_a_file_that_cannot_be_read(tmp_path, homework):
    assert failure(lambda: Child(tmp_path / "absent.py")).kind == "unreadable"
    assert failure(lambda: Child(tmp_path)).kind == "unreadable"
    for content in ("no notebook", "[]", "{}", '{"cells": [{"cell_type": "code"}]}', '{"cells": 3}', "[" * 100_000):
        found = failure(lambda content=content: homework(content, "homework.ipynb"))
        assert (found.kind, found.message) == (
            "unreadable",
            "homework.ipynb is not a notebook: no list of cells was found",
        )


def test_what_is_meant_for_running_is_not_run(homework):
    runner = homework("def f(): return __name__, __file__\nif __name__ == '__main__':\n    while True: pass\n")
    name, file = result(runner, "f")
    assert name == "homework"
    assert file == str(runner.path)


@pytest.mark.parametrize("name", ["numpy.py", "json.py", "torch.py", "1. homework é.py", "child.py"])
def test_a_file_may_have_any_name(homework, name):
    runner = homework("import dataclasses\n@dataclasses.dataclass\nclass A: a: int = 1\ndef f(): return 1 / 0", name)
    assert runner.signatures() == {"A": ("a",), "f": ()}
    assert f"{name}, line 4: def f(): return 1 / 0" in failure(lambda: result(runner, "f")).message


def test_files_beside_it_are_found_and_none_of_ours(homework, tmp_path):
    (tmp_path / "parts").mkdir()
    written(tmp_path / "parts", "def part(a): raise ValueError('here')", "__init__.py")
    runner = homework(
        "import os\nfrom parts import part\ndef ours():\n    import reports\ndef data(): return os.listdir('.')\n"
    )
    assert runner.signatures() == {"part": ("a",), "ours": (), "data": ()}
    assert failure(lambda: result(runner, "part", 1)).message.endswith(
        f"{Path('parts', '__init__.py')}, line 1: def part(a): raise ValueError('here')"
    )
    assert "No module named 'reports'" in failure(lambda: result(runner, "ours")).message
    assert sorted(result(runner, "data")) == ["homework.py", "parts"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["__init__.py", "homework.py", "parts"]


# notebooks


def notebook(*cells: str | list[str]) -> str:
    text = [{"cell_type": "markdown", "source": "# while True: pass"}]
    return json.dumps({"cells": [*text, *({"cell_type": "code", "source": cell} for cell in cells)]})


def test_a_notebook_is_loaded(homework):
    runner = homework(
        notebook(
            ["%matplotlib inline\n", "import numpy as np\n", "np.dot?\n", "if True:\n", "    !ls\n", "a = 6\n"],
            "%%bash\nrm nothing",
            "%%time\nb = (a\n% 4)",
            "def f(x):\n    text = '''\n!kept'''\n    return x / b, text",
            "def g(x):\n\n    return h(x)",
        ),
        "homework.ipynb",
    )
    assert runner.signatures() == {"f": ("x",), "g": ("x",)}
    assert result(runner, "f", 5) == (2.5, "\n!kept")
    assert failure(lambda: result(runner, "g", 1)).message.endswith("homework.ipynb, code cell 5, line 3: return h(x)")


@pytest.mark.parametrize(
    ("cell", "kind", "fragment"),
    [
        ("x = 1\nx = = 2", "syntax", "homework.ipynb, code cell 2, line 2: invalid syntax\nx = = 2"),
        ("x = 1\nx = y", "error", "homework.ipynb, code cell 2, line 2: x = y"),
        ("x = 1\nwhile x:\n  pass", "timeout", "homework.ipynb, code cell 2, line "),
    ],
)
def test_lines_of_a_notebook(homework, cell, kind, fragment):
    found = failure(lambda: homework(notebook("%load_ext nothing", cell), "homework.ipynb", seconds=0.5))
    assert found.kind == kind
    assert fragment in found.message


# limits


@posix
def test_an_endless_loop_ends(homework):
    runner = homework("def f():\n    print('working')\n    while True:\n        pass\ndef g(): return 1\n", seconds=0.5)
    start = time.monotonic()
    found = failure(lambda: runner.run(Program((Call("g"), Call("f")))))
    assert time.monotonic() - start < 5
    assert (found.kind, found.function) == ("timeout", "f")
    assert "f did not finish within 0.5 s\nhomework.py, line " in found.message
    assert found.output == runner.output == "working\n"
    assert result(runner, "g") == 1  # in a new process


def test_a_training_loop_at_top_level_is_suspected(homework):
    found = failure(lambda: homework("import time\ntime.sleep(100)", seconds=0.5))
    assert found.kind == "timeout"
    assert "is there a training loop at top level? put it under if __name__ == '__main__':" in found.message
    assert "homework.py, line 2: time.sleep(100)" in found.message


@posix
@pytest.mark.parametrize(
    ("body", "kind", "fragment"),
    [
        ("ctypes.string_at(0)", "crash", "f ended the whole process (signal SIGSEGV)\nhomework.py, line 4: ctypes"),
        ("os.abort()", "crash", "signal SIGABRT"),
        ("os._exit(3)", "crash", "it exited with status 3"),
        ("os.kill(os.getpid(), 9)", "memory", "f was ended by the system, most likely for lack of memory"),
        ("os.kill(os.getpid(), 24)", "timeout", "f did not finish"),
        ("os.kill(os.getpid(), 19)", "timeout", "f did not finish within 0.5 s"),
        ("raise KeyboardInterrupt", "error", "f: KeyboardInterrupt"),
        ("sys.stdin.read(); input()", "error", "EOFError"),
        ("[os.write(fd, b'x' * 99) for fd in range(3, 20) if writable(fd)]", "protocol", "its results cannot be read"),
        ("os.closerange(3, 100)", "protocol", "f closed files, or wrote to files, that it did not open"),
        ("while True: print('x' * 1000)", "flood", "f printed more than 0.1 MB"),
        ("os.write(2, b'y' * 150_000)", "flood", "f printed more than 0.1 MB"),
        ("signal.signal(signal.SIGUSR1, signal.SIG_IGN); time.sleep(9)", "timeout", "f did not finish"),
    ],
)
def test_a_homework_that_ends_badly(homework, body, kind, fragment):
    runner = homework(
        f"import ctypes, os, signal, sys, time\nimport fcntl\ndef f():\n    {body}\n"
        "def writable(fd):\n"
        "    try: return fcntl.fcntl(fd, fcntl.F_GETFL) & 3\n"
        "    except OSError: return False\n"
        "def g(): return 1\n",
        seconds=0.5,
        output=100_000,
    )
    found = failure(lambda: result(runner, "f"))
    assert (found.kind, found.function) == (kind, "f")
    assert fragment in found.message
    assert result(runner, "g") == 1


def test_memory_is_limited(homework):
    runner = homework(
        "import numpy as np\nheld = []\n"
        "def f():\n    while True: held.append(np.ones(10**6))\n"
        "def drop_by_drop():\n    while True: held.append(bytearray(1000))\n"
        "def once(n): return len(bytearray(n))\n"
        "def all_at_once(): return np.ones(10**10)\n",
        memory=200 << 20,
    )
    if "memory" in runner.unlimited:
        pytest.skip("this system does not limit memory")
    assert result(runner, "once", 100 << 20) == 100 << 20
    for function in ("f", "drop_by_drop", "all_at_once"):
        found = failure(lambda function=function: result(runner, function))
        assert (found.kind, found.function) == ("memory", function)
        assert "homework.py, line " in found.message
    assert result(runner, "once", 100 << 20) == 100 << 20


@posix
def test_the_other_limits(homework):
    runner = homework(
        "import os, resource, sys\n"
        "def limits(): return [resource.getrlimit(getattr(resource, 'RLIMIT_' + n))[0] for n in ('CORE', 'CPU')]\n"
        "def save():\n    with open('big', 'wb') as f: f.write(bytes(300_000))\n"
        "def environment(): return os.environ['MPLBACKEND'], os.environ['OMP_NUM_THREADS'], 'torch' in sys.modules\n",
        output=100_000,
        file_size=1,
        seconds=5,
    )
    assert runner.unlimited == ()
    core, processor = result(runner, "limits")
    assert core == 0
    assert 15 <= processor <= 30
    assert "File too large" in failure(lambda: result(runner, "save")).message
    assert result(runner, "environment") == ("Agg", "1", False)


def test_a_system_without_limits_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    limits = child_module._Limits(1, 1)
    assert limits.refused == ["files", "memory", "processor time"]


def test_output_is_kept_in_part(homework):
    runner = homework(
        "import sys\nprint('loaded')\n"
        "def f(n):\n    print('start', 'x' * n, 'end é')\n    sys.stderr.write('\\x1b[2J\\ud800')\n"
    )
    result(runner, "f", 10)
    assert runner.output == "loaded\nstart xxxxxxxxxx end é\n\\x1b[2J\\ud800"
    result(runner, "f", 50_000)
    assert len(runner.output) < 5000
    assert runner.output.startswith("loaded\nstart")
    assert "bytes ...]" in runner.output
    kept = runner.output
    runner.close()
    assert runner.output == kept


@pytest.mark.parametrize(
    "body",
    [
        "os.chdir('/')",
        "del sys.stdout",
        "sys.stdout = sys.stderr = None",
        "sys.stdout.close(); sys.stderr.close()",
        "os.close(0); os.close(1); os.close(2)",
        "np.array = np.array_equal = np.ndarray.copy = None",
        "sys.modules.clear()",
        "np.seterr(all='raise'); gc.disable(); sys.settrace(lambda *a: None); sys.setrecursionlimit(100)",
        "signal.alarm(1)",
        "builtins.print = builtins.isinstance = None",
        "threading.Thread(target=lambda: [time.sleep(0.001) for _ in range(10**6)]).start()",
        "subprocess.Popen(['sleep', '60'])",
    ],
)
def test_a_homework_that_disturbs_does_not_hang(homework, body):
    runner = homework(
        "import builtins, gc, os, signal, subprocess, sys, threading, time\nimport numpy as np\n"
        f"def f():\n    {body}\n    return 5\n"
        "def g(x): return x\n",
        seconds=3,
    )
    start = time.monotonic()
    for function, arguments in (("f", ()), ("g", (np.ones(2),)), ("g", (np.ones(2),))):
        with contextlib.suppress(Failure):
            result(runner, function, *arguments)
    runner.close()
    assert time.monotonic() - start < 7


@posix
def test_a_copy_of_the_process_answers_nothing(homework):
    runner = homework("import os\ndef f():\n    os.fork()\n    return 5\ndef g(x): return x\n")
    assert [result(runner, "f"), result(runner, "g", 1), result(runner, "g", 2)] == [5, 1, 2]


@linux
def test_all_that_a_homework_started_is_ended(homework):
    runner = homework(
        "import os, subprocess, threading, time\n"
        "def f():\n    threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "    return os.getpid(), subprocess.Popen(['sleep', '60']).pid\n"
        "def g():\n    f()\n    while True: pass\n",
        seconds=0.5,
    )
    pids = result(runner, "f")
    assert all(map(alive, pids))
    assert failure(lambda: result(runner, "g")).kind == "timeout"
    assert all(map(is_gone, pids))
    pids = result(runner, "f")
    runner.close()
    assert all(map(is_gone, pids))


@linux
def test_a_child_that_nobody_closed_is_ended(tmp_path):
    runner = Child(written(tmp_path, "import os\ndef f(): return os.getpid()"))
    pid = result(runner, "f")
    assert alive(pid)
    del runner
    assert is_gone(pid)


@linux
def test_a_child_ends_with_the_one_who_runs_it(tmp_path):
    path = written(tmp_path, "import os\ndef f(): return os.getpid()")
    program = (
        "import os, sys\nfrom torch_reference.running import *\n"
        "print(Child(sys.argv[1]).run(Program((Call('f'),))).results[0], flush=True)\n"
        "os._exit(0)\n"
    )
    run = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert is_gone(int(run.stdout))


@linux
def test_the_users_interrupt_ends_the_child(homework, interruptible):
    runner = homework("import os, time\ndef f(): time.sleep(60)\ndef g(): return os.getpid()")
    pid = result(runner, "g")
    timer = threading.Timer(0.2, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        result(runner, "f")
    timer.join()
    assert is_gone(pid)
    assert result(runner, "g") != pid


def test_a_closed_child_runs_nothing(homework):
    with homework("def f(): return 1") as runner:
        assert result(runner, "f") == 1
    runner.close()
    with pytest.raises(ValueError, match="expected an open Child"):
        result(runner, "f")


def test_a_child_starts_at_once(homework):
    times = []
    for _ in range(3):
        start = time.monotonic()
        homework("import numpy as np\ndef f(): pass")
        times.append(time.monotonic() - start)
    assert min(times) < 1.5  # 0.2 s on an idle machine; torch alone would take longer than this


# the messages themselves


@pytest.mark.parametrize(
    "value",
    [
        {"array": ["|O", [1], 0, 8]},
        {"array": ["<f8", [2], 0, 8]},
        {"array": ["<f8", [-1], 0, 8]},
        {"array": ["<f8", [1], 0, 80]},
        {"array": ["<f8", [1], -8, 0]},
        {"array": ["V8", [1], 0, 8]},
        {"array": ["f8,f8", [1], 0, 16]},
        {"dict": [[{"dict": []}, 1]]},
        {"code": "1"},
        {"tuple": [], "dict": []},
        {},
    ],
)
def test_what_is_no_value_is_refused(value):
    with pytest.raises((ValueError, TypeError)):
        child_module.decode(value, memoryview(bytes(16)))


def test_a_message_may_come_in_pieces_but_not_be_another():
    sent = bytearray()
    child_module.write_message(lambda part: sent.extend(part[:3]) or len(part[:3]), b"t" * 16, {"a": 1}, b"data")

    def reader(content: bytes) -> Callable[[int], bytes]:
        rest = bytearray(content)

        def read(size: int) -> bytes:
            part = bytes(rest[: min(size, 5)])
            del rest[: len(part)]
            return part

        return read

    header, data = child_module.read_message(reader(sent), b"t" * 16, 100)
    assert (header, bytes(data)) == ({"a": 1}, b"data")
    assert child_module.read_message(reader(b""), b"t" * 16, 100) is None
    assert child_module.read_message(reader(sent[:-1]), b"t" * 16, 100) is None
    for content, token, most in ((sent, b"u" * 16, 100), (sent, b"t" * 16, 5), (sent[:10], b"t" * 16, 100)):
        with pytest.raises(child_module.GarbledError):
            child_module.read_message(reader(content), token, most)
