"""Values by full precision's predictions: mean KL divergence from it, from the game to result and report."""

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div

from apportion.bits.game import MeasuredGame, full_precision_nll, own_nll
from apportion.bits.plan import plan_from
from apportion.bits.quantize import QuantizeRequest, quantize
from apportion.bits.quantizer import Quantizer, take_samples
from apportion.bits.recipe import Recipe
from apportion.bits.rounding import full_precision_hidden
from apportion.bits.vocabulary import rounded
from apportion.core.artifact import read_json
from apportion.core.device import place
from apportion.core.errors import ArtifactMismatchError, InputError
from apportion.core.log import AppendLog
from apportion.formats import grid_width
from apportion.models.load import load_staged
from apportion.models.mixture import read_mixture
from apportion.models.pretrained import load_tokenizer
from apportion.models.staged import StagedModel
from apportion.models.vocabulary import vocabulary_of
from tests.recipes import small
from tests.tiny_models import KINDS


def quantizer_of(folder: Path, text: Path, **changes: object) -> Quantizer:
    model = str(folder)
    return Quantizer(load_staged(model, place("cpu", "float32")), load_tokenizer(model), small(text, **changes))


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_less_full_precisions_own_is_the_kl_of_the_whole_models_logits(
    checkpoint: Callable[..., Path], text_file: Path, kind: str
) -> None:
    quantizer = quantizer_of(checkpoint(kind, blocks=2), text_file)
    staged, text = quantizer.staged, quantizer.chosen(3)
    teacher = full_precision_hidden(staged, text.windows)
    own = full_precision_nll(staged, text, teacher)
    game = MeasuredGame(quantizer.bank, text, teacher=lambda: teacher)
    every = list(product((0, 1), repeat=2))
    found = game.values(every)

    staged.restore()
    wanted = log_shares(staged, text.windows)
    for assignment, value in zip(every, found, strict=True):
        game.bank.put_all(assignment)
        naive = kl_div(log_shares(staged, text.windows), wanted, log_target=True, reduction="none").sum(-1).mean(1)
        staged.restore()
        np.testing.assert_allclose(value - own, naive.numpy(), rtol=2e-3, atol=2e-6)
    assert (found > own).all()  # Gibbs: on every window no other predictions are as near as full precision's own
    assert np.ptp(found.mean(1)) > 1e-4


def test_values_of_the_two_labels_are_kept_apart(
    checkpoint: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    folder = checkpoint("llama", blocks=2)
    by_text = take_samples(quantizer_of(folder, text_file), tmp_path / "text")
    by_predictions = take_samples(quantizer_of(folder, text_file, labels="predictions"), tmp_path / "predictions")
    assert "labels" not in by_text.settings  # as before there was a choice: older folders go on
    assert by_predictions.settings["labels"] == "predictions"
    assert by_predictions.mean((0, 0)) != by_text.mean((0, 0))
    with pytest.raises(ArtifactMismatchError, match="labels"):
        take_samples(quantizer_of(folder, text_file, labels="predictions"), tmp_path / "text", resume=True)
    again = take_samples(quantizer_of(folder, text_file, labels="predictions"), tmp_path / "predictions", resume=True)
    assert again.means() == by_predictions.means()


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@pytest.mark.parametrize("bits", [2, 8])
def test_full_precisions_predictions_are_by_its_own_head_whatever_is_in_place_of_it(
    checkpoint: Callable[..., Path], text_file: Path, kind: str, bits: int
) -> None:
    quantizer = quantizer_of(checkpoint(kind, blocks=2), text_file)
    staged, windows = quantizer.staged, quantizer.chosen(3).windows
    teacher = full_precision_hidden(staged, windows)
    matrices, _ = vocabulary_of(staged)
    own, wanted = own_nll(staged, teacher, windows), log_shares(staged, windows)
    with staged.in_place(rounded(staged, dict.fromkeys(matrices, grid_width(bits, 32)))):
        found = staged.window_nll(windows, teacher=teacher) - own
        other = log_shares(staged, windows)
    naive = kl_div(other, wanted, log_target=True, reduction="none").sum(-1).mean(1)
    np.testing.assert_allclose(found, naive.numpy(), rtol=2e-3, atol=2e-6)
    assert (found > 0).all()
    torch.testing.assert_close(log_shares(staged, windows), wanted)  # and its own weights are back


def log_shares(staged: StagedModel, windows: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of next tokens by the whole model as it is now."""
    with torch.inference_mode():
        return staged.model(windows, use_cache=False).logits[:, :-1].double().log_softmax(-1)


def test_a_file_of_few_bytes_is_judged_by_kl_embedding_and_head_included(
    checkpoint: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    folder = checkpoint("llama", blocks=2)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    ask = QuantizeRequest(max_bytes=int(0.45 * size), evaluations=30, finalists=2)
    result = quantize(str(folder), tmp_path / "q", ask, small(text_file, players="linears", widths=(2, 4, 8)))
    assert result["vocabulary"]["widths"]
    text = quantizer_of(folder, text_file).chosen(4).windows
    full, written = (load_staged(str(item), place("cpu", "float32")) for item in (folder, tmp_path / "q"))
    naive = kl_div(log_shares(written, text), log_shares(full, text), log_target=True, reduction="none")
    assert result["kl_plan"] == pytest.approx(float(naive.sum(-1).mean()), rel=2e-3)


def test_what_was_asked_of_a_folder_before_there_was_a_choice_is_asked_still(text_file: Path) -> None:
    recipe = small(text_file)
    assert "labels" not in recipe.for_method("coopq").asked()
    assert recipe.for_method("auto").asked()["labels"] == "predictions"


def test_a_game_beside_another_has_the_same_labels(
    checkpoint: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    quantizer = quantizer_of(checkpoint("llama", blocks=2), text_file, labels="predictions")
    text = quantizer.chosen(2)
    game = MeasuredGame(quantizer.bank, text, teacher=partial(quantizer.teacher, text.windows))
    with AppendLog(tmp_path / "values.log", {}, resume=False) as log:
        beside = game.beside(log, {})
        assert np.array_equal(beside.values([(0, 1)]), game.values([(0, 1)]))


def test_the_search_looks_at_predictions_and_says_how_far_its_plan_is(
    checkpoint: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    ask = QuantizeRequest(avg_bits=3, evaluations=30, finalists=2)
    recipe = small(text_file, players="linears", widths=(2, 3, 4), apply_rounding="gptq")
    result = quantize(str(checkpoint("llama", blocks=2)), tmp_path / "q", ask, recipe)
    assert result["labels"] == "predictions"
    assert result["kl_plan"] == pytest.approx(result["nll_plan"] - result["nll_fp"])
    assert result["kl_plan"] > 0
    assert 0 < result["kl_judged"] < result["nll_judged"]
    assert plan_from(read_json(tmp_path / "q" / "plan.json")).judged_kl == result["kl_judged"]
    page = (tmp_path / "q" / "report" / "report.md").read_text()
    assert "Mean cross-entropy to full precision's predictions" in page
    assert f"Mean KL divergence of this plan from full precision: {result['kl_plan']:.4f}" in page


@pytest.mark.parametrize("method", ["auto", "coopq"])
def test_text_labels_are_the_papers_and_can_be_asked_for(
    checkpoint: Callable[..., Path], text_file: Path, tmp_path: Path, method: str
) -> None:
    ask = QuantizeRequest(avg_bits=3, evaluations=20, method=method)
    labels = "text" if method == "auto" else None
    result = quantize(str(checkpoint("llama", blocks=2)), tmp_path / "q", ask, small(text_file, labels=labels))
    assert (result["labels"], result["kl_plan"], result["kl_judged"]) == ("text", None, None)
    assert "KL" not in (tmp_path / "q" / "report" / "report.md").read_text()


def test_unknown_labels_are_refused_before_any_work() -> None:
    with pytest.raises(InputError, match="--labels teacher: expected text or predictions"):
        Recipe(labels="teacher").check()


def test_memory_that_runs_out_while_full_precision_is_asked_is_handled(
    checkpoint: Callable[..., Path], text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = load_staged(str(checkpoint("llama", blocks=2)), place("cpu", "float32"))
    windows = read_mixture(text_file, load_tokenizer(str(checkpoint("llama", blocks=2))), 24).draw(4, seed=0).windows
    wanted = full_precision_hidden(staged, windows)
    run = staged.run_block

    def crowded(block: int, hidden: torch.Tensor, embedded: object) -> torch.Tensor:
        if len(hidden) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(block, hidden, embedded)  # type: ignore[arg-type]

    monkeypatch.setattr(staged, "run_block", crowded)
    torch.testing.assert_close(full_precision_hidden(staged, windows), wanted)
    assert staged.given_up[-1] == f"{2 * windows.shape[1]} tokens at once"
