"""The folder that a long command writes to: its own, locked, apart from everything that it reads."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from apportion.core.artifact import PARTS, disk_error, require_free
from apportion.core.errors import ArtifactExistsError
from apportion.core.lock import sole_writer

SAMPLE_FOLDER = "samples"
REPORT_FOLDER = "report"
WORK_FOLDER = "work"  # pieces of rounding and tuning that a killed run left; removed when all is written
OWN_FOLDERS = (SAMPLE_FOLDER, REPORT_FOLDER, WORK_FOLDER)
"""What runs make beside what they write: nothing of a source's own is copied to these names."""


@contextmanager
def output_folder(out: Path, kind: str, *, resume: bool = False, reads: Sequence[str | Path] = ()) -> Iterator[Path]:
    """Hold a run's output folder for this process alone; one that is left empty is removed again.

    Files that a killed run had begun to write are removed.

    Args:
        kind: of the run, as in its `run.json`: only a run of the same kind is resumed.
        reads: models and files that the run reads; hub names among them are no folders and do no harm.

    Raises:
        ArtifactExistsError: it holds something that is not this run's, or lies in what is read.
        ArtifactError: another process is writing to it, or the system refuses.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as home:
    ...     with output_folder(Path(home) / "new" / "run", "example") as out:
    ...         print(out.is_dir())
    ...     print((Path(home) / "new").exists())
    True
    False
    """
    require_apart(out, reads)
    require_free(out, resume=resume, kind=kind)
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(out, error) from error
    try:
        with sole_writer(out):
            require_free(out, resume=resume, kind=kind)  # another run may have begun between the look and the lock
            for left in out.rglob(PARTS):  # by a run that was killed: nobody else writes here now
                left.unlink(missing_ok=True)
            yield out
    finally:
        for folder in missing:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()


def require_apart(out: Path, reads: Sequence[str | Path]) -> None:
    """Refuse to write into what is read.

    Raises:
        ArtifactExistsError: naming both.
    """
    target = out.resolve()
    for source in map(Path, reads):
        if source.is_dir() and (target == source.resolve() or source.resolve() in target.parents):
            raise ArtifactExistsError(
                f"--out {out}: lies in {source}, which is only read", "choose an --out outside of it"
            )
