"""One writer at a time: an advisory lock on a file or folder that ends with the process, however it ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apportion.core.errors import ArtifactError


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Hold the lock on an existing file or folder; no file is left behind.

    No lock where the system, or the file system, knows none.

    Raises:
        ArtifactError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # not POSIX
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtifactError(
                f"{path}: is being written by another process", "wait until it ends, or choose another --out"
            ) from error
        except OSError:  # a network folder without locks: refusing it would help nobody
            pass
        yield
    finally:
        os.close(handle)
