"""Baseline scores against naive implementations on tiny models of three architectures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from apportion.bits.compare.activations import block_flow
from apportion.bits.compare.gradients import weight_gradients
from apportion.bits.compare.methods import Context
from apportion.bits.compare.scores import activation, lim, llm_mq, one_at_a_time, share_above, zd
from apportion.bits.game import MeasuredGame
from apportion.bits.quantizer import Quantizer, take_samples
from apportion.bits.recipe import Recipe
from apportion.core.device import place
from apportion.models.load import load_staged
from apportion.models.mixture import read_mixture
from apportion.models.pretrained import load_tokenizer
from tests.tiny_models import KINDS

Make = Callable[..., Path]


@pytest.fixture(scope="module", params=KINDS)
def context(request: pytest.FixtureRequest, checkpoint: Make, text_file: Path, tmp_path_factory) -> Context:  # type: ignore[no-untyped-def]
    model = str(checkpoint(request.param, blocks=3))
    folder = tmp_path_factory.mktemp("context")
    recipe = Recipe(group_size=32, calibration=text_file, windows=3, window_tokens=32, permutations=2)
    quantizer = Quantizer(load_staged(model, place("cpu", "float32")), load_tokenizer(model), recipe)
    samples = take_samples(quantizer, folder / "samples")
    text = read_mixture(text_file, quantizer.tokenizer, 32).draw(3, seed=0)
    return Context(MeasuredGame(quantizer.bank, text), samples, folder)


def test_gradients_equal_finite_differences_and_leave_the_model_as_it_was(context: Context) -> None:
    staged, windows = context.game.bank.staged, context.game.text.windows
    before = {name: (value.clone(), value.dtype) for name, value in staged.model.state_dict().items()}
    gradients = weight_gradients(staged, windows)
    for name, value in staged.model.state_dict().items():
        assert torch.equal(value, before[name][0])
        assert value.dtype == before[name][1]
    assert not any(p.requires_grad or p.grad is not None for p in staged.model.parameters())
    assert sorted(gradients) == sorted(staged.originals)
    for path in (staged.layout.path(0, "self_attn.q_proj"), staged.layout.path(2, "mlp.down_proj")):
        weight = staged.model.get_submodule(path).weight
        direction = gradients[path] / gradients[path].norm()
        values = []
        for step in (1e-2, -1e-2):
            weight.data = staged.originals[path].float() + step * direction
            values.append(float(staged.window_nll(windows).mean()))
        staged.restore()
        assert np.isclose((values[0] - values[1]) / 2e-2, float(gradients[path].norm()), rtol=2e-2)


def test_gradients_leave_every_tensor_where_it_was(checkpoint: Make) -> None:
    """Graphs of the game were recorded before and are replayed after: they read norms and biases where those were."""
    staged = load_staged(str(checkpoint("qwen3")), place("cpu", "bfloat16"))
    held = [*staged.model.parameters(), *staged.model.buffers()]
    before = [(item.data_ptr(), item.dtype) for item in held]
    weight_gradients(staged, torch.randint(2, 150, (2, 24), generator=torch.Generator().manual_seed(0)))
    assert [(item.data_ptr(), item.dtype) for item in held] == before


def test_llm_mq_is_the_inner_product_of_gradient_and_rounding_error(context: Context) -> None:
    found = llm_mq(context.game.bank, context.game.text, context.samples)
    model = load_staged(context.game.bank.staged.source, place("cpu", "float32")).model.requires_grad_(True)
    windows = context.game.text.windows
    model(input_ids=windows, labels=windows, use_cache=False).loss.backward()
    bank = context.game.bank
    for player in context.samples.costs.players:
        score = {}
        for bits in (0, 1):
            score[bits] = sum(
                abs(float((weight.grad * (weight.detach() - bank.weight(path, bits))).sum()))
                for path in (context.game.bank.staged.layout.path(player.block, name) for name in player.linears)
                for weight in [model.get_submodule(path).weight]
            )
        assert np.isclose(found.linear[player.block], score[0] - score[1], rtol=1e-3)
    assert not found.pair.any()


def test_block_flow_equals_hidden_states_of_the_model(context: Context) -> None:
    staged, windows = context.game.bank.staged, context.game.text.windows
    flow = block_flow(staged, windows)
    states: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(
            lambda _, args, out: states.extend((args[0], out[0] if isinstance(out, tuple) else out))
        )
        for block in staged.blocks
    ]
    with torch.no_grad():
        staged.model(input_ids=windows, use_cache=False)
    for hook in hooks:
        hook.remove()
    for block in range(3):
        inputs, outputs = (states[2 * block + i].flatten(1) for i in (0, 1))
        assert np.isclose(flow.cosine[block], torch.cosine_similarity(inputs, outputs).mean().item(), rtol=1e-4)
        assert np.isclose(flow.norm[block], np.mean([out.norm().item() for out in outputs]), rtol=1e-4)


def test_lim_activation_and_zd_keep_their_authors_order(context: Context) -> None:
    flow = block_flow(context.game.bank.staged, context.game.text.windows)
    lim_cost = lim(context.game.bank, context.game.text, context.samples).linear
    assert np.allclose(lim_cost, 1 - flow.cosine)
    assert (lim_cost >= 0).all()
    assert np.allclose(activation(context.game.bank, context.game.text, context.samples).linear, flow.norm)
    shares = []
    for block in context.game.bank.staged.layout.linears:
        number = len(shares)
        weights = torch.cat([context.game.bank.staged.linear(number, name).weight.flatten() for name in block]).numpy()
        shares.append(float(((weights - weights.mean()) / weights.std() > 1).mean()))
    assert np.allclose(zd(context.game.bank, context.samples).linear, 1 - np.asarray(shares), atol=1e-6)


def test_share_above_one_standard_deviation() -> None:
    values = torch.tensor([-3.0, 0.0, 0.0, 0.0, 0.0, 3.0])
    assert share_above(values, two_sided=False) == pytest.approx(1 / 6)
    assert share_above(values, two_sided=True) == pytest.approx(2 / 6)


def test_one_at_a_time_is_the_difference_of_two_values_per_player(context: Context) -> None:
    game = MeasuredGame(context.game.bank, context.game.text)
    found = one_at_a_time(game, context.samples)
    assert game.counts.evaluations == 4
    high, second = game.values([(1, 1, 1), (1, 0, 1)]).mean(1)
    assert found.linear[1] == second - high
