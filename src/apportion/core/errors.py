"""One tree of errors; every message says key, value, expectation and remedy.

    ApportionError                exit code 1; shown without a traceback
    +-- InputError                a value the user gave cannot be used (several offenders in one error)
    |   +-- BudgetError           a budget below the smallest or above the largest choice
    |   +-- PromptTooLongError    a prompt that no cut makes fit into the model's context
    +-- ModelStructureError       the checkpoint is no causal LM of a structure this program can cut
    +-- NumericError              a loss is NaN or infinite
    +-- OutOfMemoryError          the device is too small, also for the least that can be run at once
    +-- ArtifactError             a saved value cannot be used
    |   +-- ArtifactExistsError   the output is already there
    |   +-- ArtifactCorruptError  a file does not hold what was written to it
    |   +-- ArtifactMismatchError a saved value belongs to another model, text or setting
    +-- MissingExtraError         an optional package is not installed
    +-- ServiceError              a language-model server did not answer as it must

`assert` is for our own invariants only; whatever a user can cause raises one of these.
"""

from collections.abc import Callable, Sequence
from importlib import import_module


class ApportionError(Exception):
    """Base of every error a user can cause.

    Args:
        problem: key, value and expectation, in one sentence.
        remedy: what the user can do about it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}\n  remedy: {remedy}" if remedy else problem)


class InputError(ApportionError):
    """A value given by the user cannot be used.

    Attributes:
        several: the errors that this one says together; empty for one alone.
    """

    several: tuple["InputError", ...] = ()


def require_all(*checks: Callable[[], object]) -> None:
    """Run every check and raise one InputError with the problems of all that failed, also where a check is several."""
    failed: list[InputError] = []
    for check in checks:
        try:
            check()
        except InputError as error:
            failed += error.several or (error,)
    if len(failed) == 1:
        raise failed[0]
    if failed:
        lines = [f"{i}. {error}" for i, error in enumerate(failed, start=1)]
        found = InputError(f"{len(failed)} values cannot be used:\n" + "\n".join(lines))
        found.several = tuple(failed)
        raise found


def at_least(name: str, value: int, smallest: int) -> None:
    """Refuse a number that is too small, by its option's name.

    >>> at_least("--windows", 0, 1)
    Traceback (most recent call last):
    apportion.core.errors.InputError: --windows 0: expected at least 1
    """
    if value < smallest:
        raise InputError(f"{name} {value}: expected at least {smallest}")


class BudgetError(InputError):
    """A memory budget that no plan can meet, or that every plan leaves unused."""


class PromptTooLongError(InputError):
    """A prompt that exceeds the model's context whatever is left out of its text."""


class ModelStructureError(ApportionError):
    """The model is not a causal LM that can be cut into embed, blocks and head."""


class NumericError(ApportionError):
    """A measured number is not finite."""


class OutOfMemoryError(ApportionError):
    """The device is too small for the least that can be run at once."""


class ArtifactError(ApportionError):
    """A saved value cannot be read or written."""


class ArtifactExistsError(ArtifactError):
    """The output is already there and was not asked to be continued."""


class ArtifactCorruptError(ArtifactError):
    """A file does not hold what was once written to it."""


class ArtifactMismatchError(ArtifactError):
    """A saved value was made from another model, text or setting."""


class MissingExtraError(ApportionError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"the package {package!r} is needed and not installed",
            f"pip install 'apportion[{extra}]'",
        )


def require_package(module: str, package: str, extra: str) -> None:
    """Refuse what an optional package is needed for.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import_module(module)
    except ImportError as error:
        raise MissingExtraError(package, extra) from error


class ServiceError(ApportionError):
    """A language-model server did not answer as it must."""


def first_few(names: Sequence[str], most: int = 8, between: str = ", ") -> str:
    """The first of many in a line, and how many more there are.

    >>> first_few(["a", "b"]), first_few(["a", "b", "c"], 2, "; ")
    ('a, b', 'a; b and 1 more')
    """
    return between.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """What an error says first; its kind where it says nothing.

    >>> first_line(ValueError("no room\\nmore")), first_line(RuntimeError())
    ('no room', 'RuntimeError')
    """
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
