"""Two witnesses that share code are one witness: neither package imports the other.

Would catch: an import, anywhere in a file or through importlib, that makes the hand-written derivatives and their
reference depend on each other, one that appears only at run time, a derivative written by hand in the reference, and
this very test grown blind: it is shown offending files.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HAND_WRITTEN = ROOT / "manual_bptt"
REFERENCE = ROOT / "torch_reference"
IMPORTERS = {"import_module", "__import__", "find_spec", "run_module"}


def files(package: Path) -> list[Path]:
    """Every module of a package; the command line, which puts the two side by side, aside."""
    return [path for path in sorted(package.rglob("*.py")) if "cli" not in path.relative_to(package).parts]


def imported(source: str) -> Iterator[str]:
    """Name whatever the source imports: by statement, anywhere in it, or by a call that takes a name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in IMPORTERS:
                yield from (
                    arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
                )


def imports(source: str, package: str) -> bool:
    """Whether the source imports the package or anything in it."""
    return any(name.split(".")[0] == package for name in imported(source))


def hand_written_derivatives(source: str) -> list[str]:
    """Name the classes that derive from autograd's Function, and the functions called backward, vjp or jvp."""
    nodes = list(ast.walk(ast.parse(source)))
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    functions = [node.name for node in nodes if isinstance(node, ast.FunctionDef)]
    derived = [node.name for node in classes if any("Function" in ast.unparse(base) for base in node.bases)]
    return derived + [name for name in functions if re.search(r"backward|vjp|jvp", name)]


def test_there_are_files_to_look_at():
    assert {"recurrence.py", "eager.py", "network.py"} <= {path.name for path in files(HAND_WRITTEN)}
    assert {"network.py", "gradients.py", "numerical.py"} <= {path.name for path in files(REFERENCE)}


@pytest.mark.parametrize("path", files(HAND_WRITTEN), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_hand_written_package_does_not_import_the_reference(path):
    assert not imports(path.read_text("utf-8"), "torch_reference")


@pytest.mark.parametrize("path", files(REFERENCE), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_reference_neither_imports_the_hand_written_package_nor_derives_by_hand(path):
    source = path.read_text("utf-8")
    assert not imports(source, "manual_bptt")
    assert hand_written_derivatives(source) == []


OFFENDING = {
    "import": "import torch_reference\n",
    "submodule": "import numpy as np, torch_reference.numerical as numerical\n",
    "from": "from torch_reference import gradients\n",
    "from-submodule": "from torch_reference.network import unrolled\n",
    "in-a-function": "def f():\n    if True:\n        from torch_reference import gradients\n",
    "in-a-try": "try:\n    import torch_reference\nexcept ImportError:\n    pass\n",
    "importlib": "import importlib\nimportlib.import_module('torch_reference.gradients')\n",
    "import-module": "from importlib import import_module\nx = import_module('torch_reference')\n",
    "dunder": "__import__('torch_reference')\n",
}
INNOCENT = {
    "docstring": '"""torch_reference is held against this."""\n',
    "string": "name = 'torch_reference'\n",
    "another-package": "import torch_reference_of_somebody_else\n",
    "relative": "from . import torch_reference_like\nfrom .x import y\n",
}


@pytest.mark.parametrize("source", OFFENDING.values(), ids=list(OFFENDING))
def test_an_offending_file_is_seen(source, tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "offending.py").write_text(source, "utf-8")
    (path,) = files(tmp_path)
    assert imports(path.read_text("utf-8"), "torch_reference")


@pytest.mark.parametrize("source", INNOCENT.values(), ids=list(INNOCENT))
def test_an_innocent_file_is_left_alone(source):
    assert not imports(source, "torch_reference")


def test_the_command_line_alone_is_left_out(tmp_path):
    for name in ("cli", "client", "kernels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "module.py").write_text("", "utf-8")
    (tmp_path / "cli.py").write_text("", "utf-8")
    assert {path.relative_to(tmp_path).as_posix() for path in files(tmp_path)} == {
        "cli.py",
        "client/module.py",
        "kernels/module.py",
    }


def test_a_derivative_written_by_hand_is_seen():
    source = "class Tanh(torch.autograd.Function):\n    @staticmethod\n    def backward(ctx, dh):\n        return dh\n"
    assert hand_written_derivatives(source) == ["Tanh", "backward"]
    assert hand_written_derivatives("def tanh_vjp(h): ...\n") == ["tanh_vjp"]


def loaded_with(package: Path, root: Path) -> set[str]:
    """Import a package, its command line (cli and __main__) aside, in a fresh Python; return all modules loaded."""
    paths = [path.relative_to(root).with_suffix("") for path in files(package) if path.stem != "__main__"]
    names = [".".join(path.parts).removesuffix(".__init__") for path in paths]
    program = (
        "import importlib, json, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout))


@pytest.mark.parametrize(
    ("package", "other"), [(HAND_WRITTEN, REFERENCE), (REFERENCE, HAND_WRITTEN)], ids=lambda path: path.name
)
def test_importing_one_does_not_load_the_other(package, other):
    loaded = loaded_with(package, ROOT)
    assert package.name in loaded
    assert other.name not in loaded


def test_an_import_at_run_time_is_seen(tmp_path):
    """Hidden from the reading of the source, found by running it."""
    for name, source in (("offender", "exec('import accomplice')\n"), ("accomplice", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(source, "utf-8")
    assert "accomplice" in loaded_with(tmp_path / "offender", tmp_path)
