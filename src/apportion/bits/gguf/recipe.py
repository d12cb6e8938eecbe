"""What is asked of a GGUF file, checked before any work."""

from dataclasses import dataclass
from pathlib import Path

from apportion.bits.gguf.ladders import DEFAULT_TYPES, require_types
from apportion.core.errors import InputError, at_least, require_all
from apportion.models.mixture import Calibration, checks_of


@dataclass(frozen=True, slots=True)
class FileRequest:
    """A budget, and how much is spent on finding the best file within it.

    Attributes:
        max_bytes, bits_per_weight: the budget for the whole file; exactly one is given.
        types: what matrices may have; of those that a matrix's columns cannot hold, it gets llama.cpp's replacement.
        calibration, bos: as `Recipe` has them.
        windows, window_tokens: text on which plans are measured. importance_windows: text behind the importance.
        sequences, sequence_tokens: samples of the costs alone.
        evaluations: plans that are measured. judged_windows: text kept aside for the figures that are reported.
        reuse: evidence of another run of the same model and types: nothing is measured again.
        allow_requantize: take a source of low precision.
    """

    max_bytes: int | None = None
    bits_per_weight: float | None = None
    types: tuple[str, ...] = DEFAULT_TYPES
    calibration: Calibration = None
    bos: bool | None = None
    windows: int = 8
    window_tokens: int = 256
    importance_windows: int = 64
    sequences: int = 32
    sequence_tokens: int = 128
    evaluations: int = 24
    judged_windows: int = 8
    seed: int = 0
    threads: int | None = None
    reuse: Path | None = None
    allow_requantize: bool = False
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False

    def check(self) -> None:
        """Refuse what can be refused without the model, all at once.

        Raises:
            InputError: with every offending value.
        """
        counts = {
            "--windows": self.windows,
            "--importance-windows": self.importance_windows,
            "--sequences": self.sequences,
            "--plans": self.evaluations,
            "--judged-windows": self.judged_windows,
            "--threads": 1 if self.threads is None else self.threads,
        }
        require_all(
            self._one_budget,
            lambda: require_types(self.types),
            *(lambda name=name, value=value: at_least(name, value, 1) for name, value in counts.items()),
            lambda: at_least("--window-tokens", self.window_tokens, 2),
            lambda: at_least("--sequence-tokens", self.sequence_tokens, 2),
            lambda: at_least("--seed", self.seed, 0),
            *checks_of(self.calibration, {"--windows": self.windows}),
        )

    def _one_budget(self) -> None:
        if (self.max_bytes is None) == (self.bits_per_weight is None):
            raise InputError(
                "budget: expected exactly one of --max-bytes and --bits-per-weight", "e.g. --max-bytes 900MB"
            )
        if self.bits_per_weight is not None and not 0 < self.bits_per_weight <= 32:
            raise InputError(f"--bits-per-weight {self.bits_per_weight}: expected a number above 0, e.g. 4.5")

    def budget(self, weights: int) -> int:
        """Bytes of the whole file.

        Args:
            weights: of the model.
        """
        return self.max_bytes if self.max_bytes is not None else int((self.bits_per_weight or 0) * weights / 8)
