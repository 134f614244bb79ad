"""clearstate enhance, end to end: what people type, what they get, and what they are told when it cannot be."""

import contextlib
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from as_typed import in_this_process

from clearstate.metrics import si_sdr
from clearstate.models import PRESETS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "clips"
RATE = 16_000


def in_a_process(*args, **options):
    """Like `in_this_process`, but in a new process, in the current folder."""
    options = {"capture_output": True, "timeout": 600} | options
    code = "import sys; from clearstate.cli import main; main(sys.argv[1:])"
    result = subprocess.run([sys.executable, "-c", code, *map(str, args)], **options)
    result.stderr = result.stderr.decode()
    return result


def enhance(*args, model, run=in_this_process, **options):
    return run("enhance", *args, "--model", model, **options)


def sound(seconds=0.5, channels=1, rate=RATE):
    """A tone in noise, (samples, channels)."""
    time_axis = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(0).normal(0, 0.05, (len(time_axis), channels))
    return 0.2 * np.sin(2 * np.pi * 300 * time_axis)[:, None] + noise


def write(name, seconds=0.5, channels=1, rate=RATE, **options):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    soundfile.write(name, sound(seconds, channels, rate), rate, **options)
    return Path(name)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test stands in an empty folder of its own."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder


def listing():
    return sorted(os.path.join(folder, name)[2:] for folder, _, names in os.walk(".") for name in names)


def one_line(result, code, *words):
    """The command left with `code` and one line on stderr that holds the words; it returns that line."""
    told = result.stderr
    assert result.returncode == code, told
    assert "Traceback" not in told
    lines = told.strip().splitlines()
    assert len(lines) == 1, told
    assert lines[0].startswith("clearstate: ")
    for word in words:
        assert word in lines[0], f"{word!r} is not in {lines[0]!r}"
    return lines[0]


# ---------------------------------------------------------------- what is asked for


def test_a_file_is_enhanced_beside_itself_with_its_length_rate_channels_and_depth(tiny):
    write("talk.wav", 0.7, channels=2, rate=44_100, subtype="PCM_24")
    result = enhance("talk.wav", model=tiny)
    assert result.returncode == 0, result.stderr
    assert not result.stdout
    assert "talk.wav -> talk.clear.wav" in result.stderr
    assert listing() == ["talk.clear.wav", "talk.wav"]
    before, after = soundfile.info("talk.wav"), soundfile.info("talk.clear.wav")
    assert (after.frames, after.samplerate, after.channels, after.subtype) == (before.frames, 44_100, 2, "PCM_24")
    assert before.format == after.format
    assert not np.array_equal(soundfile.read("talk.wav")[0], soundfile.read("talk.clear.wav")[0])


@pytest.mark.slow
def test_folders_patterns_and_files_in_one_go_with_two_processes(tiny):
    write("day/a.wav")
    write("day/two/b.flac")
    write("x1.ogg")
    write("x2.wav")
    result = enhance("day", "x*", "-o", "out", "--jobs", 2, model=tiny)
    assert result.returncode == 0, result.stderr
    assert [name for name in listing() if name.startswith("out")] == [
        "out/a.wav",
        "out/two/b.flac",
        "out/x1.ogg",
        "out/x2.wav",
    ]
    assert result.stderr.count(" x real time") == 4


def test_strength_zero_changes_nothing_and_residual_is_what_was_taken(tiny):
    write("talk.wav", subtype="FLOAT")
    noisy, _ = soundfile.read("talk.wav")
    assert enhance("talk.wav", "-o", "same.wav", "--strength", 0, model=tiny).returncode == 0
    np.testing.assert_array_equal(soundfile.read("same.wav")[0], noisy)
    assert enhance("talk.wav", model=tiny).returncode == 0
    assert enhance("talk.wav", "--residual", model=tiny).returncode == 0
    clear, residual = soundfile.read("talk.clear.wav")[0], soundfile.read("talk.residual.wav")[0]
    np.testing.assert_allclose(clear + residual, noisy, atol=1e-6)
    assert np.abs(residual).max() > 1e-3


def test_the_report_is_json_on_stdout(tiny):
    write("good.wav", 0.5)
    Path("bad.wav").write_text("text")
    result = enhance("good.wav", "bad.wav", "-o", "out", "--json", model=tiny)
    report = json.loads(result.stdout)
    assert result.returncode == 1
    assert (report["done"], report["failed"]) == (1, 1)
    good, bad = sorted(report["files"], key=lambda file: not file["ok"])
    assert good["input"] == "good.wav" and good["output"] == os.path.join("out", "good.wav")
    assert good["seconds"] == pytest.approx(0.5) and good["speed"] > 0
    assert bad["input"] == "bad.wav" and bad["output"] is None and bad["error"]


@pytest.mark.parametrize(
    ("run", "length"),
    [(in_a_process, b"\xff\xff\xff\xff"), (in_this_process, b"\x00\xf0\xff\x7f"), (in_this_process, None)],
    ids=["ffmpeg", "sox", "known"],
)
def test_stdin_to_stdout_even_when_the_header_was_written_before_the_length_was_known(tiny, run, length):
    data = bytearray(write("talk.wav").read_bytes())
    if length:
        at = data.index(b"data") + 4
        data[4:8] = data[at : at + 4] = length
    pipe = {"input": bytes(data)} if run is in_a_process else {"stdin": bytes(data)}
    piped = enhance("-", model=tiny, run=run, **pipe)
    assert piped.returncode == 0, piped.stderr
    assert "stdin -> stdout  0.5 s of audio" in piped.stderr
    assert enhance("talk.wav", model=tiny).returncode == 0
    header, got = piped.stdout[:44], np.frombuffer(piped.stdout[44:], "<i2")
    assert header.startswith(b"RIFF")
    beside = soundfile.read("talk.clear.wav", dtype="int16")[0]
    np.testing.assert_allclose(got, beside, atol=1)  # a file is rounded by libsndfile, a pipe by us


@pytest.mark.parametrize("quality", ["fast", "best"])
def test_each_quality_is_a_model(quality):
    noisy = EXAMPLES / "fire_10db.noisy.flac"
    name = {"fast": "live", "best": "studio"}[quality]
    for option, out in (("--quality", "a.wav"), ("--model", "b.wav")):
        result = in_this_process("enhance", noisy, "-o", out, option, quality if option == "--quality" else name)
        assert result.returncode == 0
    assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes()


def test_quality_and_model_are_not_given_together():
    result = in_this_process("enhance", "talk.wav", "--quality", "best", "--model", "live")
    one_line(result, 2, "--quality best", "--model live", "one of them")


@pytest.mark.skipif(PRESETS["live"].weights is None, reason="the package holds no weights of 'live'")
@pytest.mark.parametrize("clip", ["helicopter_0db", "chainsaw_5db", "fire_10db"])
@pytest.mark.parametrize("quality", ["fast", "best"])
def test_each_quality_brings_every_example_nearer_to_its_reference(clip, quality):
    noisy = EXAMPLES / f"{clip}.noisy.flac"
    result = in_this_process("enhance", noisy, "-o", "clear.flac", "--quality", quality)
    assert result.returncode == 0, result.stderr
    clean, before, after = (soundfile.read(file)[0] for file in (EXAMPLES / f"{clip}.clean.flac", noisy, "clear.flac"))
    assert si_sdr(clean, after) > si_sdr(clean, before) + 2  # dB


# ---------------------------------------------------------------- what is never done


def test_a_noisy_call_is_enhanced_and_extended_in_one_go(here):
    """An A-law file at 8 kHz, through both shipped models."""
    clean, rate = soundfile.read(EXAMPLES / "fire_10db.clean.flac")
    call = clean[: rate * 2] + np.random.default_rng(0).normal(0, 0.02, rate * 2)
    soundfile.write("call.wav", soxr.resample(call, rate, 8_000), 8_000, "ALAW")
    done = in_this_process("enhance", "call.wav", "--extend", "--json")
    assert done.returncode == 0 and "reached" in done.stderr
    (file,) = json.loads(done.stdout)["files"]
    wide, rate = soundfile.read("call.clear.wav")
    assert (rate, len(wide), file["sample_rate"]) == (48_000, 96_000, 48_000)
    assert 3_000 < file["bandwidth_hz"] < 4_000 and soundfile.info("call.clear.wav").subtype == "PCM_16"
    power = np.abs(np.fft.rfft(wide)) ** 2  # bins of half a hertz
    assert -50 < 10 * np.log10(power[2 * 4_500 : 2 * 8_000].sum() / power.sum()) < -10


def test_extending_the_removed_noise_is_wrong_use(here):
    soundfile.write("call.wav", sound(), RATE)
    done = in_this_process("enhance", "call.wav", "--extend", "--residual")
    assert done.returncode == 2 and "give one of them" in done.stderr


def test_an_existing_file_stays_until_overwrite_is_given(tiny):
    write("talk.wav")
    Path("talk.clear.wav").write_text("precious")
    one_line(enhance("talk.wav", model=tiny), 1, "talk.clear.wav already exists", "--overwrite")
    assert Path("talk.clear.wav").read_text() == "precious"
    assert enhance("talk.wav", "--overwrite", model=tiny).returncode == 0
    assert soundfile.info("talk.clear.wav").frames == 8000


def test_the_input_is_never_overwritten(tiny):
    before = write("talk.wav").read_bytes()
    one_line(enhance("talk.wav", "-o", "talk.wav", "--overwrite", model=tiny), 2, "is the input itself", "-o")
    assert Path("talk.wav").read_bytes() == before


def test_json_and_audio_do_not_share_stdout(tiny):
    write("talk.wav")
    one_line(enhance("talk.wav", "-o", "-", "--json", model=tiny), 2, "--json", "-o")


# ---------------------------------------------------------------- bad input, one line each


def test_a_missing_file(tiny):
    one_line(enhance("gone.wav", model=tiny), 1, "gone.wav", "no such file")


def test_a_folder_without_audio(tiny):
    os.mkdir("empty")
    Path("empty/notes.txt").write_text("x")
    one_line(enhance("empty", model=tiny), 1, "empty", "no audio in this folder", ".wav")


def test_an_unknown_model_suggests_the_nearest():
    write("talk.wav")
    one_line(enhance("talk.wav", model="lvie"), 2, "'lvie'", "did you mean 'live'?", "clearstate models")


def test_a_model_for_another_task():
    from clearstate.models import PRESETS

    write("talk.wav")
    other = next(name for name, preset in PRESETS.items() if preset.task != "enhance")
    one_line(enhance("talk.wav", model=other), 2, f"--model {other}", "live")


def test_a_model_folder_without_a_model():
    write("talk.wav")
    os.mkdir("nothing")
    line = one_line(enhance("talk.wav", model="./nothing"), 2, "nothing")
    assert re.search("config.json|model.safetensors", line)


def spoilt_empty(name):
    Path(name).touch()


def spoilt_text(name):
    Path(name).write_text("This is not audio, whatever the name says.\n" * 20)


def spoilt_by(value):
    def spoil(name):
        samples = sound()
        samples[4000] = value
        soundfile.write(name, samples, RATE, subtype="FLOAT")

    return spoil


def spoilt_channels(name):
    data = bytearray(write("whole.wav").read_bytes())
    data[22:24] = b"\0\0"  # the channel count of the fmt chunk
    Path(name).write_bytes(data)
    os.unlink("whole.wav")


SPOILT = {
    "empty.wav": (spoilt_empty, "empty"),
    "text.wav": (spoilt_text, "audio"),
    "nan.wav": (spoilt_by(np.nan), "is nan"),
    "infinite.wav": (spoilt_by(np.inf), "is inf"),
    "channels.wav": (spoilt_channels, ""),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_file_is_named_and_leaves_nothing_behind(tiny, name):
    spoil, word = SPOILT[name]
    spoil(name)
    one_line(enhance(name, model=tiny), 1, name, word)
    assert listing() == [name]


def test_in_a_batch_the_others_are_finished_and_the_failures_listed_at_the_end(tiny):
    for name, (spoil, _) in SPOILT.items():
        spoil(name)
    write("good.wav")
    write("sub/fine.flac")
    result = enhance(".", "gone.wav", "-o", "out", model=tiny)
    told = result.stderr
    assert result.returncode == 1
    assert "Traceback" not in told
    assert [name for name in listing() if name.startswith("out")] == ["out/good.wav", "out/sub/fine.flac"]
    summary = told[told.index(f"{len(SPOILT) + 1} of {len(SPOILT) + 3} inputs failed:") :]
    for name in [*SPOILT, "gone.wav"]:
        assert re.search(rf"^clearstate: (\./)?{re.escape(name)}: .+", summary, re.MULTILINE)


@pytest.mark.parametrize("option", [("--strength", "-3"), ("--strength", "loud"), ("--jobs", "0"), ("--model",)])
def test_options_out_of_range_are_wrong_use(tiny, option):
    write("talk.wav")
    result = in_this_process("enhance", "talk.wav", *option)
    assert result.returncode == 2
    assert option[0] in result.stderr
    assert listing() == ["talk.wav"]


# ---------------------------------------------------------------- bad places


def test_a_place_that_cannot_be_written(tiny):
    write("talk.wav")
    Path("file").touch()
    result = enhance("talk.wav", "-o", "file/out.wav", model=tiny)
    assert "file" in one_line(result, 1, "talk.wav")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a file system that refuses files even to root")
def test_a_folder_that_refuses_files(tiny):
    write("talk.wav")
    one_line(enhance("talk.wav", "-o", "/proc/self/", model=tiny), 1, "/proc/self")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission(tiny):
    write("talk.wav")
    os.mkdir("locked", 0o555)
    one_line(enhance("talk.wav", "-o", "locked/", model=tiny), 1, "locked", "ermission")


def test_a_full_disk_is_said_and_leaves_no_part(tiny):
    """A limit on file size stands for a full disk: writing beyond it fails in the same way."""
    write("talk.wav", 8.0)
    limit = 100_000  # bytes; the result is 256 kB

    resource = pytest.importorskip("resource", reason="needs POSIX limits")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        result = enhance("talk.wav", model=tiny)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    one_line(result, 1, "talk.clear.wav", "the disk is full")
    assert listing() == ["talk.wav"]


def is_device(path):
    return os.path.exists(path) and stat.S_ISCHR(os.stat(path).st_mode)


@pytest.mark.skipif(not is_device("/dev/full"), reason="needs /dev/full")
def test_a_full_pipe_is_said(tiny):
    write("talk.wav")
    with open("/dev/full", "wb") as full:
        pipes = {"capture_output": False, "stdout": full, "stderr": subprocess.PIPE}
        result = enhance("talk.wav", "-o", "-", model=tiny, run=in_a_process, **pipes)
    one_line(result, 1, "o space left")


@pytest.mark.skipif(not is_device("/dev/full"), reason="needs /dev/full")
def test_a_device_is_written_to_and_never_replaced(tiny):
    write("talk.wav")
    os.symlink("/dev/full", "full.wav")
    one_line(enhance("talk.wav", "-o", "full.wav", "--overwrite", model=tiny), 1, "no space left")
    assert os.path.islink("full.wav") and is_device("/dev/full")


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_that_is_not_used_does_not_matter(tiny, closed):
    write("talk.wav")
    words = shlex.join([sys.executable, "-m", "clearstate", "enhance", "talk.wav", "-m", str(tiny)])
    result = subprocess.run(["sh", "-c", f"{words} {closed}"], capture_output=True, text=True)
    assert result.returncode == 0 and "Traceback" not in result.stderr
    assert soundfile.info("talk.clear.wav").frames == soundfile.info("talk.wav").frames


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("verb", "closed", "name"),
    [
        ("enhance -", "<&-", "stdin"), ("enhance -", "< talk.wav >&-", "stdout"),
        ("enhance talk.wav -o -", ">&-", "stdout"), ("separate -", "<&-", "stdin"), ("extend -", "<&-", "stdin"),
        ("stream", "<&-", "stdin"), ("stream", "< talk.wav >&-", "stdout"),
    ],
)  # fmt: skip
def test_a_closed_stream_that_is_needed_is_said_by_every_verb(here, verb, closed, name):
    write("talk.wav")
    command = f"{shlex.quote(sys.executable)} -m clearstate {verb} {closed}"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert f"{name}, which is closed" in result.stderr


# ---------------------------------------------------------------- being stopped


@pytest.mark.parametrize(
    ("signum", "code", "jobs", "group"),
    [
        (signal.SIGINT, 130, 2, True),  # a terminal tells the whole group
        (signal.SIGTERM, 143, 1, False),
        (signal.SIGTERM, 143, 2, False),  # `kill`: the parent alone
        (signal.SIGTERM, 143, 2, True),  # a service manager: every process of it
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.slow
def test_being_stopped_leaves_nothing_half_written(signum, code, jobs, group):
    """Two files that take a minute each; the signal comes as soon as something is being written."""
    write("a.wav", 1.0)
    samples = np.tile(soundfile.read("a.wav")[0], 1800)
    os.unlink("a.wav")
    for name in ("a.wav", "b.wav"):
        soundfile.write(name, samples, RATE)
    program = "import sys; from clearstate.cli import main; main(sys.argv[1:])"
    arguments = ["enhance", "a.wav", "b.wav", "-o", "out", "--model", "studio", "--jobs", str(jobs)]
    child = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    try:
        deadline = time.monotonic() + 600
        while not (os.path.isdir("out") and len(os.listdir("out")) == jobs):
            assert child.poll() is None, child.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert not any(name in os.listdir("out") for name in ("a.wav", "b.wav"))
        if group:
            os.killpg(child.pid, signum)
        else:
            child.send_signal(signum)
        _, told = child.communicate(timeout=600)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    assert child.returncode == code, told
    assert b"Traceback" not in told
    assert os.listdir("out") == []
