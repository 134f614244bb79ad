"""Damaged files of every format: a correct result, or one line that says what is wrong. Seeds are fixed."""

from collections import Counter

import pytest
from doubles import CausalDouble
from mutants import RATE, mutated, originals

from clearstate import Enhancer
from clearstate.audio.io import AudioError, BrokenOffError, open_reader

FILES = originals()
SEEDS = 1_000
MOST_SECONDS = 3_600  # that a file of some kilobytes may become


def damaged(path, seed):
    """A damaged file, and what it was."""
    ending = sorted(FILES)[seed % len(FILES)]
    target = path / f"{seed}.{ending}"
    target.write_bytes(mutated(FILES[ending], seed))
    return target


def outcome(work):
    """What became of a file; anything but an AudioError of one line gets through, and fails the test."""
    try:
        work()
    except AudioError as error:
        if "\n" in str(error) or len(str(error)) > 600:
            pytest.fail(f"more than a line: {error}")
        return "read in part" if isinstance(error, BrokenOffError) else "refused"
    return "read"


@pytest.mark.parametrize("group", range(10))
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, group, capfd):
    def read(path):
        with open_reader(path) as reader:
            seconds = sum(block.shape[1] for block in reader.blocks()) / reader.info.sample_rate
            assert seconds < MOST_SECONDS

    counts = Counter()
    for seed in range(group * SEEDS // 10, (group + 1) * SEEDS // 10):
        path = damaged(tmp_path, seed)
        counts[outcome(lambda path=path: read(path))] += 1
        path.unlink()
    assert counts["read"] > 10 and counts["refused"] > 10  # the damage is neither harmless nor total
    assert all(line.startswith("clearstate: ") for line in capfd.readouterr().err.splitlines())


def test_enhancing_damaged_files_leaves_an_output_or_one_line(tmp_path):
    enhancer = Enhancer(CausalDouble(1.0))
    for seed in range(0, SEEDS, 20):
        path, out = damaged(tmp_path, seed), tmp_path / "out.wav"
        became = outcome(lambda path=path, out=out: enhancer.enhance_file(path, out))
        assert out.exists() == (became != "refused"), seed
        out.unlink(missing_ok=True)
        path.unlink()
    assert not list(tmp_path.iterdir())  # nothing half-written


def test_damage_is_the_same_for_the_same_seed():
    data = FILES["wav"]
    assert mutated(data, 5) == mutated(data, 5) != mutated(data, 6)
    assert len(data) > RATE * 0.4
