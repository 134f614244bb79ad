"""What the words on the command line come to: which files are read, and under which names results are written."""

import os

import pytest

from clearstate.cli.inputs import Job, plan
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


def test_two_inputs_that_would_share_an_output_are_refused(here):
    (here / "two").mkdir()
    (here / "two/talk.wav").touch()
    with pytest.raises(UsageError, match=r"talk.wav and .*talk.wav would both be written"):
        plan(["talk.wav", "two/talk.wav"], "out")


def test_the_formats_named_here_are_those_that_can_be_written(tmp_path):
    from clearstate.audio.io import AudioInfo, choose_format
    from clearstate.cli.inputs import WRITABLE

    like = AudioInfo(name="x.wav", sample_rate=48_000, channels=1, frames=100, seconds=0.1)
    for suffix in WRITABLE:
        assert choose_format(f"x{suffix}", like)
