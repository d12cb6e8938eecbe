"""First half of the demonstration: the shipped model at 3 bits on average, beside uniform widths and full precision."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from apportion.bits.game import own_nll
from apportion.bits.perplexity import first_windows, perplexity_of
from apportion.bits.quantize import QuantizeRequest, open_model, quantize
from apportion.bits.quantizer import Quantizer
from apportion.bits.recipe import Recipe
from apportion.bits.rounding import full_precision_hidden
from apportion.core.artifact import Json, write_bytes
from apportion.core.device import place
from apportion.demo import calibration_text, heldout_text, model_path
from apportion.models.load import load_staged
from apportion.models.staged import StagedModel

METHODS = ("coopq", "auto")


@dataclass(frozen=True, slots=True)
class BitsPlan:
    """How much is measured.

    Attributes:
        permutations: of coopq, on blocks at 2 and 4 bits. evaluations: that auto may spend, on `players` at `widths`.
        windows, window_tokens: calibration text. text_windows: held-out windows of the same length.
    """

    avg_bits: float = 3.0
    permutations: int = 10
    evaluations: int = 120
    windows: int = 8
    window_tokens: int = 256
    text_windows: int = 48
    widths: tuple[int, ...] = (2, 3, 4)
    players: str = "linears"

    def recipe(self, method: str, calibration: Path) -> Recipe:
        """The recipe of a method."""
        searched = method == "auto"
        return Recipe(
            widths=self.widths if searched else None,
            players=self.players if searched else None,
            rounding="nearest",
            permutations=self.permutations,
            calibration=calibration,
            windows=self.windows,
            window_tokens=self.window_tokens,
        ).for_method(method)


@dataclass(frozen=True, slots=True)
class PlanRow:
    """A row of the table of plans.

    Attributes:
        kl: mean KL divergence from full precision, nats per token, and perplexity: on the held-out text.
        evaluations: coalitions measured to find the plan, its frontier included; 0 where nothing was searched.
    """

    plan: str
    avg_bits: float
    bytes: int
    kl: float
    perplexity: float
    evaluations: int = 0


@dataclass(frozen=True, slots=True)
class BitsShown:
    """The table of plans, and where things lie."""

    rows: tuple[PlanRow, ...]
    files: dict[str, str] = field(default_factory=dict)
    quantized: dict[str, Json] = field(default_factory=dict)


def show_bits(out: Path, plan: BitsPlan) -> BitsShown:
    """Quantize the shipped model by two methods and measure every row of the table.

    Args:
        out: new folder; one checkpoint for each method lies in it, with its report.
    """
    text, heldout = out / "calibration.txt", out / "heldout.txt"
    write_bytes(text, calibration_text().encode())
    write_bytes(heldout, heldout_text().encode())
    results = {}
    for method in METHODS:
        print(f"quantize to {plan.avg_bits:g} bits by {method} ...", file=sys.stderr)
        ask = QuantizeRequest(avg_bits=plan.avg_bits, method=method, evaluations=plan.evaluations)
        results[method] = quantize(str(model_path()), out / method, ask, plan.recipe(method, text))
    quantizer = open_model(str(model_path()), plan.recipe("auto", text))
    judge = judge_for(quantizer, heldout, plan)
    rows = uniform_rows(quantizer, judge)
    rows += [plan_row(f"{method} {plan.avg_bits:g}", results[method], judge) for method in METHODS]
    files = {
        "checkpoint": str(out / "auto"),
        "report": str(out / "auto" / "report" / "report.md"),
        "frontier": str(out / "auto" / "report" / "frontier.png"),
    }
    return BitsShown(tuple(rows), files, results)


@dataclass(frozen=True)
class Judge:
    """Held-out windows, full precision's hidden states on them, and its own entropy there, nats per token."""

    windows: Tensor
    teacher: Tensor
    own: float

    def row(self, staged: StagedModel, name: str, avg_bits: float, size: int, evaluations: int = 0) -> PlanRow:
        """A row for the weights that are in place now."""
        kl = float(staged.window_nll(self.windows, teacher=self.teacher).mean()) - self.own
        return PlanRow(name, avg_bits, size, kl, perplexity_of(staged, self.windows).perplexity, evaluations)


def judge_for(quantizer: Quantizer, heldout: Path, plan: BitsPlan) -> Judge:
    """The held-out text, and what full precision says of it."""
    windows = first_windows(quantizer.tokenizer, heldout, window_tokens=plan.window_tokens, windows=plan.text_windows)
    teacher = full_precision_hidden(quantizer.staged, windows)
    return Judge(windows, teacher, float(own_nll(quantizer.staged, teacher, windows).mean()))


def uniform_rows(quantizer: Quantizer, judge: Judge) -> list[PlanRow]:
    """Full precision and every uniform width."""
    weights = sum(path.stat().st_size for path in model_path().glob("*.safetensors"))
    staged, costs = quantizer.staged, quantizer.costs
    staged.restore()
    found = [judge.row(staged, "full precision", 16.0, weights)]
    for column in reversed(range(len(costs.widths))):
        quantizer.bank.put_all(costs.uniform(column))
        bits, size = costs.widths[column].bits, costs.spent(costs.uniform(column)) + costs.fixed_bytes
        found.append(judge.row(staged, f"uniform {bits:g}", float(bits), size))
    staged.restore()
    return found


def plan_row(name: str, result: Json, judge: Judge) -> PlanRow:
    """A row for a checkpoint as it was written, loaded again."""
    staged = load_staged(result["out"], place())
    return judge.row(staged, name, result["avg_bits"], result["bytes"], result["evaluations"])


def table_text(rows: tuple[PlanRow, ...]) -> str:
    """The table of plans for people."""
    lines = [f"{'plan':<16}{'bits':>6}{'bytes':>13}{'KL':>9}{'perplexity':>12}{'evaluations':>13}"]
    for row in rows:
        spent = f"{row.evaluations:,}" if row.evaluations else "-"
        lines.append(
            f"{row.plan:<16}{row.avg_bits:>6.2f}{row.bytes:>13,}{row.kl:>9.4f}{row.perplexity:>12.4f}{spent:>13}"
        )
    return "\n".join(lines)
