"""The path from microphone to loudspeaker, without either: time is counted in samples."""

import numpy as np
import pytest

from clearstate.live.cable import Cable, stretched

RATE, BLOCK, LATE = 8_000, 80, 37


class Late:
    """A stream that returns its input, LATE samples later and at half the level."""

    sample_rate, latency_samples = RATE, LATE

    def __init__(self, channels=1):
        self.channels, self.held = channels, np.zeros((channels, LATE), np.float32)

    def process(self, chunk):
        both = np.concatenate([self.held, chunk / 2], 1)
        self.held = both[:, chunk.shape[1] :]
        return both[:, : chunk.shape[1]].astype(np.float32)

    def flush(self):
        return self.held


def sine(seconds, hertz=50.0):
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE, dtype=np.float64)[None].astype(
        np.float32
    )


def run(cable, sound, drift=0.0, when=None):
    """Both threads in turn; the loudspeaker's clock is faster by `drift`."""
    played, due, done = [], 0.0, 0
    for start in range(0, sound.shape[1] - BLOCK + 1, BLOCK):
        cable.captured(sound[:, start : start + BLOCK], None if when is None else start / RATE)
        due += BLOCK * (1 + drift)
        while done + BLOCK <= due:
            played.append(cable.play(BLOCK, None if when is None else done / RATE + when))
            done += BLOCK
    return np.concatenate(played, axis=1)


def cable(channels=1, **settings):
    return Cable(Late(channels), BLOCK, **settings)


@pytest.mark.parametrize("channels", [1, 2])
def test_the_output_is_that_of_the_stream_after_the_latency_and_two_blocks_of_reserve(channels):
    sound = np.concatenate([sine(0.5) * (1 + i) / 2 for i in range(channels)])
    played = run(cable(channels), sound)
    late = LATE + 2 * BLOCK
    assert not played[:, :late].any()
    np.testing.assert_allclose(played[:, late:], sound[:, : played.shape[1] - late] / 2)


@pytest.mark.parametrize("drift", [-500e-6, -50e-6, 0, 50e-6, 500e-6])
def test_two_clocks_that_differ_lose_nothing_and_click_nowhere(drift):
    under_test = cable()
    played = run(under_test, sine(60), drift)
    assert under_test.dropouts == 0
    heard = played[0, 3 * RATE :]
    steepest = 2 * np.pi * 50 / RATE / 2  # of the sine between two samples
    assert np.abs(np.diff(heard)).max() < 1.1 * steepest
    assert np.abs(heard).max() > 0.49
    assert under_test._held.shape[1] < 7 * BLOCK


@pytest.mark.parametrize("drift", [-500e-6, 500e-6])
def test_without_the_correction_they_would(drift, monkeypatch):
    monkeypatch.setattr(Cable, "_correct", lambda *_: None)
    under_test = cable()
    run(under_test, sine(90), drift)
    assert under_test.dropouts > 0 or under_test._held.shape[1] > 3 * BLOCK


def test_a_microphone_that_is_late_is_a_dropout_and_the_reserve_grows():
    under_test = cable()
    run(under_test, sine(3))
    for _ in range(5):
        silent = under_test.play(BLOCK)
    assert not silent.any()
    assert under_test.dropouts == 1  # one gap, however long
    late = LATE + 3 * BLOCK
    sound = sine(1)
    np.testing.assert_allclose(run(under_test, sound)[:, late:], sound[:, :-late] / 2, atol=1e-6)


def test_the_first_seconds_do_not_count_as_dropouts():
    under_test = cable()
    run(under_test, sine(0.5))
    under_test.play(10 * BLOCK)
    under_test.lost()
    assert under_test.dropouts == 0


def test_a_standstill_of_the_loudspeaker_is_skipped_and_counted():
    under_test = cable()
    run(under_test, sine(3))
    for _ in range(50):
        under_test.captured(sine(0.01))
    run(under_test, sine(9))
    assert under_test.dropouts == 1
    assert under_test._held.shape[1] < 5 * BLOCK


def test_the_latency_is_the_time_from_capture_to_playback():
    under_test = cable()
    run(under_test, sine(8), when=0.25)
    assert under_test.meter().latency == pytest.approx(0.25 + (2 * BLOCK + LATE) / RATE, abs=1e-3)


def test_without_times_there_is_no_latency():
    under_test = cable()
    run(under_test, sine(2))
    assert under_test.meter().latency is None


def test_bypass_is_the_input_with_the_same_delay_and_without_a_click():
    under_test, sound = cable(), sine(2)
    parts = []
    for number, start in enumerate(range(0, sound.shape[1], BLOCK)):
        under_test.switch.bypass = 60 <= number < 120
        under_test.captured(sound[:, start : start + BLOCK])
        parts.append(under_test.play(BLOCK))
    played, late = np.concatenate(parts, 1)[0], LATE + 2 * BLOCK
    aligned, dry = played[late:], sound[0, : played.size - late]
    np.testing.assert_allclose(aligned[62 * BLOCK : 118 * BLOCK], dry[62 * BLOCK : 118 * BLOCK], atol=1e-6)
    np.testing.assert_allclose(aligned[: 58 * BLOCK], dry[: 58 * BLOCK] / 2, atol=1e-6)
    assert np.abs(np.diff(aligned)).max() < 1.2 * 2 * np.pi * 50 / RATE


def test_levels_are_in_decibels_of_full_scale():
    under_test = cable()
    run(under_test, sine(1))
    meter = under_test.meter()
    assert meter.level_in == pytest.approx(-3, abs=0.5)
    assert meter.level_out == pytest.approx(-9, abs=0.5)
    assert meter.load > 0


def test_what_is_recorded_is_complete_with_the_end_that_the_model_holds_back():
    before, after = [], []
    under_test = cable(record=lambda x, y: (before.append(x.copy()), after.append(y.copy())))
    sound = sine(1)
    run(under_test, sound)
    under_test.finish()
    before, after = (np.concatenate(parts, 1) for parts in (before, after))
    np.testing.assert_array_equal(before, sound)
    np.testing.assert_allclose(after[:, LATE:], sound / 2)


def test_after_a_restart_nothing_old_is_played():
    under_test = cable()
    run(under_test, sine(1))
    under_test.restart()
    assert not under_test.play(BLOCK).any()


@pytest.mark.parametrize("count", [79, 80, 81])
def test_stretching_keeps_both_ends_and_the_shape(count):
    block = sine(0.01)
    out = stretched(block, count)
    assert out.shape == (1, count) and out.dtype == np.float32
    assert out[0, 0] == block[0, 0] and out[0, -1] == block[0, -1]
