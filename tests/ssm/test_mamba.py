"""The Mamba mixer and its blocks: published names and shapes, the published arithmetic, state carried, gradients."""

import math

import pytest
import torch
from torch.nn import functional as F

from clearstate.ssm import BiMamba, Mamba, MambaBlock, MambaState, RMSNorm, use_backend


def mixer_by_hand(weights: dict[str, torch.Tensor], x: torch.Tensor, rank: int, n: int) -> torch.Tensor:
    """Mamba-1 for one sequence x (t, m) as figure 3 and algorithm 2 of the paper have it, one step after another."""
    d = weights["D"].shape[0]
    u, z = (x @ weights["in_proj.weight"].T).split(d, dim=-1)  # (t, d) each
    taps = weights["conv1d.weight"]  # (d, 1, k)
    k = taps.shape[-1]
    A = -weights["A_log"].exp()
    h = torch.zeros(d, n, dtype=x.dtype)
    rows = []
    for t in range(len(x)):
        v = weights["conv1d.bias"].clone()
        for j in range(k):
            if t - j >= 0:
                v = v + taps[:, 0, k - 1 - j] * u[t - j]
        v = v * torch.sigmoid(v)
        low, B, C = (weights["x_proj.weight"] @ v).split([rank, n, n])
        step = torch.log1p(torch.exp(weights["dt_proj.weight"] @ low + weights["dt_proj.bias"]))
        h = torch.exp(torch.outer(step, torch.ones(n, dtype=x.dtype)) * A) * h + torch.outer(step * v, B)
        y = h @ C + weights["D"] * v
        rows.append(weights["out_proj.weight"] @ (y * z[t] * torch.sigmoid(z[t])))
    return torch.stack(rows)


def shaken(module: torch.nn.Module, by: float = 0.1) -> torch.nn.Module:
    """Parameters moved off their first values, some of which (D = 1, equal rows of A) would hide a mistake."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return module


def test_names_and_shapes_are_those_of_the_published_checkpoints():
    """state-spaces/mamba-130m: width 768, inner 1536, rank 48 = ceil(768 / 16), 16 states, 4 taps."""
    with torch.device("meta"):
        block = MambaBlock(768)
    assert {name: tuple(x.shape) for name, x in block.state_dict().items()} == {
        "norm.weight": (768,),
        "mixer.A_log": (1536, 16),
        "mixer.D": (1536,),
        "mixer.in_proj.weight": (3072, 768),
        "mixer.conv1d.weight": (1536, 1, 4),
        "mixer.conv1d.bias": (1536,),
        "mixer.x_proj.weight": (80, 1536),
        "mixer.dt_proj.weight": (1536, 48),
        "mixer.dt_proj.bias": (1536,),
        "mixer.out_proj.weight": (768, 1536),
    }


def test_the_rank_is_rounded_up_and_may_be_given():
    assert Mamba(17).dt_rank == 2 == Mamba(17).dt_proj.in_features
    assert Mamba(17, dt_rank=5).x_proj.out_features == 5 + 2 * 16


def test_the_first_step_sizes_and_decays_are_those_of_the_paper():
    """Section 3.6: softplus(bias) log-uniform in [0.001, 0.1]; A = -(n + 1), D = 1."""
    mixer = Mamba(256)
    steps = F.softplus(mixer.dt_proj.bias)
    assert steps.min() >= 0.001 * 0.999 and steps.max() <= 0.1 * 1.001
    assert abs(steps.log().mean() - math.log(0.01)) < 0.2  # the middle of the range; 512 draws, deviation 0.06
    torch.testing.assert_close(-mixer.A_log.exp(), -torch.arange(1.0, 17).expand(512, 16))
    assert torch.equal(mixer.D, torch.ones(512))


@torch.no_grad()
@pytest.mark.parametrize("backend", ["numba", "reference", "parallel"])
@pytest.mark.parametrize("options", [{}, {"d_state": 5, "d_conv": 3, "expand": 1, "dt_rank": 2}])
def test_the_mixer_is_the_published_arithmetic(backend, options):
    mixer = shaken(Mamba(9, **options).double())
    x = torch.randn(3, 11, 9, dtype=torch.float64)
    with use_backend(backend):
        y, _ = mixer(x)
    weights = mixer.state_dict()
    expected = torch.stack([mixer_by_hand(weights, row, mixer.dt_rank, mixer.d_state) for row in x])
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_reversed_mixer_is_the_mixer_on_the_sequence_turned_round():
    ahead, back = shaken(Mamba(8)), Mamba(8, reverse=True)
    back.load_state_dict(ahead.state_dict())
    x = torch.randn(2, 13, 8)
    torch.testing.assert_close(back(x)[0], ahead(x.flip(1))[0].flip(1), rtol=1e-6, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("module", [Mamba, MambaBlock])
@pytest.mark.parametrize("lengths", [[1] * 24, [3, 20, 1], [16, 8]])
def test_any_chunking_with_the_state_carried_is_one_pass(module, lengths):
    module = shaken(module(10))
    x = torch.randn(2, 24, 10)
    y, last = module(x)
    state, out = module.init_state(2), []
    for piece in x.split(lengths, dim=1):
        part, state = module(piece, state)
        out.append(part)
    torch.testing.assert_close(torch.cat(out, 1), y, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kept", ["conv", "ssm"])
def test_either_half_of_the_state_is_missed(kept):
    """A twin of the test above that forgets the other half between two chunks."""
    mixer = shaken(Mamba(10))
    x = torch.randn(2, 24, 10)
    y, _ = mixer(x)
    _, state = mixer(x[:, :12])
    half = mixer.init_state(2)._replace(**{kept: getattr(state, kept)})
    assert (mixer(x[:, 12:], half)[0] - y[:, 12:]).abs().max() > 1e-3
    torch.testing.assert_close(mixer(x[:, 12:], state)[0], y[:, 12:], rtol=1e-5, atol=1e-6)


def test_a_fresh_state_is_the_silent_past_in_float32():
    mixer = Mamba(6, d_state=5, d_conv=3)
    state = mixer.init_state(4)
    assert isinstance(state, MambaState) and state.conv.shape == (4, 2, 12) and state.ssm.shape == (4, 12, 5)
    assert all(x.dtype == torch.float32 and not x.any() for x in state)
    x = torch.randn(4, 7, 6)
    torch.testing.assert_close(mixer(x, state), mixer(x), rtol=0, atol=0)


def test_half_precision_keeps_its_state_in_float32_and_stays_near():
    mixer = shaken(Mamba(16))
    x = torch.randn(2, 20, 16)
    half = Mamba(16)
    half.load_state_dict(mixer.state_dict())
    half.bfloat16()
    state, out = half.init_state(2), []
    for piece in x.bfloat16().split(5, dim=1):
        y, state = half(piece, state)
        assert y.dtype == torch.bfloat16 and all(part.dtype == torch.float32 for part in state)
        out.append(y.float())
    expected, _ = mixer(x)
    error = (torch.cat(out, 1) - expected).norm() / expected.norm()
    assert error < 0.03  # bfloat16 keeps 8 bits, 0.4 % a rounding


@pytest.mark.parametrize("reverse", [False, True])
def test_every_gradient_of_the_mixer_is_that_of_finite_differences(reverse):
    mixer = shaken(Mamba(3, d_state=2, d_conv=3, reverse=reverse).double())
    names = list(dict(mixer.named_parameters()))
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    conv = torch.randn(2, 2, 6, dtype=torch.float64, requires_grad=True)
    ssm = torch.randn(2, 6, 2, dtype=torch.float64, requires_grad=True)

    def run(x, conv, ssm, *parameters):
        y, state = torch.func.functional_call(
            mixer, dict(zip(names, parameters, strict=True)), (x, MambaState(conv, ssm))
        )
        return y, *state

    assert torch.autograd.gradcheck(run, (x, conv, ssm, *mixer.parameters()), fast_mode=True)


def test_kernels_and_reference_agree_on_output_and_every_gradient():
    block = shaken(MambaBlock(20))
    x = torch.randn(3, 37, 20, requires_grad=True)
    results = []
    for name in ("numba", "reference"):
        with use_backend(name):
            y, state = block(x)
            loss = y.square().sum() + sum(part.square().sum() for part in state)
            results.append([y, *state, *torch.autograd.grad(loss, [x, *block.parameters()])])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4 * max(1.0, float(slow.detach().abs().max())))


@torch.no_grad()
def test_the_norm_is_the_root_mean_square():
    norm = shaken(RMSNorm(7))
    x = 3 * torch.randn(2, 5, 7)
    torch.testing.assert_close(norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight)


@torch.no_grad()
def test_a_block_adds_what_the_mixer_makes_of_the_normalised_input():
    block = shaken(MambaBlock(6))
    x = torch.randn(2, 9, 6)
    torch.testing.assert_close(block(x)[0], x + block.mixer(block.norm(x))[0])


@torch.no_grad()
def test_both_directions_are_added_and_each_looks_its_own_way():
    both = shaken(BiMamba(6))
    x = torch.randn(2, 9, 6)
    normed = both.norm(x)
    turned = Mamba(6)
    turned.load_state_dict(both.back.state_dict())
    expected = x + both.ahead(normed)[0] + turned(normed.flip(1))[0].flip(1)
    torch.testing.assert_close(both(x), expected, rtol=1e-5, atol=1e-6)
    moved = x.clone()
    moved[:, 4] += 1
    assert torch.equal(both.ahead(moved)[0][:, :4], both.ahead(x)[0][:, :4])
    assert torch.equal(both.back(moved)[0][:, 5:], both.back(x)[0][:, 5:])
    changed = (both(moved) - both(x)).abs().amax((0, 2))
    assert (changed > 1e-6).all(), "a bidirectional block hears a change everywhere"


@torch.no_grad()
def test_other_sequences_of_a_batch_never_change_a_result():
    block = shaken(MambaBlock(6))
    x = torch.randn(3, 9, 6)
    spoiled = x.clone()
    spoiled[1] = torch.nan
    torch.testing.assert_close(block(spoiled)[0][::2], block(x)[0][::2], rtol=0, atol=0)
    assert block(spoiled)[0][1].isnan().all()
