"""Separation of files and arrays: what goes in comes out shared among the speakers, who stay who they are."""

import io
import json
import tracemalloc
from functools import cache

import numpy as np
import pytest
import soundfile
import torch
from doubles import CausalDouble, Identity
from torch import nn

from clearstate.audio.mono import MEAN
from clearstate.audio.resample import resample
from clearstate.models.s4m import S4M, S4MConfig
from clearstate.runtime import open_model
from clearstate.tasks import keeping
from clearstate.tasks import voices as stages
from clearstate.tasks.enhance import Enhancer
from clearstate.tasks.separate import Activity, Separator, load_separator, output_names
from clearstate.tasks.voices import Voices, best_order, runner_for

RATE = 8_000
SPLIT_HZ = 900.0


def joined(pairs, delay, samples):
    """What a runner gave, aligned with its input."""
    return (np.concatenate(rows, axis=1)[:, delay : delay + samples] for rows in zip(*pairs, strict=True))


class Bands(nn.Module):
    """An oracle for sources in disjoint bands, which gives them out in a random order at every call."""

    task, sample_rate, causal, speakers = "separate", RATE, False, 2

    def __init__(self, error: float = 0.0) -> None:
        super().__init__()
        self.error, self.random, self.calls = error, np.random.default_rng(3), 0

    def forward(self, mixture):
        self.calls += 1
        spectrum = torch.fft.rfft(mixture)
        low = torch.arange(spectrum.shape[-1]) * RATE / max(1, mixture.shape[-1]) < SPLIT_HZ
        both = torch.stack([torch.fft.irfft(spectrum * band, n=mixture.shape[-1]) for band in (low, ~low)], 1)
        both = both + self.error * torch.randn_like(both)
        return both[:, self.random.permutation(2).tolist()]


class Halves(nn.Module):
    """A causal separator: 0.7 and 0.2 of the input, 24 samples late."""

    task, sample_rate, causal, speakers, hop, latency = "separate", RATE, True, 2, 64, 24

    def init_state(self, batch):
        return torch.zeros(batch, self.latency)

    def step(self, x, state):
        late = torch.cat([state, x], -1)
        y = late[:, : x.shape[-1]]
        return torch.stack([0.7 * y, 0.2 * y], 1), late[:, x.shape[-1] :]


@cache
def conversation(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Two talkers (2, n): noise in a low and in a high band, in turns of seconds with overlaps and common pauses."""
    rng = np.random.default_rng(seed)
    n = int(seconds * rate)
    spectrum = np.fft.rfft(rng.standard_normal((2, n)))
    frequency = np.arange(spectrum.shape[1]) * rate / n
    bands = np.stack([(frequency > 150) & (frequency < 700), (frequency > 1_100) & (frequency < 3_000)])
    talk = np.fft.irfft(spectrum * bands, n=n)
    turns = rng.choice([[1, 0], [0, 1], [1, 1], [0, 0]], p=[0.35, 0.35, 0.25, 0.05], size=int(seconds / 1.5) + 2).T
    on = np.repeat(turns, int(1.5 * rate), axis=1)[:, :n].astype(float)
    ramp = rate // 20  # turns rise and fall over 50 ms
    sums = np.cumsum(np.pad(on, ((0, 0), (ramp, 0))), axis=1)
    on = (sums[:, ramp:] - sums[:, :-ramp]) / ramp
    return talk * on * np.array([[0.3], [0.15]])


def snr(estimate, target) -> float:
    return 10 * np.log10(np.square(target).sum() / np.square(target - estimate).sum())


def matched(voices, sources) -> float:
    """The SNR of the worse voice in the better order."""
    return max(min(snr(voices[i], sources[0]), snr(voices[1 - i], sources[1])) for i in (0, 1))


def test_speakers_stay_in_order_over_ten_minutes():
    sources = conversation(600.0)
    model = Bands(error=0.02)
    voices = Separator(model).separate(sources.sum(0), RATE)
    assert model.calls > 60  # blocks, each in an order of its own
    assert matched(voices, sources) > 12  # dB, with an oracle that errs


def test_without_the_overlap_they_would_not(monkeypatch):
    """The negative control: blocks put together in the order in which the model gives them."""
    monkeypatch.setattr(stages, "best_order", lambda before, after: tuple(range(len(before))))
    monkeypatch.setattr(keeping, "choose", lambda found: [0] * len(found))
    sources = conversation(120.0)
    assert matched(Separator(Bands(error=0.02)).separate(sources.sum(0), RATE), sources) < 3


@cache
def call(seconds: float) -> np.ndarray:
    """Two talkers (2, n) with pauses of up to half a minute, in which no block hears both."""
    rng = np.random.default_rng(3)
    talk, sources, at = conversation(seconds, seed=4), np.zeros((2, int(seconds * RATE))), RATE
    while at < sources.shape[1]:
        who, stop = int(rng.integers(2)), at + int(rng.uniform(1, 5) * RATE)
        sources[who, at:stop] = talk[who, at:stop]
        at = stop + int(rng.choice([0.5, 3, 14, 30]) * RATE)
    return sources


def test_a_voice_is_known_again_after_a_long_pause():
    sources = call(600.0)
    hiss = 1e-3 * np.random.default_rng(0).standard_normal(sources.shape[1])
    assert matched(Separator(Bands()).separate(sources.sum(0) + hiss, RATE), sources) > 12


def test_without_its_portrait_it_would_not(monkeypatch):
    """The negative control: the overlap of blocks says nothing across a pause."""
    monkeypatch.setattr(keeping, "choose", lambda found: [0] * len(found))
    sources = call(600.0)
    assert matched(Separator(Bands()).separate(sources.sum(0), RATE), sources) < 3


def test_what_was_decided_does_not_depend_on_the_chunks():
    rng, rate = np.random.default_rng(0), 8_000
    outputs = rng.standard_normal((2, 20 * rate))
    with keeping.Estimates(rate) as estimates:
        for start in range(0, outputs.shape[1], 7_777):
            estimates.append(outputs[:, start : start + 7_777])
        borders, actions = np.array([5_000, 60_000, 60_500]), np.stack([keeping.ACTIONS[i] for i in (0, 1, 2, 3)])
        whole = keeping.Kept(estimates, 1, borders, actions).push(outputs[:1])[1]
        parts = keeping.Kept(estimates, 1, borders, actions)
        pieces = [parts.push(outputs[:1, start : start + 999])[1] for start in range(0, outputs.shape[1], 999)]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-12)
    np.testing.assert_allclose(whole.sum(0), outputs.sum(0), atol=1e-6)  # no action loses anything
    np.testing.assert_allclose(whole[:, 10_000:50_000], outputs[::-1, 10_000:50_000], atol=1e-6)
    assert not whole[0, 70_000:].any()


def test_long_recordings_of_any_rate_add_up_to_the_input():
    x = np.random.default_rng(0).standard_normal((2, 15 * 11_025))
    np.testing.assert_allclose(Separator(Bands()).separate(x, 11_025).sum(0), x, atol=1e-6)


def test_a_pipe_is_known_again_like_a_file(tmp_path, monkeypatch):
    sources = call(120.0)
    soundfile.write(tmp_path / "talk.wav", sources.sum(0), RATE, "FLOAT")
    Separator(Bands()).separate_file(tmp_path / "talk.wav", tmp_path / "file")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "talk.wav").read_bytes())))
    Separator(Bands()).separate_file("-", tmp_path / "pipe")
    for i in (1, 2):
        file, pipe = tmp_path / "file" / f"talk.speaker{i}.wav", tmp_path / "pipe" / f"stdin.speaker{i}.wav"
        np.testing.assert_array_equal(soundfile.read(file)[0], soundfile.read(pipe)[0])


def test_outputs_in_the_way_are_told_before_a_pipe_is_read(tmp_path, monkeypatch):
    (tmp_path / "stdin.speaker1.wav").write_bytes(b"mine")
    pipe = io.BytesIO(b"RIFF")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(pipe))
    with pytest.raises((ValueError, OSError), match="speaker1"):
        Separator(Bands()).separate_file("-", tmp_path)
    assert pipe.tell() == 0 and (tmp_path / "stdin.speaker1.wav").read_bytes() == b"mine"


def test_one_sound_alone_needs_no_portrait():
    assert keeping.choose([]) == []
    with keeping.Estimates(RATE) as estimates:
        estimates.append(np.zeros((2, 20 * RATE)))
        assert estimates.utterances() == [] and len(keeping.keep(estimates, 1).actions) == 1


def test_the_order_is_that_of_the_loudest_agreement():
    rng = np.random.default_rng(1)
    before = rng.standard_normal((3, 500))
    after = before[[2, 0, 1]] + 0.5 * rng.standard_normal((3, 500))
    assert best_order(before, after) == (1, 2, 0)
    silent = before * np.array([[1.0], [0.0], [0.0]])
    assert best_order(silent, silent[[1, 0, 2]])[0] == 1  # silence has no say in where the one voice went


@pytest.mark.parametrize("rate", [RATE, 16_000, 44_100, 6_000])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_the_outputs_add_up_to_the_input(rate, channels):
    rng = np.random.default_rng(2)
    mixture = resample(conversation(3.0).astype(np.float32).sum(0, keepdims=True), RATE, rate)
    x = rng.uniform(0.2, 1.0, (channels, 1)) * mixture + 0.02 * rng.standard_normal((channels, mixture.shape[1]))
    for model in (Bands(), Halves()):  # Halves leaves a tenth unexplained
        voices = Separator(model).separate(x, rate)
        assert voices.shape == (2, *x.shape)
        np.testing.assert_allclose(voices.sum(0), x, atol=2e-6)


def test_relative_levels_are_true():
    sources = conversation(10.0)
    voices = Separator(Bands()).separate(sources.sum(0), RATE)
    for i in (0, 1):
        order = 0 if snr(voices[0], sources[0]) > snr(voices[1], sources[0]) else 1
        ratio = np.sqrt(np.square(voices[i ^ order]).mean() / np.square(sources[i]).mean())
        assert abs(20 * np.log10(ratio)) < 0.1  # dB


def test_what_lies_above_the_models_band_goes_to_whoever_speaks():
    """At 32 kHz, hiss at 6 kHz that comes and goes with the high voice ends up with it."""
    rate, n = 32_000, 32_000 * 6
    t = np.arange(n) / rate
    low, high = 0.3 * np.sin(2 * np.pi * 400 * t), 0.3 * np.sin(2 * np.pi * 2_500 * t)
    talks = np.arange(n) % rate < rate // 2
    hiss = 0.1 * np.sin(2 * np.pi * 6_000 * t)
    voices = Separator(Bands()).separate(low * ~talks + (high + hiss) * talks, rate)
    spectrum = np.abs(np.fft.rfft(voices))[:, int(6_000 * n / rate)]
    assert max(spectrum) > 10 * min(spectrum)


def test_a_voice_keeps_its_place_between_the_channels():
    """One talker left, the other right: neither file hears the other's side."""
    sources = conversation(6.0)
    voices = Separator(Bands()).separate(sources, RATE)  # (2, channels, n)
    order = 0 if snr(voices[0, 0], sources[0]) > snr(voices[1, 0], sources[0]) else 1
    for i in (0, 1):
        mine = voices[i ^ order]
        assert snr(mine[i], sources[i]) > 15
        assert np.square(mine[1 - i]).mean() < 0.03 * np.square(sources[i]).mean()


@pytest.mark.parametrize("model", [Bands(), Halves()], ids=["blocks", "causal"])
@pytest.mark.parametrize("rate", [RATE, 22_050])
def test_the_result_does_not_depend_on_the_chunks(model, rate):
    x = conversation(20.0, RATE)[:, : 15 * RATE].sum(0, keepdims=True)
    x = x if rate == RATE else resample(x.astype(np.float32), RATE, rate)
    results = []
    for size in (x.shape[1], 7_001, 160_000):
        model.random = np.random.default_rng(3)
        voices = Voices(open_model(model, "separate"), rate, 1)
        parts = [voices.push(x[:, i : i + size]) for i in range(0, x.shape[1], size)]
        results.append(np.concatenate([*parts, voices.finish()], axis=2))
        assert results[-1].shape == (2, *x.shape)
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=1e-6)


@pytest.mark.parametrize("samples", [1, 2, 63, 64, 65, 128, 129, 1_000])
@pytest.mark.parametrize("rate", [RATE, 11_025])
def test_any_length(samples, rate):
    x = np.random.default_rng(0).standard_normal(samples)
    for model in (Bands(), Halves()):
        np.testing.assert_allclose(Separator(model).separate(x, rate).sum(0), x, atol=1e-5)


def test_a_short_signal_is_one_call_of_the_model():
    x = conversation(stages.BLOCK_SECONDS)[:, :-1].sum(0)
    model = Bands()
    Separator(model).separate(x, RATE)
    assert model.calls == 1


def test_silence_stays_silent():
    assert not Separator(Bands()).separate(np.zeros(9_000), RATE).any()


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float64, np.float32])
def test_types_come_back(dtype):
    x = conversation(1.0).sum(0)
    x = (x * 2**14).astype(dtype) if np.dtype(dtype).kind == "i" else x.astype(dtype)
    voices = Separator(Bands()).separate(x, RATE)
    assert voices.dtype == dtype and voices.shape == (2, len(x))
    tensor = Separator(Bands()).separate(torch.from_numpy(x), RATE)
    assert tensor.dtype == torch.from_numpy(x).dtype


def test_memory_does_not_grow_with_the_length():
    model, chunk = Bands(), conversation(20.0).sum(0, keepdims=True)
    peaks = []
    for rounds in (3, 9):
        voices = Voices(open_model(model, "separate"), RATE, 1)
        tracemalloc.start()
        for _ in range(rounds):
            voices.push(chunk)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_noise_can_be_removed_first():
    """The outputs add up to what the enhancer leaves; here it leaves half."""
    x = conversation(4.0).sum(0)
    halved = Enhancer(CausalDouble(gain=0.5))
    voices = Separator(Bands(), halved).separate(x, RATE)
    np.testing.assert_allclose(voices.sum(0), halved.enhance(x, RATE), atol=1e-6)
    same = Separator(Bands(), Enhancer(Identity())).separate(x, RATE)
    np.testing.assert_allclose(same.sum(0), x, atol=1e-6)


def test_a_real_causal_model_agrees_with_its_offline_output():
    torch.manual_seed(0)
    model = S4M(S4MConfig(sample_rate=RATE, window_ms=4.0, channels=8, hidden=16, passes=2, causal=True)).eval()
    x = conversation(1.0).sum(0, keepdims=True)
    runner = runner_for(open_model(model, "separate"), 1, MEAN)
    parts = [runner.push(x[:, i : i + 777]) for i in range(0, x.shape[1], 777)]
    X, E = joined([*parts, runner.finish()], runner.delay, x.shape[1])
    np.testing.assert_array_equal(X, x)
    with torch.no_grad():
        np.testing.assert_allclose(E, model(torch.from_numpy(x).float())[0].numpy(), atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- files


def write(path, x, rate=RATE, **options):
    soundfile.write(path, np.asarray(x).T, rate, **options)
    return path


@pytest.mark.parametrize("name, subtype", [("talk.wav", "PCM_24"), ("talk.flac", "PCM_16"), ("talk.wav", "FLOAT")])
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_a_file_becomes_one_file_a_speaker(tmp_path, name, subtype, rate):
    sources = conversation(15.0)
    stereo = np.stack([sources.sum(0), 0.5 * sources.sum(0)])
    stereo = stereo if rate == RATE else resample(stereo.astype(np.float32), RATE, rate)
    path = write(tmp_path / name, stereo, rate, subtype=subtype)
    seconds = []
    done = Separator(Bands()).separate_file(path, tmp_path / "out", progress=lambda at, of: seconds.append((at, of)))
    voices = []
    for speaker in done.speakers:
        info = soundfile.info(speaker.file)
        assert (info.frames, info.samplerate, info.channels, info.subtype) == (stereo.shape[1], rate, 2, subtype)
        voices.append(soundfile.read(speaker.file)[0].T)
    kept = soundfile.read(path)[0].T
    np.testing.assert_allclose(sum(voices), kept, atol=4e-5 if subtype == "PCM_16" else 2e-6)
    assert seconds[-1] == pytest.approx((15.0, 15.0), abs=1e-3)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        ["talk.timeline.json", *(f"talk.speaker{i}{path.suffix}" for i in (1, 2))]
    )


@pytest.mark.parametrize("hiss", [0.0, 0.006])
def test_the_timeline_says_who_speaks_when(tmp_path, hiss):
    n = 12 * RATE
    t = np.arange(n) / RATE
    low, high = 0.3 * np.sin(2 * np.pi * 400 * t), 0.1 * np.sin(2 * np.pi * 2_000 * t)
    on = lambda *spans: sum(((t >= a) & (t < b)).astype(float) for a, b in spans)  # noqa: E731
    mixture = low * on((1, 4), (6, 8)) + high * on((3, 5), (9, 11))
    mixture += hiss * np.random.default_rng(0).standard_normal(n)
    done = Separator(Bands()).separate_file(write(tmp_path / "t.wav", mixture), tmp_path)
    described = json.loads((tmp_path / "t.timeline.json").read_text())
    found = sorted((speaker["segments"] for speaker in described["speakers"]), key=lambda s: s[0][0])
    np.testing.assert_allclose(found, [[[1, 4], [6, 8]], [[3, 5], [9, 11]]], atol=0.11)
    assert described["seconds"] == 12.0 and described["input"].endswith("t.wav")
    assert [s.active_seconds for s in done.speakers] == pytest.approx(
        [s["active_seconds"] for s in described["speakers"]], abs=0.01
    )


def test_a_short_gap_does_not_end_a_turn_and_a_click_is_none():
    activity = Activity(1, 1_000)
    x = np.zeros((1, 1, 5_000))
    x[..., 1_000:2_000] = x[..., 2_200:3_000] = 0.5
    x[..., 4_000:4_050] = 0.5
    activity.push(x)
    assert activity.segments() == [[(1.0, 3.0)]]


def test_nobody_speaks():
    activity = Activity(2, 1_000)
    activity.push(np.zeros((2, 1, 2_345)))
    assert activity.segments() == [[], []]


def test_existing_outputs_are_kept_unless_told_otherwise(tmp_path):
    path = write(tmp_path / "a.wav", conversation(1.0).sum(0))
    separator = Separator(Bands())
    separator.separate_file(path, tmp_path / "out")
    before = (tmp_path / "out" / "a.speaker1.wav").read_bytes()
    with pytest.raises(FileExistsError, match="already exists"):
        separator.separate_file(path, tmp_path / "out")
    assert (tmp_path / "out" / "a.speaker1.wav").read_bytes() == before
    separator.separate_file(path, tmp_path / "out", overwrite=True)


def test_a_broken_file_leaves_nothing_behind(tmp_path):
    x = conversation(15.0).sum(0)
    x[13 * RATE] = np.nan
    path = write(tmp_path / "a.wav", x, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"13\.000 s"):
        Separator(Bands()).separate_file(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "make, error, says",
    [
        (lambda p: p / "none.wav", FileNotFoundError, "no such file"),
        (lambda p: p, IsADirectoryError, "folder"),
        (lambda p: (p / "empty.wav").touch() or p / "empty.wav", ValueError, "empty"),
        (lambda p: (p / "text.wav").write_text("hello") and p / "text.wav", ValueError, "text.wav"),
    ],
)
def test_bad_input_is_named(tmp_path, make, error, says):
    with pytest.raises(error, match=says):
        Separator(Bands()).separate_file(make(tmp_path), tmp_path / "out")


def test_an_output_folder_that_is_a_file_is_named(tmp_path):
    path = write(tmp_path / "a.wav", conversation(1.0).sum(0))
    with pytest.raises(OSError, match="cannot be created"):
        Separator(Bands()).separate_file(path, path)


def test_bad_arrays_are_named():
    separator = Separator(Bands())
    for wrong in (np.zeros((2, 3, 4)), np.zeros(0), np.array([0.0, np.nan]), np.zeros(5, dtype=complex)):
        with pytest.raises(ValueError, match="expected"):
            separator.separate(wrong, RATE)


def test_a_model_of_another_task_is_refused():
    with pytest.raises(ValueError, match="separate-fast"):
        Separator(CausalDouble(gain=1.0))
    with pytest.raises(ValueError, match="live is an enhancement model"):
        load_separator("live")


def test_names_of_outputs():
    assert output_names("a/talk.m4a", "out", 3)[0] == [f"out/talk.speaker{i}.wav" for i in (1, 2, 3)]
    assert output_names("-", "out", 1) == (["out/stdin.speaker1.wav"], "out/stdin.timeline.json")


def test_the_grid_of_blocks_covers_everything_once():
    """With a model that gives its input back, blocks and cross-fades are invisible."""

    class Echo(nn.Module):
        task, sample_rate, causal, speakers = "separate", RATE, False, 1

        def forward(self, x):
            return x[:, None]

    x = np.random.default_rng(0).standard_normal((1, 61 * RATE + 17))
    runner = runner_for(open_model(Echo(), "separate"), 1, MEAN)
    X, E = joined([runner.push(x), runner.finish()], 0, x.shape[1])
    np.testing.assert_array_equal(X, x)
    np.testing.assert_allclose(E, x, atol=1e-6)
