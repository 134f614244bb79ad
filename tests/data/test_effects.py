import numpy as np
import pytest
from corpora_in_miniature import RATE, voice
from scipy import signal

from clearstate.data import effects
from clearstate.data.effects import Room, make_room, synthetic_room


def delay_between(a: np.ndarray, b: np.ndarray) -> int:
    """Samples by which `a` trails `b`."""
    return int(np.argmax(np.abs(signal.correlate(a, b, method="fft")))) - (len(b) - 1)


def echoing(delay: int) -> np.ndarray:
    """A response: silence, a direct path after `delay` samples, a reflection at 20 ms and one at 120 ms."""
    h = np.zeros(delay + 4000, np.float32)
    h[delay], h[delay + 320], h[delay + 1920] = 1.0, 0.4, 0.5
    return h


@pytest.mark.parametrize("delay", [0, 5, 700])
def test_target_and_mixture_share_the_direct_path_of_the_dry_voice(delay):
    dry = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)  # sharp autocorrelation
    wet, target = make_room("r", echoing(delay), RATE).apply(dry)
    assert delay_between(target, dry) == 0
    assert delay_between(wet, dry) == 0
    # Negative control: plain convolution with the response is late by its delay.
    assert delay_between(np.convolve(dry, echoing(delay))[: len(dry)].astype(np.float32), dry) == delay


def test_the_target_keeps_early_reflections_and_drops_late_ones():
    impulse = np.zeros(8000, np.float32)
    impulse[1000] = 1.0
    wet, target = make_room("r", echoing(30), RATE).apply(impulse)
    gain = target[1000]
    assert target[1320] == pytest.approx(0.4 * gain, rel=1e-3)
    assert abs(target[2920]) < 1e-6
    assert wet[2920] == pytest.approx(0.5 * gain, rel=1e-3)


def test_early_and_late_part_add_up_to_the_response():
    room = synthetic_room(np.random.default_rng(1), RATE)
    n = len(room.late)
    whole = np.zeros(n, np.float32)
    whole[: len(room.early)] += room.early[:n]
    whole += room.late
    # Without the cut the sum of both parts is the room itself: the weights add to one everywhere.
    again = make_room("again", whole, RATE)
    np.testing.assert_allclose(again.early, room.early, atol=1e-6)
    np.testing.assert_allclose(again.late, room.late, atol=1e-6)


def test_a_nearer_talker_is_less_reverberant():
    dry = voice(120, 1.0)
    room = make_room("r", echoing(10), RATE)

    def late_share(closeness_db):
        wet, target = room.apply(dry, closeness_db)
        return float(((wet - target) ** 2).sum() / (target**2).sum())

    assert late_share(12.0) == pytest.approx(late_share(0.0) * 10**-1.2, rel=1e-3)


def test_lowpass_removes_what_is_above_and_keeps_what_is_below():
    t = np.arange(RATE, dtype=np.float32) / RATE
    sections = effects.lowpass_sections(4000, RATE)
    low = effects.apply_sections(sections, np.sin(2 * np.pi * 2000 * t))
    high = effects.apply_sections(sections, np.sin(2 * np.pi * 5000 * t))
    assert low[4000:].std() == pytest.approx(np.sqrt(0.5), rel=0.02)
    assert 20 * np.log10(high[4000:].std()) < -45


def test_a_shelf_lifts_the_treble_only():
    sections = effects.shelf_sections(1000.0, 6.0, RATE)
    _, response = signal.sosfreqz(sections, np.array([30.0, 7900.0]), fs=RATE)
    np.testing.assert_allclose(20 * np.log10(np.abs(response)), [0.0, 6.0], atol=0.1)


def test_a_bell_has_its_gain_at_its_centre():
    _, response = signal.sosfreqz(effects.peak_sections(2000.0, -4.0, 1.0, RATE), np.array([2000.0, 20.0]), fs=RATE)
    np.testing.assert_allclose(20 * np.log10(np.abs(response)), [-4.0, 0.0], atol=0.01)


def test_clipping_cuts_the_peaks_and_nothing_else():
    x = voice(100, 0.5)
    y = effects.clip(x, 6.0)
    limit = np.abs(x).max() * 10**-0.3
    assert np.abs(y).max() == pytest.approx(limit, rel=1e-5)
    np.testing.assert_array_equal(y[np.abs(x) < limit], x[np.abs(x) < limit])


def test_mu_law_has_about_38_db_at_any_level():
    x = np.sin(np.arange(RATE) * 0.11).astype(np.float32)
    for level in (0.9, 0.1):
        error = effects.mu_law(level * x) - level * x
        assert 30 < 10 * np.log10((level * x).var() / error.var()) < 42


@pytest.mark.parametrize("bits", [8, 12])
def test_each_bit_is_worth_six_decibels(bits):
    x = np.random.default_rng(0).uniform(-1, 1, RATE).astype(np.float32)
    error = effects.quantise(x, bits) - x
    assert 10 * np.log10(x.var() / error.var()) == pytest.approx(6.02 * bits, abs=0.3)


@pytest.mark.parametrize("kind", ["MP3", "OPUS"])
def test_codecs_keep_length_and_place(kind):
    sections = effects.lowpass_sections(3500, RATE)
    x = effects.apply_sections(sections, np.random.default_rng(0).standard_normal(20_001).astype(np.float32)) * 0.1
    y = effects.codec(x, RATE, kind, 0.4)
    assert y.shape == x.shape
    assert delay_between(y, x) == 0
    assert 0 < np.mean((x - y) ** 2) < np.mean(x**2)


def test_lost_packets_are_whole_and_as_many_as_asked():
    keep = effects.lost_packets(np.random.default_rng(0), 4000 * 320, RATE, 0.1).reshape(-1, 320)
    assert set(np.unique(keep)) == {0.0, 1.0}
    assert (keep.min(axis=1) == keep.max(axis=1)).all()
    assert 1 - keep[:, 0].mean() == pytest.approx(0.13, abs=0.02)  # 10 % and the third of their successors


def test_a_wandering_gain_stays_in_its_range():
    gain = effects.wandering_gain(np.random.default_rng(3), 10 * RATE, RATE, 12.0)
    assert gain.max() <= 1.0
    assert gain.min() >= 10**-0.6 - 1e-6
    assert gain.std() > 0.05


def test_rooms_do_not_write_into_the_voice():
    dry = voice(100, 0.2)
    before = dry.copy()
    room: Room = synthetic_room(np.random.default_rng(0), RATE)
    room.apply(dry)
    np.testing.assert_array_equal(dry, before)


@pytest.mark.parametrize("seed", range(6))
def test_a_made_up_room_has_the_reverberation_it_names(seed):
    room = synthetic_room(np.random.default_rng(seed), RATE)
    named = float(room.name.split("RT60 ")[1].split(" ")[0])
    response = room.late.copy()
    response[: len(room.early)] += room.early[: len(response)]
    energy = np.cumsum(response[::-1] ** 2)[::-1]
    decay = 10 * np.log10(energy / energy[0] + 1e-12)
    times = [np.argmax(decay < level) / RATE for level in (-5, -20)]
    assert times[1] - times[0] < named * 15 / 60 * 2.5  # dB a second, roughly: early images decay as they like
    assert np.argmax(np.abs(response)) < 0.02 * RATE


def test_the_first_arrivals_in_a_room_are_those_of_its_geometry():
    size, walls = np.array([4.0, 5.0, 3.0]), np.full((3, 2), 0.9)
    talker, ear = np.array([1.0, 2.0, 1.0]), np.array([3.0, 2.0, 1.0])
    h = effects._images(talker, ear, size, walls, 0.02, RATE)
    direct, floor = 2.0, np.hypot(2.0, 2.0)  # m
    at = RATE // 500
    later = at + round((floor - direct) / 343 * RATE)
    assert np.flatnonzero(np.abs(h) > 0.1 * np.abs(h).max())[0] == at
    energy = [np.sum(h[i - 3 : i + 4]) for i in (at, later)]
    assert energy[1] / energy[0] == pytest.approx(0.9 * direct / floor, rel=0.1)  # one reflection


def test_soft_overload_leaves_what_is_quiet_and_squeezes_what_is_loud():
    x = np.array([-1.0, -0.001, 0.0, 0.001, 1.0], np.float32)
    y = effects.saturate(x, 6.0, 0.3)
    np.testing.assert_allclose(y[1:4], x[1:4], rtol=0.01, atol=1e-7)
    assert (np.abs(y[[0, 4]]) < 0.8).all()
    assert y[4] != pytest.approx(-y[0])


def test_gain_control_brings_loud_and_quiet_parts_together():
    x = np.random.default_rng(0).standard_normal(4 * RATE).astype(np.float32) * 0.1
    x[2 * RATE :] *= 0.1
    y = x * effects.gain_control(x, RATE, 0.8, 0.3)
    before, after = (20 * np.log10(z[RATE : 2 * RATE].std() / z[3 * RATE :].std()) for z in (x, y))
    assert before == pytest.approx(20, abs=0.5)
    assert after < 8


def test_a_concealed_packet_is_the_last_one_fainter():
    x = np.repeat(np.arange(1.0, 6.0, dtype=np.float32), 320)
    keep = np.repeat(np.array([1, 0, 0, 1, 0], np.float32), 320)
    assert effects.conceal(x, keep, RATE)[::320].tolist() == [1.0, 0.5, 0.25, 4.0, 2.0]
