"""What the words on the command line come to: which files are read, and under which names results are written."""

import glob
import os

import pytest

from clearstate.cli.inputs import Job, one_name, plan
from clearstate.cli.separate import places
from clearstate.cli.terminal import UsageError


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to stand in, with a few empty files; names decide everything here."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "talk.wav",
        "call.m4a",
        "notes.txt",
        "day/a.wav",
        "day/two/b.flac",
        "day/two/readme.md",
        "empty/x.txt",
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path


def pairs(*args, **options):
    result = plan(*args, **options)
    assert not result.failures
    return [(job.source, job.target) for job in result.jobs]


def test_a_result_lies_beside_its_input_unless_told_otherwise(here):
    assert pairs(["talk.wav"], None) == [("talk.wav", "talk.clear.wav")]
    assert pairs(["talk.wav"], None, tag="residual") == [("talk.wav", "talk.residual.wav")]
    assert pairs([os.path.join("day", "a.wav")], None) == [("day/a.wav", "day/a.clear.wav")]


def test_what_cannot_be_written_in_its_own_format_becomes_wav(here):
    assert pairs(["call.m4a"], None) == [("call.m4a", "call.clear.wav")]
    assert pairs(["call.m4a"], "out/") == [("call.m4a", "out/call.wav")]


def test_one_input_and_a_file_name(here):
    assert pairs(["talk.wav"], "clean.flac") == [("talk.wav", "clean.flac")]


@pytest.mark.parametrize("output", ["day", "out/"])
def test_an_output_folder_keeps_the_name(here, output):
    assert pairs(["talk.wav"], output) == [("talk.wav", os.path.join(output, "talk.wav"))]


def test_a_folder_is_searched_through_and_keeps_its_structure(here):
    assert pairs(["day"], "out") == [("day/a.wav", "out/a.wav"), ("day/two/b.flac", "out/two/b.flac")]
    assert pairs(["day"], None) == [("day/a.wav", "day/a.clear.wav"), ("day/two/b.flac", "day/two/b.clear.flac")]


def test_a_second_run_over_a_folder_leaves_the_results_of_the_first_alone(here):
    (here / "day/a.clear.wav").touch()
    (here / "day/a.residual.wav").touch()
    (here / "day/out").mkdir()
    (here / "day/out/a.wav").touch()
    assert [source for source, _ in pairs(["day"], "day/out/", overwrite=True)] == ["day/a.wav", "day/two/b.flac"]


def test_patterns_are_expanded_here_as_well_as_by_the_shell(here):
    assert pairs(["day/*.wav", "day/**/*.flac"], "out") == [
        ("day/a.wav", "out/a.wav"),
        ("day/two/b.flac", "out/b.flac"),
    ]


def test_a_file_whose_name_looks_like_a_pattern_is_taken_literally(here):
    (here / "take[1].wav").touch()
    assert pairs(["take[1].wav"], None) == [("take[1].wav", "take[1].clear.wav")]


def test_a_file_named_twice_is_done_once(here):
    assert pairs(["talk.wav", "./talk.wav"], "out") == [("talk.wav", "out/talk.wav")]


def test_pipes(here):
    assert pairs(["-"], None) == [("-", "-")]
    assert pairs(["-"], "out.wav") == [("-", "out.wav")]
    assert pairs(["-"], "day") == [("-", "day/stdin.clear.wav")]
    assert pairs(["talk.wav"], "-") == [("talk.wav", "-")]


@pytest.mark.parametrize(
    ("inputs", "word"),
    [
        (["gone.wav"], "no such file"),
        (["empty"], "no audio in this folder"),
        (["*.opus"], "no file matches"),
    ],
)
def test_an_input_that_is_not_there_fails_alone(here, inputs, word):
    result = plan([*inputs, "talk.wav"], "out")
    assert result.jobs == [Job("talk.wav", os.path.join("out", "talk.wav"))]
    [(source, reason)] = result.failures
    assert source == inputs[0]
    assert word in reason


def test_an_existing_output_is_refused_until_overwriting_is_asked_for(here):
    (here / "talk.clear.wav").touch()
    assert "--overwrite" in plan(["talk.wav"], None).failures[0][1]
    assert pairs(["talk.wav"], None, overwrite=True) == [("talk.wav", "talk.clear.wav")]


@pytest.mark.parametrize("output", ["talk.wav", "./talk.wav", "day/../talk.wav", "link.wav", "."])
def test_the_input_is_never_overwritten(here, output):
    (here / "link.wav").symlink_to("talk.wav")
    with pytest.raises(UsageError, match="is the input itself"):
        plan(["talk.wav"], output, overwrite=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX pipes")
def test_a_pipe_is_written_to_and_never_replaced(here):
    (here / "pipe.wav").unlink(missing_ok=True)
    os.mkfifo("pipe.wav")
    assert plan(["talk.wav"], "pipe.wav").jobs == [Job("talk.wav", "pipe.wav")]


@pytest.mark.parametrize("name", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0", "-"])
def test_all_names_of_stdin_are_stdin(here, name):
    assert plan([name], None).jobs == [Job("-", "-")]
    assert plan([name], "/dev/stdout").jobs == [Job("-", "-")]
    assert plan([name], "a.flac").jobs == [Job("-", "a.flac")]


def test_a_process_substitution_goes_to_stdout_unless_told_otherwise(here):
    assert plan(["/dev/fd/63"], None).jobs == [Job("/dev/fd/63", "-")]
    assert plan(["/dev/fd/63"], "a.wav").jobs == [Job("/dev/fd/63", "a.wav")]


@pytest.mark.parametrize(
    ("inputs", "output", "word"),
    [
        (["-", "talk.wav"], None, "alone"),
        (["talk.wav", "day/a.wav"], "-", "one input"),
        (["talk.wav", "day/a.wav"], "out.wav", "give a folder"),
        (["day"], "out.wav", "give a folder"),
        (["talk.wav"], "out.xyz", "expected one of .wav"),
        (["talk.wav"], "out", "no extension"),
        (["-"], "out.m4a", "expected one of .wav"),
    ],
)
def test_a_command_line_that_contradicts_itself_begins_nothing(here, inputs, output, word):
    with pytest.raises(UsageError, match=word):
        plan(inputs, output)


@pytest.mark.parametrize(
    ("second", "output"), [("two/talk.wav", "out"), ("talk.m4a", "out"), ("talk.m4a", None)], ids=str
)
def test_of_two_inputs_that_would_share_an_output_the_second_fails_alone(here, second, output):
    (here / "two").mkdir()
    (here / second).touch()
    result = plan(["talk.wav", second, "day/a.wav"], output)
    assert [job.source for job in result.jobs] == ["talk.wav", "day/a.wav"]
    [(source, reason)] = result.failures
    assert source == second
    assert "this file and talk.wav would both be written to" in reason


def test_the_formats_named_here_are_those_that_can_be_written(tmp_path):
    from clearstate.audio.io import AudioInfo, choose_format
    from clearstate.cli.inputs import WRITABLE

    like = AudioInfo(name="x.wav", sample_rate=48_000, channels=1, frames=100, seconds=0.1)
    for suffix in WRITABLE:
        assert choose_format(f"x{suffix}", like)


LONG = "x" * 250 + ".wav"


@pytest.mark.parametrize(
    ("name", "word"),
    [(LONG, "has 260 bytes"), ("é" * 125 + ".wav", "has 260 bytes"), ("dead.wav", "which does not exist")],
)
@pytest.mark.parametrize("inputs", [["."], ["*.wav"], None], ids=["folder", "pattern", "list"])
def test_one_bad_entry_fails_alone(here, name, word, inputs):
    if name == "dead.wav":
        (here / name).symlink_to("/nowhere.wav")
    else:
        (here / name).touch()
    result = plan(inputs or ["talk.wav", name], None)
    assert "talk.wav" in [job.source for job in result.jobs]
    [(source, reason)] = result.failures
    assert source == name
    assert word in reason


def test_separate_names_the_input_whose_longest_output_has_no_name(here):
    (here / ("y" * 243 + ".wav")).touch()  # + .speaker1.wav fits, + .timeline.json does not
    jobs, [(source, reason)] = places(["."], None)
    assert len(source) == 247 and "has 257 bytes" in reason
    assert [job.source for job in jobs] == ["call.m4a", "day/a.wav", "day/two/b.flac", "talk.wav"]


def test_separate_lets_the_second_of_a_clash_fail_alone(here):
    (here / "talk.flac").touch()
    jobs, [(source, reason)] = places(["talk.flac", "talk.wav", "day"], "voices")
    assert [job.source for job in jobs] == ["talk.flac", "day/a.wav", "day/two/b.flac"]
    assert source == "talk.wav" and "talk.flac" in reason


@pytest.mark.parametrize("word", ["x" * 300, "\0", "", "none/x.wav", "talk.wav/x.wav"])
def test_an_impossible_name_is_the_failure_of_that_input(here, word):
    result = plan([word, "talk.wav"], "out")
    assert [job.source for job in result.jobs] == ["talk.wav"]
    assert [source for source, _ in result.failures] == [word]


def test_in_a_batch_the_input_that_is_its_own_output_fails_alone(here):
    result = plan(["day/a.wav", "talk.wav"], "day")
    assert [job.source for job in result.jobs] == ["talk.wav"]
    assert "is the input itself" in result.failures[0][1]


@pytest.mark.parametrize("inputs", [["day"], ["day/*", "talk.wav"], ["day/**/*.wav", "talk.wav"]])
def test_results_inside_the_input_are_not_done_again(here, inputs):
    (here / "day/out").mkdir()
    (here / "day/out/a.wav").touch()
    by_shell = [match for word in inputs for match in ([word] if "**" in word else sorted(glob.glob(word)))]
    result = plan(by_shell, "day/out/", overwrite=True)
    assert not [job for job in result.jobs if job.source.startswith("day/out")]
    assert "day/a.wav" in [job.source for job in result.jobs]


def test_an_input_may_lie_inside_the_output_folder(here):
    assert [source for source, _ in pairs(["day/two"], "day/")] == ["day/two/b.flac"]


def test_two_codings_of_one_accent_are_one_file_on_a_mac(monkeypatch):
    composed, apart = "caf\u00e9.wav", "cafe\u0301.wav"
    assert one_name(composed) != one_name(apart)
    monkeypatch.setattr("sys.platform", "darwin")
    assert one_name(composed) == one_name(apart)


def test_a_pipe_that_a_pattern_meets_is_not_waited_for(here):
    os.mkfifo("pipe.wav")
    result = plan(["*.wav"], "out")
    assert [job.source for job in result.jobs] == ["talk.wav"]
    assert "is a named pipe" in result.failures[0][1]
