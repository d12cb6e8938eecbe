"""The cut model equals the model's own loss, and what does not fit is refused with the reason."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from apportion.core.device import Placement, place
from apportion.core.errors import InputError, ModelStructureError
from apportion.models.load import load_staged
from apportion.models.staged import HEAD_BYTES, StagedModel
from apportion.models.structure import find_blocks, find_layout, require_linears
from tests.tiny_models import KINDS, tiny_config

CPU = place("cpu", "float32")


def windows(count: int = 5, tokens: int = 24) -> torch.Tensor:
    return torch.randint(2, 150, (count, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_staged_loss_equals_the_models_own(checkpoint, kind):
    staged = load_staged(str(checkpoint(kind)), CPU)
    ids = windows()
    own = [float(staged.model(input_ids=row[None], labels=row[None]).loss) for row in ids]
    np.testing.assert_allclose(staged.window_nll(ids), own, rtol=1e-5)
    assert staged.verify(ids) <= 1e-5


def test_soft_capping_and_sliding_window_are_really_in_use(checkpoint):
    staged = load_staged(str(checkpoint("gemma2")), CPU)
    logits = staged.logits(staged.embed(windows()).hidden * 100)
    assert float(logits.abs().max()) <= 4.0
    calls = staged.embed(windows()).calls[5]
    masks = [call[1]["attention_mask"] for call in calls]
    assert not torch.equal(masks[0], masks[1])
    assert staged.model.config._attn_implementation == "eager"


@pytest.mark.parametrize("limit", [1 << 12, 1 << 14, HEAD_BYTES])
def test_chunked_logits_do_not_change_the_loss(checkpoint, monkeypatch, limit):
    staged = load_staged(str(checkpoint("llama")), CPU)
    expected = staged.window_nll(windows())
    staged.head_bytes = limit
    np.testing.assert_allclose(staged.window_nll(windows()), expected, rtol=1e-6)


def test_a_block_that_the_forward_skips_is_refused(checkpoint):
    staged = load_staged(str(checkpoint("llama")), CPU)
    staged.model.config.num_hidden_layers = 3  # the forward pass now stops before the last block
    with pytest.raises(ModelStructureError, match="called 3 blocks of 4"):
        staged.embed(windows())


def test_a_model_that_does_more_between_blocks_is_refused(checkpoint):
    staged = load_staged(str(checkpoint("llama")), CPU)
    staged.window_nll = lambda ids: np.asarray([0.5])  # stands for a staged pass that went another way
    with pytest.raises(ModelStructureError, match="block by block"):
        staged.verify(windows())


def test_fused_experts_are_refused_with_the_reason():
    class Expert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(4, 4)
            self.experts = nn.Parameter(torch.zeros(8, 16, 16))

    model = nn.Module()
    model.layers = nn.ModuleList([Expert(), Expert()])
    model.config = tiny_config("llama", 2)
    with pytest.raises(ModelStructureError, match=r"block 0 keeps its experts in tensors of three dimensions"):
        require_linears("model.layers", find_blocks(model)[1])


def test_several_lists_of_blocks_are_refused():
    model = nn.Module()
    model.encoder = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model.decoder = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model.config = tiny_config("llama", 2)
    with pytest.raises(ModelStructureError, match="exactly one list"):
        find_layout(model)


def test_missing_folder_and_no_causal_lm(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        load_staged(str(tmp_path / "absent"), CPU)
    with pytest.raises(InputError, match=r"no config\.json"):
        load_staged(str(tmp_path), CPU)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "architectures": ["T5Model"]}))
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        load_staged(str(tmp_path), CPU)
    save_file({"shared.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="an encoder with a decoder"):
        load_staged(str(tmp_path), CPU)


def test_broken_weight_files_are_refused_and_never_filled_in_at_random(checkpoint, tmp_path):
    whole, broken = checkpoint("llama"), tmp_path / "broken"
    with pytest.raises(InputError, match="is a file, expected a folder"):
        load_staged(str(whole / "config.json"), CPU)
    shutil.copytree(whole, broken)
    tensors = load_file(whole / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load_staged(str(broken), CPU)
    cut = (whole / "model.safetensors").read_bytes()[:5000]
    (broken / "model.safetensors").write_bytes(cut)
    with pytest.raises(InputError, match=r"model\.safetensors: has 5,000 bytes, .* it was cut"):
        load_staged(str(broken), CPU)


def test_a_text_is_embedded_anew_when_the_embedding_has_changed(checkpoint):
    staged, ids = load_staged(str(checkpoint("qwen3")), CPU), windows()
    embedding = staged.model.get_input_embeddings().weight
    first = staged.embed(ids).hidden.clone()
    assert staged.embed(ids.clone()) is staged.embed(ids)
    assert staged.embeddings == 1
    with torch.no_grad():
        embedding[5:] *= 0.5  # written in place
    np.testing.assert_allclose(staged.embed(ids).hidden[ids >= 5], 0.5 * first[ids >= 5])
    embedding.data = embedding.data * 2  # put in its place
    assert staged.embed(ids).hidden.abs().sum() > first.abs().sum()
    assert staged.embeddings == 3


@pytest.mark.parametrize("device", ["mps", "meta", "tpu9", "cuda:x", "cpu:1", "cuda:99"])
def test_devices_that_are_not_here_are_refused(device):
    with pytest.raises(InputError, match=f"--device {device}"):
        place(device)


def test_restore_puts_back_the_checkpoints_own_weights(checkpoint):
    staged = load_staged(str(checkpoint("qwen3")), CPU)
    before = staged.window_nll(windows())
    for path in staged.originals:
        staged.model.get_submodule(path).weight.data = torch.zeros_like(staged.model.get_submodule(path).weight)
    assert not np.allclose(staged.window_nll(windows()), before)
    staged.restore()
    np.testing.assert_array_equal(staged.window_nll(windows()), before)


def test_digest_follows_every_byte(checkpoint):
    first = load_staged(str(checkpoint("llama")), CPU)
    again = load_staged(str(checkpoint("llama")), Placement("cpu", "bfloat16", "asked for"))
    assert first.digest == again.digest
    changed = first.model
    with torch.no_grad():
        changed.model.norm.weight[0] += 1
    assert StagedModel(changed, CPU).digest != first.digest


@pytest.mark.parametrize("kind", KINDS)
def test_loss_to_a_teacher_is_the_cross_entropy_to_its_predictions_and_least_for_itself(checkpoint, kind):
    staged, ids = load_staged(str(checkpoint(kind)), place("cpu", "float32")), windows()
    with torch.inference_mode():
        theirs = staged.model(input_ids=ids).logits[:, :-1].double().log_softmax(-1)
    teacher = staged.last_hidden(ids)
    entropy = staged.window_nll(ids, teacher=teacher)
    for parameter in staged.model.parameters():
        parameter.data = parameter.data * 0.7
    with torch.inference_mode():
        own = staged.model(input_ids=ids).logits[:, :-1].double().log_softmax(-1)
        theirs_again = staged.logits(teacher)[:, :-1].double().log_softmax(-1)  # the head has changed with the rest
    expected = -(theirs_again.exp() * own).sum(-1).mean(1)
    np.testing.assert_allclose(staged.window_nll(ids, teacher=teacher), expected, rtol=1e-5)
    np.testing.assert_allclose(entropy, -(theirs.exp() * theirs).sum(-1).mean(1), rtol=1e-5)


def test_the_head_makes_no_attention_mask(checkpoint, monkeypatch):
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    def refuse(*args, **kwargs):
        raise AssertionError("a mask was made")

    staged = load_staged(str(checkpoint("gemma2")), CPU)
    hidden = staged.last_hidden(windows())
    expected = staged.model(input_ids=windows()).logits
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "eager", refuse)
    with pytest.raises(AssertionError, match="a mask was made"):
        staged.model(input_ids=windows())
    np.testing.assert_allclose(staged.logits(hidden), expected, rtol=1e-4, atol=1e-5)
    assert staged.model.config._attn_implementation == "eager"


def test_the_head_can_be_the_first_that_is_asked(checkpoint):
    """Gemma 2's blocks cannot run without their masks, its head can."""
    hidden = load_staged(str(checkpoint("gemma2")), CPU).last_hidden(windows())
    one, other = (load_staged(str(checkpoint("gemma2")), CPU) for _ in range(2))
    other.last_hidden(windows())
    np.testing.assert_array_equal(one.logits(hidden), other.logits(hidden))
