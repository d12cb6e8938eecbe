"""What is asked of a game: everything that measured values and written weights depend on, besides the model."""

from dataclasses import dataclass
from pathlib import Path

from apportion.bits.game.players import require_kind
from apportion.bits.rounding import ROUNDINGS, Rounding, rounding_named
from apportion.bits.rounding.tuning import require_tunable
from apportion.core.errors import InputError, require_all
from apportion.formats.compressed_tensors import FORMAT as GRID
from apportion.formats.width import require_bits


@dataclass(frozen=True, slots=True)
class Sampling:
    """Everything that the measured values depend on, besides the model.

    Attributes:
        widths: bits that players may have, rising; SPQE demotes from the last to the first.
        players: `blocks` or `linears`; untie: leave q/k/v and gate/up free of each other.
        calibration: a text file; None samples the windows from the model itself.
        windows, window_tokens: how much calibration text.
        permutations: the paper's M. antithetic: follow each permutation by its reverse.
        rounding_windows: how much of the same text roundings with moments (gptq) see, at most.
        apply_rounding: the rounding that plans are written with, if not the one they are sampled with; what a
            width costs is counted in its format.
        tune: steps by which a written plan's scales are tuned, see `tuning`; tune_windows: on how much of the text,
            at most, and on no more than three quarters of it, two windows at least; all of what a model samples itself.
    """

    widths: tuple[int, ...] = (2, 4)
    players: str = "blocks"
    untie: bool = False
    rounding: str = "nearest"
    group_size: int = 64
    calibration: Path | None = None
    windows: int = 32
    window_tokens: int = 512
    permutations: int = 100
    antithetic: bool = False
    seed: int = 0
    rounding_windows: int = 128
    apply_rounding: str | None = None
    tune: int = 0
    tune_windows: int = 1024

    @property
    def applied(self) -> str:
        """The rounding that the plan is written with."""
        return self.apply_rounding or self.rounding

    def check(self) -> None:
        """Refuse what can be refused without the model, all at once.

        Raises:
            InputError: with every offending value. MissingExtraError: the rounding's package is missing.
        """
        rounding, applied = rounding_named(self.rounding), applied_named(self.applied)
        require_all(
            lambda: require_bits(self.widths, rounding.bits, rounding.name),
            lambda: require_applied(self.widths, self.rounding, self.applied),
            lambda: require_kind(self.players),
            lambda: at_least("--rounding-windows", self.rounding_windows, 1),
            lambda: at_least("--tune-windows", self.tune_windows, 2),
            lambda: at_least("--windows", self.windows, 2 if self.tune and self.calibration is None else 1),
            lambda: at_least("--window-tokens", self.window_tokens, 2),
            lambda: at_least("--permutations", self.permutations, 0),
            lambda: at_least("--group-size", self.group_size, 1),
            lambda: at_least("--seed", self.seed, 0),
            lambda: require_text(self.calibration),
            lambda: require_tunable(applied.name, applied.format, self.tune),
        )


def at_least(name: str, value: int, smallest: int) -> None:
    if value < smallest:
        raise InputError(f"{name} {value}: expected at least {smallest}")


def require_applied(widths: tuple[int, ...], rounding: str, applied: str) -> None:
    if applied != rounding:
        require_bits(widths, applied_named(applied).bits, applied)


def applied_named(name: str) -> Rounding:
    """`rounding_named` for the rounding that plans are written with.

    Raises:
        InputError: unknown name. MissingExtraError: its package is not installed.
    """
    if name not in ROUNDINGS:
        raise InputError(f"--apply-rounding {name}: unknown", f"choose from {', '.join(ROUNDINGS)}")
    return rounding_named(name)


def require_tied(sampling: Sampling) -> None:
    """Refuse untied linears where plans are written in the format of servers, which fuse q/k/v and gate/up.

    Raises:
        InputError: with formats that can.
    """
    if sampling.untie and sampling.applied in ROUNDINGS and rounding_named(sampling.applied).format == GRID:
        raise InputError(
            f"--untie: {sampling.applied} writes {GRID}, and servers that load it (vLLM) fuse q/k/v and gate/up, which "
            "then need equal widths",
            "leave --untie out, or write with --rounding or --apply-rounding quanto or hqq (read by apportion.load)",
        )


def require_text(path: Path | None) -> None:
    if path is not None and not path.is_file():
        raise InputError(f"--calibration {path}: no such file", "give a .txt or .jsonl file, or leave it out")
