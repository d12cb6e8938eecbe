"""The fused losses give what the plain ones give (run where a CUDA device is)."""

import pytest
import torch
from torch import Tensor

from apportion.models import loss

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
SHAPES = [(7, 300), (5, 4096), (33, 9001)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def drawn(tokens: int, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, a teacher's, and a text's labels."""
    generator = torch.Generator("cuda").manual_seed(vocabulary)
    logits, wanted = (
        (4 * torch.randn(1, tokens, vocabulary, device="cuda", generator=generator)).to(dtype) for _ in range(2)
    )
    return logits, wanted, torch.randint(vocabulary, (1, tokens), device="cuda", generator=generator)


@pytest.mark.parametrize(("tokens", "vocabulary"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_launch_gives_the_losses_of_plain_operations(
    tokens: int, vocabulary: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, wanted, labels = drawn(tokens, vocabulary, dtype)
    fused = loss.token_nll(logits, labels), loss.teacher_nll(logits, wanted)
    losses, slope = loss.teacher_slope(logits, wanted.clone(), 0.125)
    monkeypatch.setattr(loss, "has_kernels", lambda device: False)
    plain = loss.token_nll(logits, labels), loss.teacher_nll(logits, wanted)
    plain_losses, plain_slope = loss.teacher_slope(logits, wanted.clone(), 0.125)
    for one, other in zip((*fused, losses), (*plain, plain_losses), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
    assert slope.dtype == dtype
    torch.testing.assert_close(slope, plain_slope, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_logits_of_impossible_words_are_numbers() -> None:
    logits, wanted, labels = drawn(4, 5000, torch.bfloat16)
    logits[..., 4000:], wanted[..., 4000:] = -1e9, -1e9
    labels.clamp_(max=3999)
    losses, slope = loss.teacher_slope(logits, wanted.clone(), 1.0)
    assert losses.isfinite()
    assert slope.isfinite().all()
    assert (slope[..., 4000:] == 0).all()
    assert loss.token_nll(logits, labels).isfinite().all()
