"""Ways to learn codes that `learners.py` puts beside `rounding.latent`."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apportion.bits.rounding.latent import Latents, Make, Start, StraightThrough
from apportion.models.staged import StagedModel


class Centred(StraightThrough):
    """Positions begin in the middle of their codes."""

    def __init__(self, start: Start, position_rate: float, gain_rate: float = 0.01) -> None:
        super().__init__(start, position_rate, gain_rate)
        self.position = start.codes.float().requires_grad_()


class SignSgd(torch.optim.Optimizer):
    """Each step moves every value by the rate, in the direction of its gradient's sign."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for value in group["params"]:
                value.sub_(value.grad.sign_(), alpha=group["lr"])


class Signed(StraightThrough):
    """AutoRound's: offsets of at most half a code from the checkpoint's own weights, moved by signs of gradients."""

    def __init__(self, start: Start, rate: float = 0.005, gain_rate: float = 0.0005, own: bool = True) -> None:
        super().__init__(start)
        self.rates = (rate, gain_rate)
        self.middle = start.wanted.float().clamp(start.lowest - 0.49, start.highest + 0.49) if own else start.codes
        self.reach = 0.5 if own else 0.75
        self.position = self.middle.detach().float().clone().requires_grad_()

    def optimizer(self) -> torch.optim.Optimizer:
        rate, gain_rate = self.rates
        return SignSgd([{"params": [self.position], "lr": rate}, {"params": [self.gain], "lr": gain_rate}])

    @torch.no_grad()
    def confine(self) -> None:
        self.position.copy_(
            torch.minimum(torch.maximum(self.position, self.middle - self.reach), self.middle + self.reach)
        )


class Relaxed:
    """GSQ's: each code a distribution over itself and its neighbours, sampled by Gumbel noise, ever colder."""

    steady = False  # colder with every step

    def __init__(self, start: Start, rate: float = 0.05, gain_rate: float = 0.01, sure: float = 3.0) -> None:
        self.start, self.rates = start, (rate, gain_rate)
        self.logits = torch.zeros(3, *start.codes.shape, device=start.codes.device)
        self.logits[1] += sure
        self.logits[0][start.codes == start.lowest] = -1e4
        self.logits[2][start.codes == start.highest] = -1e4
        self.logits.requires_grad_()
        self.gain = torch.zeros_like(start.scale).requires_grad_()

    def optimizer(self) -> torch.optim.Optimizer:
        groups = [{"params": [self.logits], "lr": self.rates[0]}, {"params": [self.gain], "lr": self.rates[1]}]
        return torch.optim.Adam(groups, betas=(0.9, 0.95), fused=self.gain.is_cuda)

    def decode(self, dtype: torch.dtype, progress: float) -> Tensor:
        heat = 1.0 * 0.05**progress
        noise = -torch.empty_like(self.logits).exponential_().log()
        share = torch.softmax((self.logits + noise) / heat, dim=0)
        position = self.start.codes + (share[2] - share[0])
        return (position * (self.start.scale * self.gain.exp())).to(dtype)

    def confine(self) -> None:
        pass

    def begin(self, rows: slice, start: Start) -> None:
        raise NotImplementedError("rows of learners.py do not go back")

    @torch.no_grad()
    def found(self) -> tuple[Tensor, Tensor]:
        codes = self.start.codes + self.logits.argmax(0).to(torch.int8) - 1
        return codes, self.start.scale * self.gain.exp()


class Norms:
    """Gains of the blocks' norms, learned too: no bytes; but other tensors than the source's."""

    steady = True

    def __init__(self, staged: StagedModel, rate: float) -> None:
        inside, self.rate, device = f"{staged.layout.prefix}.", rate, staged.placement.device
        named = staged.model.named_parameters()
        vectors = {name: item for name, item in named if item.ndim == 1 and name.startswith(inside)}
        self.own = {name[:-7]: item.data for name, item in vectors.items() if name.endswith(".weight")}
        self.gains = {path: torch.zeros(item.shape, device=device).requires_grad_() for path, item in self.own.items()}

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(list(self.gains.values()), lr=self.rate, betas=(0.9, 0.95))

    def weights(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {path: (item.float() * (1 + self.gains[path])).to(dtype) for path, item in self.own.items()}

    def confine(self) -> None:
        pass


class Outside:
    """The embedding, and the head that is tied to it, learned too: no bytes either. Rates are shares of its size."""

    steady = True

    def __init__(self, staged: StagedModel, rate: float) -> None:
        found = staged.model.get_input_embeddings()
        assert found.weight is staged.model.get_output_embeddings().weight, "only where both are one"
        self.path = next(name for name, module in staged.model.named_modules() if module is found)
        self.own = found.weight.data
        self.size = float(self.own.float().square().mean().sqrt())
        self.moved, self.rate = torch.zeros_like(self.own, dtype=torch.float32).requires_grad_(), rate

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([self.moved], lr=self.rate, betas=(0.9, 0.95), fused=self.moved.is_cuda)

    def weights(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {self.path: (self.own.float() + self.size * self.moved).to(dtype)}

    def confine(self) -> None:
        pass


class Slow(StraightThrough):
    """Adam remembers the size of gradients for a hundred steps, not twenty."""

    def optimizer(self) -> torch.optim.Optimizer:
        found = super().optimizer()
        for group in found.param_groups:
            group["betas"] = (0.9, 0.99)
        return found


@dataclass(frozen=True)
class Plain:
    """A weight that is no grid's."""

    weight: Tensor

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return self.weight.to(dtype)


class With:
    """`Latents` and other things beside them."""

    def __init__(self, latents: Latents, others: list[Norms | Outside]) -> None:
        self.latents, self.others = latents, others
        self.codes: list[Any] = [*latents.codes, *others]

    def weights(self, dtype: torch.dtype, progress: float) -> dict[str, Tensor]:
        found = self.latents.weights(dtype, progress)
        for other in self.others:
            found |= other.weights(dtype)
        return found

    @torch.no_grad()
    def found(self) -> dict[str, Any]:
        plain = {path: Plain(item) for other in self.others for path, item in other.weights(torch.float32).items()}
        return {**self.latents.found(), **plain}


def scales_alone(start: Start) -> StraightThrough:
    """Codes stay as they are."""
    return StraightThrough(start, position_rate=0)


def straight(position: float = 0.01, gain: float = 0.01) -> Make:
    return lambda start: StraightThrough(start, position, gain)
