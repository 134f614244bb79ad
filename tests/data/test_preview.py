import json

import numpy as np
import pytest
import soundfile

from clearstate.data import (
    MixtureConfig,
    MixtureDataset,
    SeparationConfig,
    SeparationDataset,
    open_sources,
    preview,
)


def test_every_mixture_comes_with_its_target_and_a_json_line(shards, tmp_path):
    dataset = MixtureDataset(open_sources(shards), MixtureConfig(seconds=0.5), seed=7)
    written = preview(dataset, 3, tmp_path / "out", start=4)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "0004-clean.wav",
        "0004-noisy.wav",
        "0005-clean.wav",
        "0005-noisy.wav",
        "0006-clean.wav",
        "0006-noisy.wav",
        "preview.jsonl",
    ]
    assert len(written) == 6
    lines = [json.loads(line) for line in (tmp_path / "out/preview.jsonl").read_text().splitlines()]
    assert [line["info"]["item"] for line in lines] == [4, 5, 6]
    for line in lines:
        item = dataset[line["info"]["item"]]
        for key, name in line["files"].items():
            audio, rate = soundfile.read(tmp_path / "out" / name, dtype="float32")
            assert rate == 16_000
            np.testing.assert_array_equal(audio, item[key])


def test_separated_voices_are_written_one_by_one(shards, tmp_path):
    dataset = SeparationDataset(open_sources(shards), SeparationConfig(seconds=0.5))
    names = {path.name for path in preview(dataset, 1, tmp_path / "out")}
    assert names == {"0000-mixture.wav", "0000-s1.wav", "0000-s2.wav"}


def test_an_earlier_preview_is_not_overwritten(shards, tmp_path):
    dataset = MixtureDataset(open_sources(shards), MixtureConfig(seconds=0.2))
    preview(dataset, 1, tmp_path / "out")
    with pytest.raises(FileExistsError, match="choose another folder"):
        preview(dataset, 1, tmp_path / "out")
