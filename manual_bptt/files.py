"""Writing a file so that a reader sees the whole of it or nothing of it."""

import os
import tempfile
from pathlib import Path


def check_writable(path: Path) -> None:
    """Say before a long computation that its result could not be written.

    Raises:
        OSError: path's folder does not exist or cannot be written to, or path is there and no regular file.
    """
    path = path.resolve()
    if path.is_dir():
        raise IsADirectoryError(f"expected {path} to be a file, but it is a folder")
    if path.exists() and not path.is_file():
        raise OSError(f"expected {path} to be a file, but it is a device, a pipe or a socket")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"expected {path} to lie in a folder that exists, but {path.parent} is none")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"expected a folder that can be written to, got {path.parent}")


def write_atomically(path: Path, data: bytes) -> None:
    """Write data to a temporary file beside path, flush it to the disk, and put it in path's place in one step.

    Raises:
        OSError: It cannot be written; path is then as it was, and nothing else is left behind.
    """
    path = path.resolve()  # what a link points to is replaced, not the link
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
