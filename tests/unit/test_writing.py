"""What the model writes itself: as many windows side by side as fit, and fewer where memory runs out."""

import pytest
import torch

from apportion.bits.rounding import lesson as lessons
from apportion.core.device import place
from apportion.core.errors import OutOfMemoryError
from apportion.models import text as texts
from apportion.models.load import load_staged
from apportion.models.pretrained import load_tokenizer

WINDOWS = torch.randint(3, 90, (4, 24), generator=torch.Generator().manual_seed(0))


def test_windows_are_written_side_by_side_as_far_as_caches_and_logits_fit(checkpoint, monkeypatch):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    vocabulary = staged.model.config.vocab_size
    asked = []

    def watched(staged, begun, tokens, seed, at_once):
        asked.append(at_once)
        return begun.repeat(1, 2)

    monkeypatch.setattr(lessons, "continue_windows", watched)
    one = 24 * lessons.cache_bytes(staged) + 16 * vocabulary
    for windows in (3, 1, 0):
        monkeypatch.setattr(lessons, "free_bytes", lambda device, free=windows * one: free / lessons.WRITING_SHARE)
        lessons.written_by(staged, WINDOWS[:4], 5, seed=0)
    assert asked == [3, 1, 1]


@pytest.mark.parametrize("fits", [2, 0])
def test_where_memory_runs_out_while_the_model_writes_it_writes_less_at_once(checkpoint, monkeypatch, fits):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    honest, asked = texts.written_on, []

    def limited(staged, prompt, *rest):
        asked.append(len(prompt))
        if len(prompt) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(staged, prompt, *rest)

    monkeypatch.setattr(texts, "written_on", limited)
    if not fits:
        with pytest.raises(OutOfMemoryError, match="a window of 24 tokens") as caught:
            lessons.written_by(staged, WINDOWS[:4], 5, seed=0)
        assert "--tune-scales" in str(caught.value)
        return
    written = lessons.written_by(staged, WINDOWS[:4], 5, seed=0)
    assert torch.equal(written[:, :12], lessons.beginnings_of(WINDOWS[:4], 5, 12))
    assert asked == [5, 2, 2, 1]


def test_a_text_of_the_models_own_is_sampled_in_parts_where_it_does_not_fit_at_once(checkpoint, monkeypatch):
    folder = str(checkpoint("llama"))
    staged, tokenizer = load_staged(folder, place("cpu", "float32")), load_tokenizer(folder)
    ask = {"windows": 4, "window_tokens": 16, "seed": 3}
    whole = texts.sample_calibration(staged, tokenizer, **ask).windows
    assert torch.equal(whole, texts.written_on(staged, whole[:, :1], 16, int(whole[0, 0]), 3))
    honest = texts.written_on

    def limited(staged, prompt, *rest):
        if len(prompt) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(staged, prompt, *rest)

    monkeypatch.setattr(texts, "written_on", limited)
    parts = texts.sample_calibration(staged, tokenizer, **ask).windows
    assert parts.shape == whole.shape
    assert not torch.equal(parts[:2], parts[2:])  # each part has its own seed
