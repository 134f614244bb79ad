"""The default model keeps every contract, scales with its input, and says its latency and size truly."""

import pytest
import torch
from contracts import CAUSAL, OFFLINE, noise

from clearstate.audio.stft import analyse
from clearstate.models import build
from clearstate.models.live import LiveConfig
from clearstate.ssm import use_backend


@pytest.fixture(scope="module")
def model():
    """Fresh weights, shaken: the fresh mask is one everywhere, and would hide what the network does."""
    torch.manual_seed(3)
    model = build("live").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("contract", OFFLINE + CAUSAL, ids=lambda contract: contract.__name__)
def test_contract(model, contract):
    contract(model)


def test_size_and_latency_are_within_what_a_live_model_may_have(model):
    assert sum(p.numel() for p in model.parameters()) == 180_224 <= 300_000
    assert model.latency + model.hop == 512  # samples: 32 ms at 16 kHz


@torch.no_grad()
def test_a_fresh_model_is_transparent_but_for_its_first_random_steps():
    x = noise(1, 16_000)
    y = build("live").eval()(x)
    assert (y - x).square().mean() < 0.1 * x.square().mean()


@torch.no_grad()
@pytest.mark.parametrize("gain_db", [-40.0, -10.0, 20.0])
def test_the_output_scales_with_the_input(model, gain_db):
    x, gain = noise(1, 16_000, 0.05), 10 ** (gain_db / 20)
    torch.testing.assert_close(model(gain * x) / gain, model(x), atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_digital_silence_before_the_signal_changes_nothing_but_the_start(model):
    """The running level does not count silence, so a signal after ten seconds of it is not blown up."""
    x = noise(1, 16_000)
    late = model(torch.cat([torch.zeros(1, 160_000), x], dim=-1))[:, 160_000:]
    assert late.abs().max() < 3 * model(x).abs().max()
    level, _ = model.running_level(torch.full((1, 5, 257), 0.5 + 0j), torch.zeros(1, 2, 1))
    torch.testing.assert_close(level, torch.full((1, 5, 1), 0.5))


def test_the_kernels_and_the_reference_give_the_same_output_and_gradients(model):
    x = noise(2, 4_000)
    gradients = []
    for backend in ("auto", "reference"):
        with use_backend(backend):
            model.zero_grad()
            y = model(x)
            y.square().sum().backward()
        gradients.append([y.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(gradients[0]) == 1 + len(list(model.parameters())), "some parameter got no gradient"
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-4 * max(1.0, float(reference.abs().max())), rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("values", [{}, {"blocks": 2, "bands": 20, "channels": 32, "heads": 2, "states": 5}])
def test_the_compiled_frame_is_the_readable_network(values):
    torch.manual_seed(4)
    model = build("live", **values).eval()
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    state = model.init_state(2)
    for seed in range(3):  # states carried on in both forms
        x = noise(2, model.config.n_fft + model.hop, 0.1, seed)
        spec = analyse(x, model.window, model.hop)
        arguments = state.level, state.bands, state.wide
        before = [s.clone() for s in flat(arguments)]
        ours = model.enhance_spectrum_fused(spec, *arguments)
        readable = model.enhance_spectrum(spec, *arguments)
        for a, b in zip(flat(ours), flat(readable), strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
        for now, then in zip(flat(arguments), before, strict=True):
            assert torch.equal(now, then), "the compiled frame wrote into a state it was given"
        state = state._replace(level=ours[1], bands=ours[2], wide=ours[3])


@torch.no_grad()
def test_the_compiled_frame_follows_a_change_of_the_weights():
    model, x = build("live").eval(), noise(1, 256)
    first, _ = model.step_compiled(x, model.init_state(1))
    model.head.bias.mul_(0.5)
    second, _ = model.step_compiled(x, model.init_state(1))
    assert (second - first).abs().max() > 1e-3


@torch.no_grad()
def test_a_stream_in_the_compiled_step_is_the_offline_output(model):
    x, state, out = noise(2, 20 * model.hop), model.init_state(2), []
    for piece in x.split(model.hop, dim=-1):
        y, state = model.step_compiled(piece, state)
        out.append(y)
    offline = model(x)[:, : -model.latency]
    torch.testing.assert_close(torch.cat(out, -1)[:, model.latency :], offline, atol=2e-5, rtol=1e-3)


def flat(nested):
    return [nested] if isinstance(nested, torch.Tensor) else [x for part in nested for x in flat(part)]


def test_another_config_builds_and_an_unknown_value_is_named():
    assert build("live", blocks=1, bands=16).config == LiveConfig(blocks=1, bands=16)
    with pytest.raises(ValueError, match=r"no config value 'block'.*did you mean 'blocks'"):
        build("live", block=1)
