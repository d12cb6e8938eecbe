"""The roundings by name. A backend whose package is missing raises when it is asked for, not at import."""

from collections.abc import Callable

from apportion.bits.rounding.gptq import Gptq
from apportion.bits.rounding.hqq import Hqq
from apportion.bits.rounding.nearest import Nearest
from apportion.bits.rounding.protocol import Rounding
from apportion.bits.rounding.quanto import Quanto
from apportion.core.errors import InputError

ROUNDINGS: dict[str, Callable[[], Rounding]] = {"nearest": Nearest, "quanto": Quanto, "hqq": Hqq, "gptq": Gptq}


def rounding_named(name: str) -> Rounding:
    """The rounding of this name.

    Raises:
        InputError: unknown name. MissingExtraError: its package is not installed.
    """
    if name not in ROUNDINGS:
        raise InputError(f"--rounding {name}: unknown", f"choose from {', '.join(ROUNDINGS)}")
    return ROUNDINGS[name]()
