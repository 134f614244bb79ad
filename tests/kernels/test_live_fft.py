"""The transform of one frame in compiled code is that of `torch.fft`, and its inverse undoes it."""

import numpy as np
import pytest
import torch

from clearstate.kernels.cache import njit
from clearstate.kernels.live.fft import after_transform, fits, samples, spectrum, transform_tape
from clearstate.kernels.live.layers import tape_of
from clearstate.kernels.simd import FAST
from clearstate.models.parts.stft import sqrt_hann


@njit(fastmath=FAST, cache=True)
def there_and_back(tape, memory, n):
    """Samples at 0; spectrum to 2 n and 4 n; samples again to n."""
    spectrum(tape, memory, 6 * n, 0, n, 2 * n, 4 * n)
    kept = memory[2 * n : 6 * n].copy()
    samples(tape, memory, 6 * n, 2 * n, 4 * n, n, n)
    return kept


@njit()
def end_of_tape(n):
    return after_transform(n)


@pytest.mark.parametrize("n", [32, 64, 320, 512, 1024])
def test_the_spectrum_is_that_of_torch_and_goes_back_to_the_samples(n):
    window = sqrt_hann(n)
    tape, memory = tape_of(transform_tape(window)), np.zeros(20 * n + 1000, np.float32)
    x = torch.randn(n)
    memory[:n] = x
    kept = there_and_back(tape, memory, n)
    found = torch.complex(*(torch.from_numpy(part[: n // 2 + 1]) for part in (kept[: 2 * n], kept[2 * n :])))
    # Sums of n terms of either sign near 1.
    torch.testing.assert_close(found, torch.fft.rfft(x * window), atol=1e-6 * n**0.5, rtol=0)
    torch.testing.assert_close(torch.from_numpy(memory[n : 2 * n]), x * window**2, atol=2e-6, rtol=0)
    assert len(tape) == end_of_tape(n)


def test_lengths_that_do_not_fill_whole_rows_are_refused():
    assert fits(320) and not fits(400)
