"""One hop of `Live` for one signal, written for ONNX Runtime, where any operator costs a microsecond at least.

The same arithmetic as `Live.step`, in fewer and longer operators: every product is one of matrices, real and imaginary
parts lie in rows of their own, states have the channels innermost, and what only depends on weights is computed when
the file is made. `Live.step` is the readable twin; `clearstate export` compares the two.

r rows (bands, or one for the whole band), d channels, n states, k taps; f bins.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearstate.models.live import Live
from clearstate.models.parts.running_level import SILENT
from clearstate.models.parts.stft import fold_arrays
from clearstate.ssm import Mamba


class LiveHop(nn.Module):
    """samples (1, hop) and the states that `pack` makes, to the output (1, hop) and the next states."""

    def __init__(self, net: Live) -> None:
        super().__init__()
        self.net = net
        config = net.config
        self.time = nn.ModuleList(
            MambaHop(mixer, norm, config.bands) for mixer, norm in zip(net.time, net.time_norms, strict=True)
        )
        self.wide = MambaHop(net.wide, net.wide_norm, 1)
        self.attention = nn.ModuleList(AttentionHop(block, config.bands) for block in net.frequency)
        self.encoder = nn.ModuleList(FineHop(block) for block in net.encoder)
        self.decoder = nn.ModuleList(FineHop(block) for block in net.decoder)
        order, back, signs, forward, inverse = (torch.from_numpy(x) for x in fold_arrays(config.n_fft))
        for name, constant in (("order", order), ("back", back), ("signs", signs), ("dft", forward), ("idft", inverse)):
            self.register_buffer(name, constant)
        self.keep = math.exp(-config.hop / (config.level_seconds * config.sample_rate))

    @staticmethod
    def pack(states: list[Tensor]) -> list[Tensor]:
        """States of the network with the batch first, to the layout here: (b, r, d, n) becomes (b, n, r, d)."""
        past, level, *mixers, tail = states
        mixers[-2:] = [mixers[-2][:, None], mixers[-1][:, None]]  # the whole band is one row
        moved = [x.permute(0, 2, 1, 3) if k % 2 == 0 else x.permute(0, 3, 1, 2) for k, x in enumerate(mixers)]
        return [past, level.flatten(1), *moved, tail]

    @staticmethod
    def unpack(states: list[Tensor]) -> list[Tensor]:
        """The inverse of `pack`."""
        past, level, *mixers, tail = states
        moved = [x.permute(0, 2, 1, 3) if k % 2 == 0 else x.permute(0, 2, 3, 1) for k, x in enumerate(mixers)]
        moved[-2:] = [moved[-2][:, 0], moved[-1][:, 0]]
        return [past, level[..., None], *moved, tail]

    def forward(self, samples: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        net, config = self.net, self.net.config
        past, level, *mixers, tail = states
        whole = torch.cat([past, samples], -1)  # (1, n_fft)
        parts, gain, level = self.levelled(self.spectrum(whole), level)
        power = (parts * parts).sum(0, keepdim=True) + 1e-12
        parts = parts * power.pow((config.exponent - 1) / 2)  # (2, f)
        skips = [net.bins_to_fine(self.fine_bands(parts))]
        for block in self.encoder:
            skips.append(block(skips[-1]))
        x = net.fine_to_bands.weight @ net.widen(skips[-1]) + net.place  # (r, d)
        after: list[Tensor] = []
        for i in range(config.blocks):
            y, *new = self.time[i](x, mixers[2 * i], mixers[2 * i + 1])
            after += new
            x = self.attention[i](x + y)
            if i == 0:
                heard = net.wide_in(net.gather(x).view(1, -1))
                y, *whole_band = self.wide(heard, *mixers[-2:])
                x = x + net.scatter(net.wide_out(heard + y).view(config.bands, config.gathered))
        x = net.bands_to_fine.weight @ net.narrow(x)
        for join, block in zip(net.joins, self.decoder, strict=True):
            x = block(join(torch.cat([x, skips.pop()], -1)))
        mask = net.head(net.head_norm(x)).view(-1, 2)
        mask = torch.cat([mask, mask[-1:]], 0).T  # (2, f)
        real, imaginary, turn, lift = parts[:1], parts[1:], mask[:1], mask[1:]
        masked = torch.cat([real * turn - imaginary * lift, real * lift + imaginary * turn], 0)
        power = (masked * masked).sum(0, keepdim=True) + 1e-12
        frame = self.frame(masked * (power.pow((1 / config.exponent - 1) / 2) * gain))  # (1, n_fft)
        hop = config.hop
        return frame[:, :hop] + tail, [whole[:, hop:], level, *after, *whole_band, frame[:, hop:]]

    def spectrum(self, x: Tensor) -> Tensor:
        """`parts.stft.analyse` of one frame (1, n_fft): rows of real and imaginary parts (2, f)."""
        quarters = self.signs @ (x * self.net.window)[0].index_select(0, self.order).view(4, -1)
        bins = (quarters[:, None] @ self.dft).view(2, 2, -1)  # (part, even or odd, bin)
        return bins.transpose(1, 2).reshape(2, -1)[:, : self.net.config.n_fft // 2 + 1]

    def frame(self, parts: Tensor) -> Tensor:
        """The inverse of `spectrum`, windowed: (2, f) to (1, n_fft)."""
        bins = F.pad(parts, (0, 1)).view(2, -1, 2).transpose(1, 2).reshape(4, 1, -1)
        quarters = self.signs.T @ (bins @ self.idft)[:, 0]
        return quarters.view(-1).index_select(0, self.back)[None] * self.net.window

    def levelled(self, parts: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`parts.running_level`: the spectrum over its level, that level (1, 1), and its state (1, 2)."""
        power = (parts * parts).sum().view(1, 1) / parts.shape[1]
        later = self.keep * state + torch.cat([power, torch.ones_like(power)], -1)
        state = torch.where(power > SILENT, later, state)
        gain = torch.sqrt(state[:, :1] / state[:, 1:].clamp_min(1e-6) + 1e-12)
        return parts / gain, gain, state

    def fine_bands(self, parts: Tensor) -> Tensor:
        """What `Live.to_fine_bands` gives its linear layer: (2, f) to (fine bands, 3 * 2 * fine_bins)."""
        bins, bands = self.net.config.fine_bins, self.net.fine_bands
        magnitude = ((parts * parts).sum(0, keepdim=True) + 1e-12).sqrt()
        x = F.pad(torch.cat([parts, magnitude], 0)[:, :-1], (bins // 2, bins // 2))
        low, high = x[:, : bins * bands].view(3, bands, bins), x[:, bins:].view(3, bands, bins)
        return torch.cat([low, high], 2).transpose(0, 1).reshape(bands, -1)


class MambaHop(nn.Module):
    """One step of a Mamba mixer behind its norm: x (r, m), conv (1, k-1, r, d), ssm (1, n, r, d)."""

    def __init__(self, mixer: Mamba, norm: nn.Module, rows: int) -> None:
        super().__init__()
        self.norm, self.sizes = norm, (mixer.d_inner, mixer.d_state, rows)
        # The step size comes through a matrix of low rank: here it is one with B and C.
        step = mixer.dt_proj.weight @ mixer.x_proj.weight[: mixer.dt_rank]
        self.project = nn.Linear(mixer.d_inner, mixer.d_inner + 2 * mixer.d_state)
        self.project.weight.data = torch.cat([step, mixer.x_proj.weight[mixer.dt_rank :]])
        self.project.bias.data = torch.cat([mixer.dt_proj.bias, step.new_zeros(2 * mixer.d_state)])
        self.enter, self.leave = mixer.in_proj, mixer.out_proj
        self.register_buffer("taps", mixer.conv1d.weight[:, 0].T[:, None].expand(-1, rows, -1).contiguous())
        self.register_buffer("rate", -torch.exp(mixer.A_log).T[:, None].expand(-1, rows, -1).contiguous())
        self.bias, self.skip = mixer.conv1d.bias, mixer.D

    def forward(self, x: Tensor, conv: Tensor, ssm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        d, n, rows = self.sizes
        u, z = self.enter(self.norm(x)).split([d, d], -1)
        seen = torch.cat([conv, u[None, None]], 1)
        u = F.silu((seen * self.taps).sum((0, 1)) + self.bias)
        dt, maps = self.project(u).split([d, 2 * n], -1)
        B, C = maps.T.reshape(2 * n, rows, 1).split([n, n], 0)
        dt = F.softplus(dt)
        h = torch.exp(dt * self.rate) * ssm + (dt * u) * B
        y = (h * C).sum((0, 1)) + self.skip * u
        return self.leave(y * F.silu(z)), seen[:, 1:], h


class AttentionHop(nn.Module):
    """`BandAttention` of one frame (r, c): the scale of the scores is part of the weights."""

    def __init__(self, block: nn.Module, rows: int) -> None:
        super().__init__()
        self.norm, self.out, self.heads, self.rows = block.norm, block.out, block.heads, rows
        weight, bias = block.qkv.weight.detach().clone(), block.qkv.bias.detach().clone()
        channels = weight.shape[1]
        scale = (channels // block.heads) ** -0.5
        weight[:channels] *= scale
        bias[:channels] *= scale
        self.qkv = nn.Linear(channels, 3 * channels)
        self.qkv.weight.data, self.qkv.bias.data = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        rows = self.qkv(self.norm(x)).view(self.rows, 3 * self.heads, -1).transpose(0, 1)
        q, key, value = rows.split(self.heads, 0)
        y = torch.softmax(q @ key.transpose(1, 2), -1) @ value  # (heads, r, c / heads)
        return x + self.out(y.transpose(0, 1).reshape(self.rows, -1))


class FineHop(nn.Module):
    """`FineBlock` of one frame (fine bands, c): its convolution is a product with three neighbours side by side."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.norm, self.mix, self.bias = block.norm, block.mix, block.spread.bias
        self.register_buffer("weight", block.spread.weight[:, :, 0].permute(2, 1, 0).flatten(0, 1).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(self.norm(x), (0, 0, 1, 1))
        y = torch.cat([y[:-2], y[1:-1], y[2:]], -1) @ self.weight + self.bias
        return x + self.mix(F.silu(y))
