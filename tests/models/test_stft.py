"""The transform gives the signal back, offline and in a stream, and compression undoes itself."""

import pytest
import torch

from clearstate.models.parts.stft import analyse, compress, expand, istft, sqrt_hann, stft, synthesise


@pytest.mark.parametrize("n_fft, hop", [(512, 256), (64, 32)])
@pytest.mark.parametrize("samples", [1, 31, 256, 1000])
def test_the_inverse_gives_the_signal_back(n_fft, hop, samples):
    x, window = torch.randn(2, samples, dtype=torch.float64), sqrt_hann(n_fft).double()
    y = istft(stft(x, window, hop), window, hop, samples)
    torch.testing.assert_close(y, x, atol=2e-6, rtol=0)  # the window itself is float32


def test_spectra_are_those_of_pytorch():
    x, window = torch.randn(1, 64 * 10, dtype=torch.float64), sqrt_hann(128).double()
    theirs = torch.stft(x, 128, 64, window=window, center=False, return_complex=True).transpose(1, 2)
    torch.testing.assert_close(stft(x, window, 64)[:, 1:-1], theirs)


def test_a_stream_of_frames_is_the_offline_transform():
    x, window, hop = torch.randn(1, 64 * 9), sqrt_hann(128), 64
    past, tail, out = torch.zeros(1, 64), torch.zeros(1, 64), []
    for piece in x.split(3 * hop, dim=-1):
        joined = torch.cat([past, piece], dim=-1)
        y, tail = synthesise(analyse(joined, window, hop), window, hop, tail)
        past = joined[:, -64:]
        out.append(y)
    torch.testing.assert_close(torch.cat(out, -1)[:, 64:], x[:, :-64])


def test_a_dropped_tail_is_heard():
    window = sqrt_hann(128)
    spec = stft(torch.randn(1, 640), window, 64)
    whole, _ = synthesise(spec, window, 64)
    first, _ = synthesise(spec[:, :5], window, 64)
    second, _ = synthesise(spec[:, 5:], window, 64)
    assert (torch.cat([first, second], -1) - whole).abs().max() > 0.01


def test_expansion_undoes_compression_also_at_zero():
    spec = torch.randn(1, 4, 9, dtype=torch.complex128) * torch.logspace(-4, 2, 9, dtype=torch.float64)
    spec[:, :, 0] = 0
    torch.testing.assert_close(expand(compress(spec, 0.3, 0.0).nan_to_num(), 0.3), spec)


def test_compression_of_silence_has_a_finite_gradient():
    x = torch.zeros(1, 1, 3, dtype=torch.complex64, requires_grad=True)
    compress(x, 0.3).sum().backward()
    assert torch.isfinite(torch.view_as_real(x.grad)).all()
