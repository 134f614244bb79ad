"""Each loss against its formula worked out by hand or by another library, and in the cases that break such code."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from clearstate.models.parts.dense_codec import centred_spectrum, centred_waveform
from clearstate.train import losses
from clearstate.train.losses import FLOOR, compress, spectrum


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tone(samples: int = 8000, pitch: float = 220.0) -> Tensor:
    return torch.sin(2 * torch.pi * pitch * torch.arange(samples) / 16_000)[None]


# ------------------------------------------------------------------------------------------------ waveforms


def test_snr_and_si_sdr_agree_with_torchmetrics():
    audio = pytest.importorskip("torchmetrics.functional.audio")
    clean, estimate = noise(3, 4000), noise(3, 4000) + 0.3 * noise(3, 4000, seed=1)
    snr = -audio.signal_noise_ratio(estimate, clean)
    si_sdr = -audio.scale_invariant_signal_distortion_ratio(estimate, clean, zero_mean=True)
    # 1e-3 dB: our floors of 1e-10 and 60 dB lie far under these errors
    torch.testing.assert_close(losses.negative_snr(estimate, clean), snr, rtol=0, atol=1e-3)
    torch.testing.assert_close(losses.negative_si_sdr(estimate, clean), si_sdr, rtol=0, atol=1e-3)


def test_si_sdr_ignores_level_and_offset_and_snr_does_not():
    clean = noise(2, 4000)
    estimate = clean + 0.1 * noise(2, 4000, seed=1)
    moved = 3 * estimate + 0.5
    torch.testing.assert_close(losses.negative_si_sdr(moved, clean), losses.negative_si_sdr(estimate, clean))
    assert (losses.negative_snr(moved, clean) > losses.negative_snr(estimate, clean) + 20).all()


def test_a_perfect_estimate_stops_at_the_ceiling():
    clean = noise(2, 4000)
    assert losses.negative_snr(clean, clean, ceiling=30).tolist() == pytest.approx([-30, -30], abs=1e-3)


def test_the_snr_of_silence_is_that_of_the_mixture():
    mixture, silence = noise(3, 4000), torch.zeros(3, 4000)
    shares = torch.tensor([[0.0], [0.1], [1.0]])
    found = losses.negative_snr(shares * mixture, silence, ceiling=30, mixture=mixture)
    assert found.tolist() == pytest.approx([-30.0, 10 * math.log10(0.011), 10 * math.log10(1.001)], abs=1e-3)
    voice = noise(3, 4000, seed=1)  # one that is there is measured against itself
    torch.testing.assert_close(
        losses.negative_snr(mixture, voice, mixture=mixture + voice), losses.negative_snr(mixture, voice)
    )


def test_the_log_error_is_the_negative_snr_when_the_noise_is_moderate():
    clean = noise(2, 4000)
    noisy = clean + 0.5 * noise(2, 4000, seed=1)
    estimate = clean + 0.3 * noise(2, 4000, seed=2)
    torch.testing.assert_close(
        losses.log_error(estimate, clean, noisy), losses.negative_snr(estimate, clean), rtol=0, atol=0.2
    )


def test_the_log_error_of_a_silent_target_measures_what_is_left_of_the_noise():
    noisy, silence = noise(1, 4000), torch.zeros(1, 4000)
    errors = [losses.log_error(share * noisy, silence, noisy).item() for share in (0.0, 0.1, 1.0)]
    # 10 log10((share² + 1e-3) / 1e-3) by hand; at silence the floor of the numerator, 0 dB
    assert errors == pytest.approx([0.0, 10 * math.log10(11), 10 * math.log10(1001)], abs=1e-3)


def test_the_log_error_holds_the_level():
    clean = tone()
    errors = [losses.log_error(gain * clean, clean, clean).item() for gain in (0.5, 0.9, 1.0, 1.1, 2.0)]
    assert min(errors) == errors[2]
    assert errors[1] > errors[2] + 5 and errors[3] > errors[2] + 5


def test_no_loss_fails_on_digital_silence():
    silence = torch.zeros(2, 4000)
    estimate = torch.zeros(2, 4000, requires_grad=True)
    a, b = compress(spectrum(estimate, 512, 256)), compress(spectrum(silence, 512, 256))
    terms = [
        losses.negative_snr(estimate, silence),
        losses.negative_snr(estimate, silence, mixture=silence),
        losses.negative_si_sdr(estimate, silence),
        losses.log_error(estimate, silence, silence),
        losses.magnitude_loss(a, b),
        losses.complex_loss(a, b),
        losses.log_magnitude_loss(spectrum(estimate, 512, 256), spectrum(silence, 512, 256)),
        losses.multi_resolution_loss(estimate, silence),
        losses.perceptual_loss(estimate, silence),
        losses.perceptual_loss(estimate, noise(2, 4000)),
        *losses.phase_losses(losses.phase(spectrum(estimate, 512, 256)), losses.phase(spectrum(silence, 512, 256))),
        losses.consistency_loss(spectrum(estimate, 512, 256), spectrum(silence, 512, 256)),
        losses.output_distillation(spectrum(estimate, 512, 256), spectrum(silence, 512, 256)),
    ]
    for term in terms:
        assert term.shape == (2,) and term.isfinite().all()
        (gradient,) = torch.autograd.grad(term.sum(), estimate, retain_graph=True, allow_unused=True)
        assert gradient is None or gradient.isfinite().all()


def babble(seconds: float = 3.0) -> Tensor:
    """Harmonics that come and go as syllables do."""
    t = torch.arange(int(16_000 * seconds)) / 16_000
    voice = torch.stack([torch.sin(2 * torch.pi * 140 * h * t + h) / h for h in range(1, 20)]).sum(0)
    return 0.1 * (voice * (torch.sin(2 * torch.pi * 3 * t) > -0.3))[None]


def test_the_perceptual_loss_is_the_raw_score_that_pesq_lost():
    pesq = pytest.importorskip("pesq").pesq
    clean = babble()
    hiss = noise(*clean.shape, seed=3)
    for level in (0.001, 0.01, 0.03, 0.1):
        estimate = clean + level * hiss
        raw = 4.5 - losses.perceptual_loss(estimate, clean).item()
        mapped = 0.999 + 4 / (1 + math.exp(-1.3669 * raw + 3.8224))  # P.862.2
        assert mapped == pytest.approx(pesq(16_000, clean[0].numpy(), estimate[0].numpy(), "wb"), abs=0.35)


def test_the_perceptual_loss_is_deaf_to_level_and_to_what_nobody_hears():
    clean = babble()
    assert losses.perceptual_loss(clean, clean).item() == pytest.approx(0, abs=1e-4)
    assert losses.perceptual_loss(0.3 * clean, clean).item() == pytest.approx(0, abs=0.01)
    assert losses.perceptual_loss(clean + 1e-7 * noise(*clean.shape), clean).item() < 0.05
    assert losses.perceptual_loss(clean + 1e-2 * noise(*clean.shape), clean).item() > 0.5  # negative control
    louder = clean + 0.02 * tone(48_000, 3000.0)
    added, missing = losses.perceptual_loss(louder, clean).item(), losses.perceptual_loss(clean, louder).item()
    assert added > 1.2 * missing


def test_every_item_counts_the_same_in_any_batch():
    clean, estimate, noisy = noise(3, 4000), noise(3, 4000, seed=1), noise(3, 4000, seed=2)

    def every(y: Tensor, s: Tensor, x: Tensor) -> list[Tensor]:
        a, b = spectrum(y, 512, 256), spectrum(s, 512, 256)
        return [
            losses.l1(y, s), losses.negative_snr(y, s), losses.negative_si_sdr(y, s), losses.log_error(y, s, x),
            losses.magnitude_loss(compress(a), compress(b)), losses.complex_loss(compress(a), compress(b)),
            losses.multi_resolution_loss(y, s), losses.perceptual_loss(y, s),
            *losses.phase_losses(losses.phase(a), losses.phase(b)),
            losses.consistency_loss(a, b), losses.output_distillation(a, b),
        ]  # fmt: skip

    together = every(estimate, clean, noisy)
    alone = every(estimate[1:2], clean[1:2], noisy[1:2])
    for whole, one in zip(together, alone, strict=True):
        torch.testing.assert_close(whole[1:2], one)


def test_the_level_brings_the_mixture_to_unit_rms_and_leaves_silence():
    x = torch.stack([0.01 * noise(4000), torch.zeros(4000)])
    gain = losses.level(x)
    assert (gain * x)[0].square().mean().item() == pytest.approx(1.0, rel=1e-5)
    assert gain[1].item() == 1.0


# ---------------------------------------------------------------------------------------- permutation invariance


@pytest.mark.parametrize("sources", [2, 3])
def test_the_best_assignment_is_found_and_named(sources):
    targets = noise(4, sources, 2000)
    order = torch.stack([torch.randperm(sources, generator=torch.Generator().manual_seed(i)) for i in range(4)])
    estimates = torch.stack([t[o] for t, o in zip(targets, order, strict=True)]) + 0.1 * noise(4, sources, 2000, seed=9)
    found = losses.permutation_invariant(losses.negative_snr, estimates, targets)
    back = torch.stack([e[o] for e, o in zip(estimates, found.order, strict=True)])
    expected = losses.negative_snr(back, targets).mean(-1)
    torch.testing.assert_close(found.loss, expected)
    assert (found.loss < -18).all()  # 20 dB of noise under each source
    assert torch.equal(found.order, order.argsort(1))


def test_pit_agrees_with_torchmetrics_when_no_assignment_is_good():
    audio = pytest.importorskip("torchmetrics.functional.audio")
    estimates, targets = noise(5, 3, 2000), noise(5, 3, 2000, seed=1) + 0.2 * noise(5, 3, 2000)
    best, _ = audio.permutation_invariant_training(estimates, targets, audio.signal_noise_ratio, eval_func="max")
    ours = losses.permutation_invariant(losses.negative_snr, estimates, targets).loss
    torch.testing.assert_close(ours, -best, rtol=0, atol=1e-3)


def test_swapping_the_outputs_changes_nothing_and_the_gradient_follows_the_assignment():
    targets = noise(1, 2, 2000)
    estimates = (targets.flip(1) + 0.3 * noise(1, 2, 2000, seed=1)).requires_grad_()
    pit = losses.permutation_invariant(losses.negative_snr, estimates, targets).loss
    again = losses.permutation_invariant(losses.negative_snr, estimates.flip(1), targets).loss
    torch.testing.assert_close(pit, again)
    (gradient,) = torch.autograd.grad(pit.sum(), estimates)
    (direct,) = torch.autograd.grad(losses.negative_snr(estimates, targets.flip(1)).mean(), estimates)
    torch.testing.assert_close(gradient, direct)


def test_pit_refuses_shapes_it_cannot_mean():
    with pytest.raises(ValueError, match="1 to 4 sources"):
        losses.permutation_invariant(losses.negative_snr, noise(1, 5, 10), noise(1, 5, 10))
    with pytest.raises(ValueError, match="batch, sources, samples"):
        losses.permutation_invariant(losses.negative_snr, noise(1, 2, 10), noise(1, 3, 10))


# -------------------------------------------------------------------------------------------------- spectra


def test_white_noise_of_unit_rms_has_bins_of_unit_power_at_every_window():
    x = noise(1, 160_000)
    for n_fft in (256, 512, 1024):
        assert spectrum(x, n_fft, n_fft // 2).abs().square().mean().item() == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize("samples", [1, 255, 257, 4000])
def test_a_spectrum_mirrors_the_ends_of_a_signal_of_any_length(samples):
    x = noise(2, samples)
    longer = torch.nn.functional.pad(x, (0, max(0, 257 - samples)))
    mirrored = torch.cat([longer[:, 1:257].flip(-1), longer, longer[:, -257:-1].flip(-1)], dim=-1)
    window = torch.hann_window(512)
    expected = torch.fft.rfft(mirrored.unfold(-1, 512, 128) * window / window.norm())
    torch.testing.assert_close(spectrum(x, 512, 128), expected, rtol=0, atol=1e-5)


def test_compression_keeps_the_phase_and_takes_the_power_of_the_magnitude():
    spec = torch.polar(torch.tensor([[[4.0, 0.25]]]), torch.tensor([[[1.0, -2.0]]]))
    magnitude, parts = compress(spec, 0.3)
    np.testing.assert_allclose(magnitude[0, 0], [4.0**0.3, 0.25**0.3], rtol=1e-4)  # the floor adds 1e-6 to the power
    np.testing.assert_allclose(torch.atan2(parts[0, 0, :, 1], parts[0, 0, :, 0]), [1.0, -2.0], rtol=1e-5)
    np.testing.assert_allclose(parts.square().sum(-1).sqrt(), magnitude, rtol=1e-4)


def test_the_gradient_of_a_compressed_magnitude_stays_under_its_bound():
    spec = (torch.logspace(-8, 2, 101)[None, None] + 0j).requires_grad_()
    (gradient,) = torch.autograd.grad(compress(spec, 0.3).magnitude.sum(), spec)
    assert gradient.abs().max() < FLOOR ** (-0.7 / 2)


def test_magnitude_and_complex_losses_follow_their_formulas():
    ours, theirs = (
        torch.complex(noise(1, 3, 5), noise(1, 3, 5, seed=1)),
        torch.complex(noise(1, 3, 5, seed=2), noise(1, 3, 5, seed=3)),
    )
    a, b = compress(ours), compress(theirs)

    def compressed(s: Tensor) -> np.ndarray:
        s = s.numpy()
        return np.abs(s) ** 0.3 * np.exp(1j * np.angle(s))

    x, y = compressed(ours), compressed(theirs)
    assert losses.magnitude_loss(a, b).item() == pytest.approx(np.mean((np.abs(x) - np.abs(y)) ** 2), rel=1e-4)
    assert losses.complex_loss(a, b).item() == pytest.approx(np.mean(np.abs(x - y) ** 2), rel=1e-4)
    by_hand = np.abs(np.log1p(np.abs(ours.numpy())) - np.log1p(np.abs(theirs.numpy()))).mean()
    assert losses.log_magnitude_loss(ours, theirs).item() == pytest.approx(by_hand, rel=1e-4)


def test_the_complex_loss_sees_a_phase_that_the_magnitude_loss_does_not():
    a = spectrum(tone(), 512, 256)
    turned = a * torch.polar(torch.tensor(1.0), torch.tensor(0.7))
    assert losses.magnitude_loss(compress(turned), compress(a)).item() < 1e-9
    assert losses.complex_loss(compress(turned), compress(a)).item() > 1e-3


def test_each_resolution_sees_what_it_resolves():
    """Two tones 20 Hz apart beat for a short window and are apart for a long one; a click is the other way round."""
    click = torch.zeros(1, 8000)
    click[0, 4000] = 20.0
    spread = noise(1, 8000)
    spread *= click.norm() / spread.norm()
    per = [losses.multi_resolution_loss(click, spread, ((n, n // 2),)).item() for n in (256, 1024)]
    both = losses.multi_resolution_loss(click, spread).item()
    assert both == pytest.approx(sum(per) / 2, rel=1e-5)
    assert per[0] != pytest.approx(per[1], rel=0.05)
    assert losses.multi_resolution_loss(click, click).item() == 0


# ---------------------------------------------------------------------------------------------------- phase


def test_anti_wrapping_is_a_distance_on_the_circle():
    turns = 2 * torch.pi * torch.arange(-3, 4)
    torch.testing.assert_close(losses.anti_wrap(turns), torch.zeros(7), rtol=0, atol=2e-6)
    torch.testing.assert_close(losses.anti_wrap(turns + torch.pi), torch.full((7,), torch.pi), rtol=0, atol=2e-6)
    x = 20 * noise(1000)
    assert ((losses.anti_wrap(x) >= 0) & (losses.anti_wrap(x) <= torch.pi + 1e-6)).all()
    torch.testing.assert_close(losses.anti_wrap(-x), losses.anti_wrap(x))


def test_phase_losses_are_zero_for_equal_phases_and_blind_to_whole_turns():
    phase = torch.pi * noise(2, 6, 9).tanh()
    turned = phase + 2 * torch.pi * torch.randint(-2, 3, phase.shape)
    for term in losses.phase_losses(turned, phase):
        torch.testing.assert_close(term, torch.zeros(2), rtol=0, atol=1e-5)


def test_a_constant_phase_error_is_seen_by_the_instantaneous_term_alone():
    phase = torch.pi * noise(1, 6, 9).tanh()
    terms = losses.phase_losses(phase + 0.5, phase)
    assert [t.item() for t in terms] == pytest.approx([0.5, 0, 0], abs=1e-5)


def test_slopes_along_frequency_and_time_are_seen_by_their_terms():
    phase = torch.zeros(1, 6, 9)
    delay, drift = 0.1 * torch.arange(9.0)[None, None], 0.2 * torch.arange(6.0)[None, :, None]
    assert [t.item() for t in losses.phase_losses(phase + delay, phase)][1:] == pytest.approx([0.1, 0], abs=1e-5)
    assert [t.item() for t in losses.phase_losses(phase + drift, phase)][1:] == pytest.approx([0, 0.2], abs=1e-5)


def test_with_edges_the_first_bin_and_frame_count_undifferenced():
    """A matrix with -1 on the diagonal and 1 above it, as in SEMamba's code, beside ours."""
    ours, theirs = torch.pi * noise(2, 6, 9).tanh(), torch.pi * noise(2, 6, 9, seed=1).tanh()
    _, along_frequency, along_time = losses.phase_losses(ours, theirs, edges=True)
    matrices = [torch.diag(torch.ones(n - 1), 1) - torch.eye(n) for n in (9, 6)]
    error = ours - theirs
    torch.testing.assert_close(along_frequency, losses.anti_wrap(error @ matrices[0]).mean((1, 2)))
    torch.testing.assert_close(along_time, losses.anti_wrap(matrices[1].T @ error).mean((1, 2)))
    assert not torch.allclose(along_time, losses.phase_losses(ours, theirs).frequency, rtol=1e-3)


def test_one_frame_has_no_frequency_term():
    assert losses.phase_losses(noise(2, 1, 9), noise(2, 1, 9, seed=1)).frequency.tolist() == [0, 0]


def test_a_bin_without_energy_has_no_phase_and_no_gradient():
    spec = torch.tensor([[[1j, 1e-9 + 1e-9j, 0j]]]).requires_grad_()
    phase = losses.phase(spec)
    torch.testing.assert_close(phase, torch.tensor([[[torch.pi / 2, 0.0, 0.0]]]))
    (gradient,) = torch.autograd.grad(phase.sum(), spec)
    assert gradient[0, 0, 0].abs() == pytest.approx(1.0) and gradient[0, 0, 1:].abs().sum() == 0


# -------------------------------------------------------------------------------------------- consistency, teachers


def test_the_spectrum_of_a_signal_is_consistent_and_another_is_not():
    x, window = noise(2, 4096), torch.hann_window(512)

    def again(spec: Tensor) -> Tensor:
        return centred_spectrum(centred_waveform(spec, window, 128, 4096), window, 128)

    spec = centred_spectrum(x, window, 128)
    assert losses.consistency_loss(spec, again(spec)).max().item() < 1e-6
    made_up = torch.polar(spec.abs(), 2 * torch.pi * torch.rand(spec.shape))
    assert losses.consistency_loss(made_up, again(made_up)).min().item() > 0.01


def test_output_distillation_wraps_the_phase():
    teacher, near, far = (spectrum(x, 512, 256) for x in (tone(), tone() + 0.01 * noise(1, 8000), noise(1, 8000)))
    assert losses.output_distillation(teacher, teacher).item() == 0
    assert 0 < losses.output_distillation(near, teacher).item() < losses.output_distillation(far, teacher).item()
    # no squared error of a wrapped angle exceeds pi²
    assert losses.anti_wrap(losses.phase(far) - losses.phase(teacher)).max() <= torch.pi + 1e-5


def test_feature_distillation_ignores_scale_and_offset_and_averages_the_teachers():
    student, teacher = noise(2, 4, 5, 6), noise(2, 4, 5, 6, seed=1)
    assert losses.feature_distillation(3 * teacher + 1, [teacher]).max().item() < 1e-6
    one = losses.feature_distillation(student, [teacher, teacher])
    torch.testing.assert_close(one, losses.feature_distillation(student, [teacher]))
    # two independent maps of unit variance: 1 + 1
    assert losses.feature_distillation(noise(1, 20_000), [noise(1, 20_000, seed=1)]).item() == pytest.approx(2, abs=0.1)
