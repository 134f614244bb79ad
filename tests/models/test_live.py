"""The default model keeps every contract, scales with its input, and says its latency and size truly."""

import pytest
import torch
from contracts import CAUSAL, OFFLINE, noise

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
    assert sum(p.numel() for p in model.parameters()) == 198_512 <= 300_000
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


CONFIGS = [
    {},
    {"blocks": 2, "bands": 20, "channels": 32, "heads": 2, "states": 5},
    {"n_fft": 320, "hop": 80, "bands": 18, "fine_channels": 16, "fine_blocks": 2, "wide": 32, "level_seconds": 0.2},
    {"fine_blocks": 0, "blocks": 1, "bands": 34, "channels": 64, "heads": 1},
]


def shaken(**values):
    torch.manual_seed(4)
    model = build("live", **values).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@torch.no_grad()
@pytest.mark.parametrize("values", CONFIGS)
def test_the_compiled_step_is_the_readable_network(values, monkeypatch):
    model = shaken(**values)
    state = model.init_state(2)
    for hops in (1, 3, 1):  # states carried on in both forms
        x = noise(2, hops * model.hop, 0.1, hops)
        before = [s.clone() for s in flat((x, state))]
        with monkeypatch.context() as only:
            only.setattr(model, "step", None)  # what it would fall back to
            ours = model.step_compiled(x, state)
        for now, then in zip(flat((x, state)), before, strict=True):
            assert torch.equal(now, then), "the compiled step wrote into something it was given"
        readable = model.step(x, state)
        for a, b in zip(flat(ours), flat(readable), strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
        state = ours[1]


@torch.no_grad()
def test_the_compiled_step_steps_aside_where_it_does_not_apply(model):
    x, state = noise(1, model.hop), model.init_state(1)
    expected = model.step(x, state)[0]
    with use_backend("reference"):
        torch.testing.assert_close(model.step_compiled(x, state)[0], expected, atol=2e-5, rtol=1e-3)
    with torch.enable_grad():
        assert model.step_compiled(x, state)[0].requires_grad
    narrow = shaken(channels=24, heads=3)
    y = narrow.step_compiled(x, narrow.init_state(1))[0]
    assert torch.equal(y, narrow.step(x, narrow.init_state(1))[0])
    with pytest.raises(ValueError, match="hold the last 1 back"):
        model.step_compiled(noise(1, model.hop + 1), state)


@torch.no_grad()
def test_nan_in_one_stream_stays_there_and_stays_visible(model):
    x = noise(3, model.hop)
    expected, _ = model.step_compiled(x, model.init_state(3))
    x[1, 7] = torch.nan
    y, state = model.step_compiled(x, model.init_state(3))
    assert torch.equal(y[::2], expected[::2])
    y, _ = model.step_compiled(x, state)
    assert y[1].isnan().any() and y[::2].isfinite().all()


@torch.no_grad()
def test_silence_is_silent_in_the_compiled_step(model):
    y, state = model.step_compiled(torch.zeros(1, 5 * model.hop), model.init_state(1))
    assert not y.any() and all(part.isfinite().all() for part in flat(state))


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
