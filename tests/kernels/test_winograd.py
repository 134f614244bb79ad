"""The dense block's convolutions in tiles against the convolution itself, and the block against its written form."""

import pytest
import torch
from doubles import on_threads, shaken
from torch import nn
from torch.nn import functional as F

from clearstate.kernels import winograd as winograd_cpu
from clearstate.models import mp_senet
from clearstate.models.parts import dense_codec as codec
from clearstate.ssm import use_backend


@torch.no_grad()
@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 8])
@pytest.mark.parametrize("shape", [(1, 1, 1, 16), (2, 7, 13, 16), (1, 37, 4, 32), (3, 16, 201, 16)])
def test_the_convolution_in_tiles_is_the_convolution(shape, dilation, times):
    """Maps side by side, through PReLU of a norm; frames and bins that fill no tile, and fewer than the taps reach.

    The tolerance is what products at six points each way lose of float32: they were seen to lose 3.3e-6.
    """
    b, frames, _, c = shape
    maps = [torch.randn(shape) for _ in range(3)]  # newest first
    scale, shift, slope = torch.randn(b, c), torch.randn(b, c), torch.randn(c)
    conv = nn.Conv2d(3 * c, c, (times, 3), dilation=(dilation, 1), padding=(dilation, 1)).double()
    affine = [(m * scale[:, None, None] + shift[:, None, None]).double().permute(0, 3, 1, 2) for m in maps]
    expected = conv(torch.cat([F.prelu(m, slope.double()) for m in affine], 1)).permute(0, 2, 3, 1)[:, :frames]
    y = torch.empty(shape)
    with winograd_cpu.lent_maps(maps[0], 3) as tiles:
        for source, place in zip(maps[::-1], tiles, strict=True):
            winograd_cpu.enter(source, scale, shift, slope, place)
        winograd_cpu.convolve(tiles, conv.float(), y)
    torch.testing.assert_close(y.double(), expected, atol=5e-6 * expected.abs().max().item(), rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("dense", [codec.DenseBlock, mp_senet.PastDenseBlock])
@pytest.mark.parametrize("channels", [6, 16])
def test_the_compiled_dense_block_is_the_written_one(dense, channels):
    block, x = shaken(dense(channels), 0.2), torch.randn(2, 19, 23, channels)
    fast = block(x)
    with use_backend("reference"):
        slow = block(x)
    torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-4)
    x[1, 3, 4, 5] = torch.nan
    y = block(x)
    assert y[1].isnan().all() and torch.equal(y[0], fast[0])


@torch.no_grad()
@pytest.mark.parametrize("dense", [codec.DenseBlock, mp_senet.PastDenseBlock])
def test_the_compiled_dense_block_does_not_depend_on_the_threads(dense):
    block, x = shaken(dense(16)), torch.randn(1, 70, 41, 16)
    alone, both = (on_threads(count, lambda: block(x)) for count in (1, 2))
    assert torch.equal(alone, both)


@torch.no_grad()
@pytest.mark.parametrize(("channels", "outputs"), [(16, 32), (48, 16), (16, 1), (6, 6)])
@pytest.mark.parametrize("bands", [1, 3, 100])
def test_up_sampling_is_the_transposed_convolution_on_any_number_of_threads(channels, outputs, bands):
    x, up = torch.randn(2, 40, bands, channels), nn.ConvTranspose2d(channels, outputs, (1, 3), stride=(1, 2))
    expected = up(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    alone, both = (on_threads(count, lambda: codec.upsample(x, up.weight, up.bias)) for count in (1, 2))
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)
    assert torch.equal(alone, both)
