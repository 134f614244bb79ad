"""Muon flattens the spectrum of a matrix's step, treats the rest as AdamW does, and resumes."""

import copy

import torch
from torch import nn

from clearstate.train import optim
from clearstate.train.recipe import OptimiserRecipe


def quadratic(model: nn.Module, target: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (model(x) - target).square().mean()


def test_a_matrix_is_brought_near_an_orthogonal_one():
    for shape in ((16, 16), (20, 64), (64, 20)):
        values = torch.linalg.svdvals(optim.orthogonal(torch.randn(shape)))
        assert 0.6 < values.min() <= values.max() < 1.3


def test_small_and_flat_parameters_move_as_with_adamw():
    layer, other = nn.LayerNorm(8), nn.LayerNorm(8)
    recipe = OptimiserRecipe(lr=0.1, weight_decay=0.3)
    ours, adamw = optim.make(layer, OptimiserRecipe(name="muon", lr=0.1, weight_decay=0.3)), optim.adamw(other, recipe)
    x, target = torch.randn(4, 8), torch.randn(4, 8)
    for _ in range(5):
        for model, optimiser in ((layer, ours), (other, adamw)):
            optimiser.zero_grad()
            quadratic(model, target, x).backward()
            optimiser.step()
    torch.testing.assert_close(layer.weight, other.weight, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.bias, other.bias, atol=1e-5, rtol=1e-5)


def test_the_step_of_a_matrix_has_the_size_of_one_of_adamw():
    layer = nn.Conv2d(32, 48, (1, 3))
    before = layer.weight.detach().clone()
    optimiser = optim.make(layer, OptimiserRecipe(name="muon", lr=0.01, weight_decay=0.0))
    layer(torch.randn(2, 32, 4, 9)).square().mean().backward()
    optimiser.step()
    rms = (layer.weight - before).square().mean().sqrt()
    assert 0.1 * 0.01 < rms < 0.4 * 0.01  # AdamW's steps have an RMS of about 0.2 lr in a long run


def test_it_fits_a_linear_map_and_goes_on_from_its_state():
    x, truth = torch.randn(256, 32), torch.randn(32, 32) / 6
    model, recipe = nn.Linear(32, 32), OptimiserRecipe(name="muon", lr=0.02, weight_decay=0.0)
    optimiser = optim.make(model, recipe)

    def steps(optimiser, count):
        for _ in range(count):
            optimiser.zero_grad()
            loss = quadratic(model, x @ truth, x)
            loss.backward()
            optimiser.step()
        return float(loss.detach())

    first = steps(optimiser, 1)
    assert steps(optimiser, 60) < 0.3 * first
    saved, weights = copy.deepcopy(optimiser.state_dict()), {k: v.clone() for k, v in model.state_dict().items()}
    straight = steps(optimiser, 5)
    model.load_state_dict(weights)
    again = optim.make(model, recipe)
    again.load_state_dict(saved)

    assert steps(again, 5) == straight
