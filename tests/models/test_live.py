"""The default model keeps every contract, scales with its input, and says its latency and size truly."""

import copy
import pickle

import numpy as np
import pytest
import torch
from contracts import CAUSAL, OFFLINE, noise

from clearstate.kernels.live import open_stream, supports
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


def streamed(model, x, hops=1):
    """x (b, n) through a compiled stream, so many hops at a time."""
    stream = open_stream(model, len(x))
    return torch.cat([torch.from_numpy(stream(piece.numpy())) for piece in x.split(hops * model.hop, dim=-1)], dim=-1)


@torch.no_grad()
@pytest.mark.parametrize("values", CONFIGS)
@pytest.mark.parametrize("hops", [1, 3])
def test_the_compiled_stream_is_the_readable_network(values, hops):
    model = shaken(**values)
    assert supports(model)
    x = noise(2, 9 * model.hop, 0.1)
    before = x.clone()
    y, _ = model.step(x, model.init_state(2))
    torch.testing.assert_close(streamed(model, x, hops), y, atol=2e-5, rtol=1e-4)
    assert torch.equal(x, before), "the stream wrote into what it was given"


@pytest.mark.parametrize(
    "values",
    [{"channels": 24}, {"gathered": 4, "bands": 18}, {"fine_bins": 8}, {"blocks": 0}, {"n_fft": 322, "hop": 161}],
)
def test_other_widths_are_left_to_the_readable_network(values):
    assert not supports(shaken(**values))


def test_other_precision_models_and_backends_are_left_to_the_readable_network(model):
    assert supports(model)
    assert not supports(shaken().double())
    assert not supports(build("semamba-basic-causal"))
    assert not supports(torch.nn.Linear(1, 1))
    with use_backend("reference"):
        assert not supports(model)


@pytest.mark.parametrize("shape", [(1, 257), (2, 256), (256,)])
def test_a_chunk_of_another_shape_is_refused(model, shape):
    with pytest.raises(ValueError, match=r"expected \(1, a multiple of hop=256\)"):
        open_stream(model, 1)(np.zeros(shape, np.float32))


def test_nan_in_one_stream_stays_there_and_stays_visible(model):
    x = noise(3, 2 * model.hop)
    expected = streamed(model, x)
    x[1, 7] = torch.nan
    y = streamed(model, x)
    assert torch.equal(y[::2], expected[::2])
    assert y[1, model.hop :].isnan().any()


def test_silence_is_silent_in_the_compiled_stream(model):
    assert not streamed(model, torch.zeros(1, 5 * model.hop)).any()


@torch.no_grad()
def test_a_stream_has_the_weights_of_its_beginning():
    model, x = build("live").eval(), noise(1, 256).numpy()
    stream = open_stream(model, 1)
    model.head.bias.mul_(0.5)
    assert np.abs(stream(x) - open_stream(model, 1)(x)).max() > 1e-3


@torch.no_grad()
def test_streams_with_the_same_weights_share_them():
    model = build("live").eval()
    first, second = open_stream(model, 1), open_stream(model, 2)
    assert first.packed.tape is second.packed.tape
    model.head.bias.mul_(0.5)
    assert open_stream(model, 1).packed.tape is not first.packed.tape


def test_a_copy_of_a_stream_goes_on_by_itself(model):
    x = noise(1, 3 * model.hop).numpy().reshape(3, 1, -1)
    stream = open_stream(model, 1)
    stream(x[0])
    copied, packed = copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))
    expected = [stream(piece) for piece in x[1:]]
    for other in (copied, packed):
        np.testing.assert_array_equal([other(piece) for piece in x[1:]], expected)


@torch.no_grad()
def test_a_compiled_stream_is_the_offline_output(model):
    x = noise(2, 20 * model.hop)
    offline = model(x)[:, : -model.latency]
    torch.testing.assert_close(streamed(model, x)[:, model.latency :], offline, atol=2e-5, rtol=1e-3)


def test_another_config_builds_and_an_unknown_value_is_named():
    assert build("live", blocks=1, bands=16).config == LiveConfig(blocks=1, bands=16)
    with pytest.raises(ValueError, match=r"no config value 'block'.*did you mean 'blocks'"):
        build("live", block=1)


def test_silence_has_a_finite_gradient():
    live = build("live").train()
    live(torch.zeros(1, 4_000)).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in live.parameters())
