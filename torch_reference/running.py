"""Runs homework given as Python objects, or as a file in a child process with limits on time and memory.

The limits are against accidents: an endless loop, a crash, a flood of output, a `sys.exit`. They are no sandbox: a
homework runs with the rights of whoever runs it, and may read, write and send whatever they may. It cannot, however,
hand code or objects to this process: what comes back from the child is data, and is checked.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, TracebackType
from typing import IO, Any, Protocol

from torch_reference import child
from torch_reference.child import Call, Encoder, Failure, Opaque, Outcome, Program, Result, Scope, Signatures

__all__ = ["Call", "Child", "Failure", "InProcess", "Opaque", "Outcome", "Program", "Result", "Runner"]

GIB = 1 << 30
START_SECONDS = 60.0  # for Python, NumPy and torch to be imported, which is not the homework's time
END_SECONDS = 2.0  # for a child that no longer answers to come to its own end, which then explains why
KEPT = 2000  # characters of the output that are kept from its start, and from its end
MESSAGE = 4000  # characters of a message

ENVIRONMENT = {
    "MPLBACKEND": "Agg",  # nobody is there to close windows
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",  # nothing is left beside the homework
    "PYTHONIOENCODING": "utf-8:backslashreplace",
}


class Runner(Protocol):
    """What runs programs of homework calls."""

    def signatures(self) -> Signatures:
        """Return the parameter names of every public function, "Class" and "Class.method"."""
        ...

    def run(self, program: Program) -> Outcome:
        """Run a program."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class InProcess:
    """Homework given as Python objects, run in this process, without limits.

    What it keeps in its globals it keeps from one program to the next; the globals that a program sets get their old
    values back.

    Args:
        namespace: functions and classes by name, or a module.
    """

    def __init__(self, namespace: Mapping[str, Any] | ModuleType) -> None:
        if isinstance(namespace, ModuleType):
            path = getattr(namespace, "__file__", None)
            folder = os.path.dirname(os.path.abspath(path)) if path else None
            label = os.path.basename(path) if path else f"the module {namespace.__name__}"
            self._scope = Scope(vars(namespace), label, folder, namespace)
        else:
            self._scope = Scope(namespace, "what was given")

    def signatures(self) -> Signatures:
        """Return the parameter names of every public function, "Class" (its constructor) and "Class.method".

        Returns:
            Names without self or cls, with the stars of *args and **kwargs; None where Python does not know them.
            Of a module, those made in it or in a file beside it; of a mapping, all.
        """
        return self._scope.signatures()

    def run(self, program: Program) -> Outcome:
        """Run a program.

        Args:
            program: what to call, with what.

        Returns:
            What came of it.

        Raises:
            Failure: if a function is not there, raises or exits, or returns what a later call cannot use.
            ValueError: if the program itself is no program.
        """
        child.check(program)
        return child.execute(program, self._scope)

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""

    def __enter__(self) -> InProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Child:
    """A homework file, Python or notebook, run in a process of its own, with limits.

    The file is loaded when this is made. What it keeps in its globals it keeps from one program to the next, until a
    `Failure` ends the process ("timeout", "memory", "crash", "flood", "protocol"): the next program then starts a
    new one. The globals that a program sets get their old values back. Not all of this holds on every system:
    `unlimited` says what is not limited.

    Args:
        path: a .py file, or a notebook (.ipynb), of which the code cells are run one after the other, without the
            lines that start with % or !. Other files of its folder can be imported.
        seconds: how long loading may take, and each program.
        memory: bytes that the homework may use, beside what Python and its libraries use.
        output: bytes that it may print.
        file_size: bytes that a file it writes may hold.

    Raises:
        Failure: if the file cannot be loaded.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        seconds: float = 20.0,
        memory: int = 4 * GIB,
        output: int = 10_000_000,
        file_size: int = 100_000_000,
    ) -> None:
        self.path = Path(path).absolute()
        self.seconds = seconds
        self._memory = memory
        self._most_output = output
        self._file_size = max(file_size, 2 * output)
        self._process: _Process | None = None
        self._closed = False
        self._output = ""
        self._signatures: Signatures = {}
        self._refused: tuple[str, ...] = ()
        self._start()

    def signatures(self) -> Signatures:
        """Return the parameter names of every public function, "Class" (its constructor) and "Class.method".

        Returns:
            Names without self or cls, with the stars of *args and **kwargs; None where Python does not know them.
            Those made in the file or in one beside it.
        """
        return dict(self._signatures)

    def run(self, program: Program) -> Outcome:
        """Run a program.

        Args:
            program: what to call, with what.

        Returns:
            What came of it.

        Raises:
            Failure: if a function is not there, raises, exits, crashes or does not finish, prints or returns too
                much, or returns what a later call cannot use.
            ValueError: if the program itself is no program, or this is closed.
        """
        if self._closed:
            raise ValueError("run: expected an open Child, got a closed one")
        child.check(program)
        encoder = Encoder()
        request = {"do": "run", "seconds": self.seconds, "program": child.program_to(program, encoder)}
        if self._process is None or self._process.stopped:
            self._start()
        if program.arrays == "torch":
            self._ask({"do": "torch", "seconds": START_SECONDS}, b"", START_SECONDS)
        header, data = self._ask(request, bytes(encoder.data), self.seconds)
        try:
            results, read, changed, gradients = (child.decode(part, data) for part in header["outcome"])
            return Outcome(results, read, tuple((int(call), str(name)) for call, name in changed), gradients)
        except (ValueError, TypeError, LookupError, RecursionError):
            raise self._broken() from None

    @property
    def output(self) -> str:
        """What the homework printed since its process was started: its start and its end."""
        return self._output if self._process is None else self._process.printed()

    @property
    def unlimited(self) -> tuple[str, ...]:
        """What this system does not limit: "memory", "processor time", "files"."""
        return self._refused

    def close(self) -> None:
        """End the process and all that it started."""
        self._closed = True
        if self._process is not None:
            self._process.stop()
            self._output = self._process.printed()
            self._process = None

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        if not self.path.is_file():
            raise Failure("unreadable", child.printable(f"there is no file {self.path}"))
        self._process = process = _Process(self.path, self._most_output)
        weakref.finalize(self, process.stop)
        self._ask(None, b"", START_SECONDS)
        request = {
            "do": "load",
            "path": str(self.path),
            "seconds": self.seconds,
            "memory": self._memory,
            "file_size": self._file_size,
        }
        try:
            header, _ = self._ask(request, b"", self.seconds)
            signatures = header["signatures"].items()
            self._signatures = {
                str(name): None if names is None else tuple(map(str, names)) for name, names in signatures
            }
            self._refused = tuple(map(str, header["refused"]))
        except (AttributeError, LookupError, TypeError):
            raise self._broken() from None
        except Failure:
            process.stop()
            raise

    def _ask(self, request: Any, data: bytes, seconds: float) -> tuple[Any, memoryview]:
        """Send a request and return its answer, or raise the `Failure` that came instead."""
        assert self._process is not None
        try:
            header, answer = self._process.exchange(request, data, seconds)
        except _StoppedError as stopped:
            raise self._with_output(self._failure(request, stopped.why, seconds)) from None
        except BaseException:  # such as the user's own Ctrl-C
            self._process.stop()
            raise
        failure = header.get("failure")
        if failure is None:
            return header, answer
        if not (isinstance(failure, list) and len(failure) == 3 and all(isinstance(part, str) for part in failure[:2])):
            raise self._broken()
        kind, message, function = failure
        if kind == "memory":  # what is still held may be too much for the next program
            self._process.stop()
        text = child.printable(message[:MESSAGE])
        raise self._with_output(Failure(kind, text, None if function is None else str(function)))

    def _failure(self, request: Any, why: str, seconds: float) -> Failure:
        """Explain why the process had to be ended, or ended itself."""
        process = self._process
        assert process is not None
        function = process.at
        what = function or f"loading {self.path.name}"
        status = process.status
        if why == "ended" and os.name == "posix" and status == -signal.SIGXCPU:
            why = "timeout"
        if why == "timeout":
            kind, text = "timeout", f"{what} did not finish within {seconds:g} s"
            if function is None and request is not None and request["do"] == "load":
                text += ": is there a training loop at top level? put it under if __name__ == '__main__':"
        elif why == "flood":
            kind, text = "flood", f"{what} printed more than {self._most_output / 1e6:g} MB"
        elif why == "garbled" or status == child.PROTOCOL_BROKEN:
            return self._broken()
        elif os.name == "posix" and status == -signal.SIGKILL:
            kind, text = "memory", f"{what} was ended by the system, most likely for lack of memory"
        else:
            kind, text = "crash", f"{what} ended the whole process ({_status(status)})"
            if request is None or request["do"] == "torch":
                text = f"the process for the homework did not start: {process.printed()[-300:]}"
        place = process.place()
        return Failure(kind, child.printable(text + (f"\n{place}" if place else ""))[:MESSAGE], function)

    def _broken(self) -> Failure:
        assert self._process is not None
        self._process.stop()
        function = self._process.at
        what = function or f"loading {self.path.name}"
        text = f"{what} closed files, or wrote to files, that it did not open: its results cannot be read"
        return self._with_output(Failure("protocol", child.printable(text), function))

    def _with_output(self, failure: Failure) -> Failure:
        failure.output = self.output
        return failure


def _status(status: int) -> str:
    """Say how a process ended."""
    if status >= 0:
        return f"it exited with status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


class _StoppedError(Exception):
    """The process is no more: "timeout", "flood", "ended" by itself, "garbled" answers."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class _Process:
    """One child process: its pipes, what it printed, and where it is."""

    def __init__(self, path: Path, most_output: int) -> None:
        self.stopped = False
        self.at: str | None = None  # the function that is being called
        self.status = 0
        self._folder = str(path.parent)
        self._path = str(path)
        self._most_output = most_output
        self._token = secrets.token_bytes(16)
        self._worker: threading.Thread | None = None
        self._text = self._where = ""
        with contextlib.ExitStack() as opened:
            self._log = opened.enter_context(tempfile.TemporaryFile())
            self._faults = opened.enter_context(tempfile.TemporaryFile())
            posix = os.name == "posix"
            faults = self._faults.fileno() if posix else -1
            self._popen = subprocess.Popen(
                [sys.executable, "-u", child.__file__, str(faults), self._token.hex()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                cwd=self._folder,
                env=os.environ | ENVIRONMENT,
                bufsize=0,
                start_new_session=True,
                pass_fds=(faults,) if posix else (),
            )
            opened.pop_all()

    def exchange(self, request: Any, data: bytes, seconds: float) -> tuple[Any, memoryview]:
        """Send a request, unless it is None, and return the answer; after a `_StoppedError` the process is no more."""
        answers: list[tuple[Any, memoryview] | str] = []
        self.at = None
        self._worker = threading.Thread(target=self._converse, args=(request, data, answers), daemon=True)
        self._worker.start()
        end = time.monotonic() + seconds
        why = ""
        while self._worker.is_alive() and not why:
            left = end - time.monotonic()
            self._worker.join(max(0.0, min(left, 0.05)))
            if self._worker.is_alive() and left <= 0:
                why = "timeout"
            if os.fstat(self._log.fileno()).st_size > self._most_output:
                why = "flood"
        if os.fstat(self._log.fileno()).st_size > self._most_output:
            why = "flood"
        answer = answers[0] if answers and not why else why or "ended"
        if not isinstance(answer, str):
            return answer
        if answer == "timeout":
            self._ask_for_place()
        elif answer == "ended":
            self._await_end()
        self.stop()
        raise _StoppedError(answer)

    def _converse(self, request: Any, data: bytes, answers: list[tuple[Any, memoryview] | str]) -> None:
        """Send, and read until the answer is there: a thread's work, as either may block for ever."""
        stdin, stdout = self._pipes()
        try:
            if request is not None:
                child.write_message(stdin.write, self._token, request, data)
            most = child.LARGEST_ANSWER + (64 << 20)
            while (message := child.read_message(stdout.read, self._token, most)) is not None:
                header, content = message
                if not isinstance(header, dict):
                    raise child.GarbledError
                if "at" not in header:
                    answers.append((header, content))
                    return
                self.at = str(header["at"])[:200]
            answers.append("ended")
        except child.GarbledError:
            answers.append("garbled")
        except (OSError, ValueError):
            answers.append("ended")

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        return self._popen.stdin, self._popen.stdout

    def _ask_for_place(self) -> None:
        """Let the process write down where it is, if it still can."""
        if os.name == "posix":
            with contextlib.suppress(OSError):
                os.kill(self._popen.pid, signal.SIGUSR1)
            for _ in range(20):
                time.sleep(0.01)
                if os.fstat(self._faults.fileno()).st_size:
                    time.sleep(0.01)
                    break

    def _await_end(self) -> None:
        """Wait for the process's own end, and leave it to `stop` to take note of it.

        As long as nobody has, its number is not given to another process, and the group can be ended by it.
        """
        end = time.monotonic() + END_SECONDS
        if not hasattr(os, "waitid"):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(END_SECONDS)
            return
        while time.monotonic() < end:
            if os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return
            time.sleep(0.002)
        self.status = child.PROTOCOL_BROKEN  # it closed the line and lives on

    def stop(self) -> None:
        """End the process and its group, and keep what it printed."""
        if self.stopped:
            return
        self.stopped = True
        if os.name == "posix":
            with contextlib.suppress(OSError):
                os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.kill()
        status = self._popen.wait()
        self.status = self.status or status
        if self._worker is not None:
            self._worker.join(1.0)
        if self._worker is None or not self._worker.is_alive():
            for pipe in self._pipes():
                pipe.close()
        self._text = self._printed()
        self._log.close()
        self._where = _start_and_end(self._faults, 20_000)
        self._faults.close()

    def printed(self) -> str:
        """Return the start and the end of what was printed."""
        return self._text if self.stopped else self._printed()

    def _printed(self) -> str:
        return child.printable(_start_and_end(self._log, KEPT).replace("\r\n", "\n").expandtabs())

    def place(self) -> str:
        """Name the line of the homework where the process was, when asked or when it crashed; "" if unknown."""
        for name, number in re.findall(r'(?m)^  File "(.*)", line (\d+)', self._where):
            if child.belongs(name, self._folder):
                with contextlib.suppress(Failure):
                    for _ in child.sources(self._path):  # so that cells of a notebook can be quoted
                        pass
                return child.line_of(name, int(number), self._folder)
        return ""


def _start_and_end(file: IO[bytes], size: int) -> str:
    """Read the start and the end of a file, without moving the position that the child shares."""
    length = os.fstat(file.fileno()).st_size

    def part(start: int, count: int) -> str:
        if hasattr(os, "pread"):
            return os.pread(file.fileno(), count, start).decode("utf-8", "replace")
        file.seek(start)
        return file.read(count).decode("utf-8", "replace")

    if length <= 2 * size:
        return part(0, length)
    return f"{part(0, size)}\n[... {length - 2 * size} bytes ...]\n{part(length - size, size)}"
