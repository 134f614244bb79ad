"""`clearstate live` between two null sinks of a real PulseAudio server.

The blocks are long, because machines that run tests are busy. The sound itself is compared: what was played into the
microphone, both recordings, what `clearstate.Stream` makes of the first one, and what another program records from the
loudspeaker.
"""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from numpy.lib.stride_tricks import sliding_window_view
from scipy.signal import correlate
from sound_server import LOUDSPEAKER, MICROPHONE, RATE, Tap, hurry

import clearstate
from clearstate.metrics.intrusive import si_sdr
from clearstate.models import PRESETS

CLIPS = Path(__file__).resolve().parents[2] / "examples" / "clips"
BLOCK_MS = 100
LEAST_DB = 5  # of `followed`; half a window of silence leaves 0 dB, a gap that is cut out far less
KINDS = ("before", "after")
PATIENCE = 60  # seconds; kernels may have to be compiled

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(PRESETS["live"].weights is None, reason="the package holds no weights of 'live'"),
]


class Command:
    """The command on a terminal of its own."""

    def __init__(self, server, *words):
        self._terminal, inside = pty.openpty()
        options = ["--input", MICROPHONE, "--output", LOUDSPEAKER, "--block", str(BLOCK_MS), *map(str, words)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "clearstate", "live", *options],
            env={**server.env, "COLUMNS": "150", "TERM": "xterm", "CUDA_VISIBLE_DEVICES": ""},
            stdin=inside, stdout=inside, stderr=inside, start_new_session=True, preexec_fn=hurry,
        )  # fmt: skip
        os.close(inside)
        self.said = ""

    def until(self, pattern, seconds=PATIENCE):
        """Wait for new text on the terminal."""
        end, start = time.monotonic() + seconds, len(self.said)
        while not (found := re.search(pattern, self.said[start:])):
            assert time.monotonic() < end, f"{pattern!r} did not appear in:\n{self.said[-2_000:]}"
            self.listen(0.2)
        return found

    def listen(self, seconds=0.0):
        end = time.monotonic() + seconds
        while select.select([self._terminal], [], [], max(0.0, end - time.monotonic()))[0]:
            try:
                fresh = os.read(self._terminal, 1 << 16).decode(errors="replace")
            except OSError:  # the command has exited
                break
            self.said += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", fresh)
            if not fresh or time.monotonic() > end:
                break

    def press(self, key):
        os.write(self._terminal, key.encode())

    def sounding(self):
        """Wait until sound flows and the first seconds, while devices start, have passed."""
        self.until(r"latency +\d+ ms")
        for _ in range(5):
            self.listen(0.5)
        return self

    def end(self, number=signal.SIGINT):
        """Ask it to end; the exit code, and the last line."""
        self.process.send_signal(number)
        until = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < until:
            self.listen(0.1)
        self.listen(0.3)
        os.close(self._terminal)
        return self.process.wait(1)


@pytest.fixture
def command(server):
    started = []

    def start(*words):
        started.append(Command(server, *words))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


def clip(kind, seconds):
    """The three shipped clips one after the other, again and again."""
    parts = [
        soundfile.read(CLIPS / f"{name}.{kind}.flac", dtype="float32")[0] for name in ("fire_10db", "chainsaw_5db")
    ]
    once = soxr.resample(np.concatenate(parts), 16_000, RATE)
    return np.tile(once, int(np.ceil(seconds * RATE / len(once))))[: seconds * RATE]


def place(sound, part):
    """Where `part` is in `sound`."""
    return int(np.argmax(correlate(sound, part, "valid", method="fft")))


def impulses():
    """Short bursts of noise with unequal pauses: their place is unmistakable."""
    rng, parts = np.random.default_rng(0), []
    for pause in (0.5, 0.7, 0.4, 0.6):
        parts += [rng.uniform(-0.5, 0.5, RATE // 50), np.zeros(round(pause * RATE))]
    return np.concatenate(parts).astype(np.float32)


def followed(expected, heard, window=RATE // 100, reach=RATE // 200):
    """SI-SDR of each 10 ms with speech, at its own place within 5 ms of that of the one before.

    The reserve may be corrected by 1 ms per second, also in a pause. A gap, a click or a jump is sudden.
    """
    whole = place(heard, expected)
    first = max(0, whole - RATE // 10)
    offset, scores = first + place(heard[first : whole + RATE + RATE // 10], expected[:RATE]), []
    for start in range(0 if offset >= reach else reach, len(expected) - window - reach, window):
        part = expected[start : start + window]
        if part.std() < expected.std() / 5:
            continue
        first = start + offset - reach
        near = sliding_window_view(heard[first : first + window + 2 * reach], window)  # (lag, window)
        likeness = near @ part / (np.linalg.norm(near, axis=1) * np.linalg.norm(part) + 1e-9)
        offset += int(np.argmax(likeness)) - reach
        square = min(float(likeness.max()) ** 2, 1 - 1e-6)
        scores.append(10 * np.log10(square / (1 - square)))
    return scores


@pytest.mark.parametrize("gap", ["silent", "cut out"])
def test_a_gap_of_10_ms_would_be_seen(gap):
    sound = clip("clean", 4)
    heard = np.concatenate([np.zeros(RATE // 2, np.float32), sound, np.zeros(RATE // 2, np.float32)])
    assert min(followed(sound, heard)) > 50
    start, width = RATE // 2 + int(np.argmax(np.abs(sound))) - RATE // 200, RATE // 100
    if gap == "silent":
        heard[start : start + width] = 0
    else:
        heard = np.delete(heard, np.s_[start : start + width])
    assert min(followed(sound, heard)) < LEAST_DB


def dropouts(said):
    return int(re.findall(r"(\d+) dropouts?", said)[-1])


def measured(said):
    return float(re.findall(r"latency (\d+) ms \(measured\)", said)[-1]) / 1000


@pytest.mark.skipif(
    "CLEARSTATE_LIVE_TESTS" not in os.environ,
    reason="needs a machine that does nothing else: set CLEARSTATE_LIVE_TESTS",
)
@pytest.mark.parametrize("seconds", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_a_noisy_clip_comes_out_clean_aligned_and_without_a_gap(server, command, tmp_path, seconds):
    noisy, clean = clip("noisy", seconds), clip("clean", seconds)
    running = command("--record", tmp_path / "call.wav").sounding()
    tap = Tap(server, f"{LOUDSPEAKER}.monitor")
    server.play(noisy)
    time.sleep(1.5)
    sounded = tap.stop()[0]
    assert running.end() == 0, running.said
    assert dropouts(running.said) == 0, running.said
    (before, rate), (after, _) = (soundfile.read(tmp_path / f"call.{kind}.wav", dtype="float32") for kind in KINDS)
    assert rate == RATE and len(before) == len(after)

    start = place(before, noisy)
    during = slice(start, start + seconds * RATE)
    assert si_sdr(noisy, before[during]) > 40  # all of the clip arrived: 16 bits, no gap
    stream = clearstate.Stream("live", RATE)
    expected = np.concatenate([stream.process(before), stream.flush()])[stream.latency_samples :]
    np.testing.assert_allclose(after, expected, atol=2e-4)  # aligned to the sample
    assert si_sdr(clean, after[during]) > si_sdr(clean, noisy) + 3
    scores = followed(after[during], sounded)
    assert len(scores) > 20 * seconds
    assert min(scores) > LEAST_DB, sorted(scores)[:20]  # all of it sounded


def test_an_impulse_takes_the_latency_that_is_shown_and_bypass_is_the_input(server, command):
    running = command().sounding()
    running.press("b")
    running.until("bypass  in")
    taps = [Tap(server, source) for source in (MICROPHONE, f"{LOUDSPEAKER}.monitor")]
    sound = impulses()
    server.play(sound)
    time.sleep(1.5)
    (before, began), (after, later) = (tap.stop() for tap in taps)
    running.press("b")
    running.until("live  in")
    assert running.end() == 0
    first, second = place(before, sound), place(after, sound)
    latency = later + second / RATE - began - first / RATE
    assert latency == pytest.approx(measured(running.said), abs=0.06)  # the bursts of the server: 20 ms each way
    assert 0.03 < latency < 1
    assert si_sdr(sound, after[second : second + len(sound)]) > 10  # the model would remove the bursts
    assert dropouts(running.said) == 0


@pytest.mark.parametrize("sink", ["microphone", "loudspeaker"])
def test_a_device_that_disappears_and_returns_is_used_again(server, command, sink):
    running = command().sounding()
    server.unload(sink)
    running.until(f"{sink}.* has disappeared; waiting for it")
    elsewhere = Tap(server, "elsewhere.monitor")
    time.sleep(1)
    server.load(sink)
    running.until("is back")
    assert not elsewhere.stop()[0].any()  # nothing on the server's default device
    running.sounding()
    tap = Tap(server, f"{LOUDSPEAKER}.monitor")
    server.play(clip("noisy", 2))
    time.sleep(1.5)
    after = tap.stop()[0]
    assert running.end() == 0
    expected = clearstate.Stream("live", RATE).process(clip("noisy", 2))[RATE:]
    assert np.median(followed(expected, after)) > 8  # not more: frames start elsewhere than in the sound before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, "q"])
def test_it_ends_cleanly_and_the_terminal_is_as_before(server, command, tmp_path, number):
    running = command("--record", tmp_path / "call.flac").sounding()
    if number == "q":
        running.press("q")
        running.until("recorded")
        number = 0
    assert running.end(number) == 0, running.said
    assert "Traceback" not in running.said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["call.after.flac", "call.before.flac"]
    assert soundfile.info(tmp_path / "call.after.flac").duration > 2


def test_signals_that_come_twice_or_at_any_moment_end_it_cleanly(server, command, tmp_path):
    running = command("--record", tmp_path / "call.wav").sounding()
    for _ in range(200):
        running.process.send_signal(signal.SIGINT)
    assert running.end(signal.SIGINT) == 0, running.said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["call.after.wav", "call.before.wav"]


def test_killed_it_leaves_no_recording_under_its_name(server, command, tmp_path):
    running = command("--record", tmp_path / "call.wav").sounding()
    running.process.kill()
    running.process.wait()
    assert list(tmp_path.glob("[!.]*")) == []


def test_the_list_names_the_devices_of_the_server(server):
    words = [sys.executable, "-m", "clearstate", "live", "--list"]
    listed = subprocess.run(words, env=server.env, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
    assert re.search(r"input .*microphone\.monitor +2 +48000 Hz", listed)
    assert re.search(r"output .*loudspeaker +2 +48000 Hz", listed)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--input", "no such thing"], "no input device is called 'no such thing'"),
        (["--model", "saf-typo"], "saf-typo"),
        (["--record", "nowhere/call.wav"], "does not exist"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(server, words, says):
    options = ["--input", MICROPHONE, "--output", LOUDSPEAKER, *words]
    done = subprocess.run(
        [sys.executable, "-m", "clearstate", "live", *options],
        env=server.env, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert says in done.stderr and done.stderr.count("\n") == 1
