"""PESQ, STOI and the composites: agreement with the packages, and the cases in which those crash."""

import builtins

import numpy as np
import pesq
import pystoi
import pytest
import scipy.linalg
import soundfile

from clearstate import metrics
from clearstate.metrics.composite import _autocorrelation, _slope_weights, levinson
from clearstate.metrics.perceptual import PESQ_FLOOR

RATE = 16_000


def test_pesq_and_stoi_are_the_packages_numbers(pair):
    clean, noisy = pair
    assert metrics.pesq_wb(clean, noisy, RATE) == pytest.approx(pesq.pesq(RATE, clean, noisy, "wb"), abs=1e-4)
    assert metrics.pesq_nb(clean, noisy, RATE) == pytest.approx(pesq.pesq(RATE, clean, noisy, "nb"), abs=1e-4)
    assert metrics.stoi(clean, noisy, RATE) == pytest.approx(pystoi.stoi(clean, noisy, RATE), abs=1e-9)
    assert metrics.estoi(clean, noisy, RATE) == pytest.approx(pystoi.stoi(clean, noisy, RATE, extended=True), abs=1e-9)


@pytest.mark.parametrize("score", [metrics.pesq_wb, metrics.pesq_nb, metrics.stoi, metrics.estoi])
def test_a_silent_reference_is_nan(pair, score):
    clean, noisy = pair
    assert np.isnan(score(np.zeros_like(clean), noisy, RATE))


@pytest.mark.parametrize("score", [metrics.pesq_wb, metrics.pesq_nb, metrics.stoi, metrics.estoi])
@pytest.mark.parametrize("samples", [1, 100, 3_999])
def test_a_clip_under_a_quarter_second_is_nan(pair, score, samples):
    clean, noisy = pair
    assert np.isnan(score(clean[2000 : 2000 + samples], noisy[2000 : 2000 + samples], RATE))


def test_an_all_zero_output_gets_the_floor_of_the_scale(pair):
    clean, noisy = pair
    silence = np.zeros_like(clean)
    assert metrics.pesq_wb(clean, silence, RATE) == PESQ_FLOOR
    assert metrics.pesq_nb(clean, silence, RATE) == PESQ_FLOOR
    assert metrics.stoi(clean, silence, RATE) == 0
    assert metrics.pesq_wb(clean, noisy, RATE) > PESQ_FLOOR
    assert metrics.composite(clean, silence, RATE).covl == 1


def test_a_wrong_rate_is_refused_with_the_right_one(pair):
    with pytest.raises(ValueError, match="defined at 16000 Hz, got 48000"):
        metrics.pesq_wb(*pair, 48_000)
    with pytest.raises(ValueError, match="defined at 8000 or 16000 Hz, got 44100"):
        metrics.pesq_nb(*pair, 44_100)


def test_a_missing_library_is_an_error_that_names_the_extra(pair, monkeypatch):
    def without_pesq(name, *rest, _import=__import__, **named):
        if name == "pesq":
            raise ModuleNotFoundError(name)
        return _import(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_pesq)
    monkeypatch.delitem(__import__("sys").modules, "pesq")
    monkeypatch.setattr("importlib.import_module", lambda name: without_pesq(name))
    with pytest.raises(metrics.MissingExtra, match=r"pip install 'clearstate\[metrics\]'"):
        metrics.pesq_wb(*pair, RATE)


def test_the_composites_are_their_regression(pair):
    clean, noisy = pair
    p, distance = metrics.pesq_wb(clean, noisy, RATE), metrics.llr(clean, noisy, RATE)
    slope, segmental = metrics.wss(clean, noisy, RATE), metrics.segmental_snr(clean, noisy, RATE)
    scores = metrics.composite(clean, noisy, RATE)
    assert scores.csig == pytest.approx(np.clip(3.093 - 1.029 * distance + 0.603 * p - 0.009 * slope, 1, 5))
    assert scores.cbak == pytest.approx(np.clip(1.634 + 0.478 * p - 0.007 * slope + 0.063 * segmental, 1, 5))
    assert scores.covl == pytest.approx(np.clip(1.594 + 0.805 * p - 0.512 * distance - 0.007 * slope, 1, 5))


def test_a_perfect_copy_has_no_distance_and_the_highest_opinions(pair):
    clean, _ = pair
    assert metrics.llr(clean, clean, RATE) == pytest.approx(0, abs=1e-9)
    assert metrics.wss(clean, clean, RATE) == 0
    assert metrics.composite(clean, clean, RATE) == (5.0, 5.0, 5.0)


def test_levinson_solves_the_normal_equations():
    x = np.random.default_rng(0).standard_normal((3, 480))
    lags = _autocorrelation(x, 16)
    ours = levinson(lags)
    for row, a in zip(lags, ours, strict=True):
        np.testing.assert_allclose(a[1:], scipy.linalg.solve_toeplitz(row[:-1], -row[1:]), atol=1e-10)


def test_llr_is_the_ratio_of_prediction_errors(make_pair):
    """Frame by frame: both predictors run over the reference's autocorrelation, by scipy's solver."""
    clean, noisy = make_pair(seconds=0.3)
    window = np.hanning(482)[1:-1]
    ratios = []
    for start in range(0, 120 * int(len(clean) / 120 - 4), 120):
        errors = []
        lags_r = np.correlate(*[clean[start : start + 480] * window] * 2, "full")[479 : 479 + 17]
        for x in (clean, noisy):
            lags = np.correlate(*[x[start : start + 480] * window] * 2, "full")[479 : 479 + 17]
            a = np.r_[1, scipy.linalg.solve_toeplitz(lags[:-1], -lags[1:])]
            errors.append(a @ scipy.linalg.toeplitz(lags_r) @ a)
        ratios.append(np.log(errors[1] / errors[0]))
    best = np.sort(ratios)[: round(0.95 * len(ratios))]
    assert metrics.llr(clean, noisy, RATE) == pytest.approx(best.mean(), rel=1e-6)


def test_the_peak_walk_equals_the_loop_of_the_scripts():
    energy = np.random.default_rng(0).normal(0, 10, (50, 25))
    slope = np.diff(energy)
    expected = np.empty((50, 24))
    for f in range(50):
        for i in range(24):
            n = i
            if slope[f, i] > 0:
                while n < 24 and slope[f, n] > 0:
                    n += 1
                peak = energy[f, n - 1]
            else:
                while n >= 0 and slope[f, n] <= 0:
                    n -= 1
                peak = energy[f, n + 1]
            expected[f, i] = 20 / (20 + energy[f].max() - energy[f, i]) / (1 + peak - energy[f, i])
    np.testing.assert_allclose(_slope_weights(energy, slope), expected, rtol=1e-12)


def test_the_divided_scale_flatters(pair):
    clean, noisy = pair
    quiet = 0.05
    matlab = metrics.composite(quiet * clean, quiet * noisy, RATE)
    divided = metrics.composite(quiet * clean, quiet * noisy, RATE, divided=True)
    assert metrics.wss(quiet * clean, quiet * noisy, RATE, divided=True) < metrics.wss(
        quiet * clean, quiet * noisy, RATE
    )
    assert divided.cbak > matlab.cbak + 0.1


@pytest.mark.slow
def test_the_published_noisy_row_is_reproduced(shared_data):
    """All 100 noisy pairs of the validation set: the row was made by an independent scorer."""
    folder = shared_data / "valid" / "denoise"
    rows = []
    for path in sorted((folder / "clean").iterdir()):
        (clean, rate), (noisy, _) = soundfile.read(path), soundfile.read(folder / "noisy" / path.name)
        p = metrics.pesq_wb(clean, noisy, rate)
        closed = (
            metrics.stoi(clean, noisy, rate),
            metrics.si_sdr(clean, noisy),
            metrics.segmental_snr(clean, noisy, rate),
        )
        rows.append((p, *closed, *metrics.composite(clean, noisy, rate, pesq=p)))
    assert len(rows) == 100
    published = [1.413, 0.768, 2.38, 1.77, 2.47, 2.03, 1.86]  # PESQ, STOI, SI-SDR, SSNR, CSIG, CBAK, COVL
    np.testing.assert_allclose(np.mean(rows, axis=0), published, atol=0.006)  # they are rounded to 0.01 and 0.001


def test_more_utterances_than_pesq_can_hold_is_nan_and_not_a_crash():
    rng = np.random.default_rng(0)
    burst = np.r_[0.1 * rng.standard_normal(3400), np.zeros(3400)]
    clean = np.tile(burst, 60) + 1e-4 * rng.standard_normal(60 * 6800)  # 25 s; kills the process it is scored in
    assert np.isnan(metrics.pesq_wb(clean, clean + 0.01 * rng.standard_normal(len(clean)), RATE))


def test_a_long_clip_scores_the_same_in_its_own_process(pair, monkeypatch):
    clean, noisy = pair
    here = metrics.pesq_wb(clean, noisy, RATE)
    monkeypatch.setattr("clearstate.metrics.perceptual.SAFE_SECONDS", 1)
    assert metrics.pesq_wb(clean, noisy, RATE) == pytest.approx(here, abs=1e-6)
