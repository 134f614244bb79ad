"""The learned scores: equal to the packages they come from, and never a stand-in number without weights."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from clearstate.metrics import learned
from clearstate.metrics.learned import MissingWeights, find_weights
from clearstate.metrics.mel import mel_filters

RATE = 16_000
CLIPS = Path(__file__).parents[2] / "examples" / "clips"
needs_distillmos = pytest.mark.skipif(
    importlib.util.find_spec("distillmos") is None,
    reason="needs the distillmos wheel (pip install --no-deps distillmos)",
)
needs_speechmos = pytest.mark.skipif(
    importlib.util.find_spec("speechmos") is None, reason="needs the speechmos wheel (pip install --no-deps speechmos)"
)


def warble(seconds: float, rng: np.random.Generator) -> np.ndarray:
    t = np.arange(int(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * (200 * t + 30 * np.sin(2 * np.pi * 3 * t)))
    return 0.3 * tone * np.clip(np.sin(2 * np.pi * 1.3 * t), 0, 1) + 0.01 * rng.standard_normal(len(t))


@needs_speechmos
def test_dnsmos_equals_speechmos():
    """Against speechmos 0.0.1.1 with librosa 0.11: a clip that is doubled until long enough, and two windows of one."""
    rng = np.random.default_rng(7)
    short, long = warble(4, rng), warble(11, rng)
    expected_short = (1.2280207964443313, 1.365027125714746, 1.1586609825996028, 2.5213849544525146)
    expected_long = (1.693787403624348, 1.421802803728541, 1.3437726289135612, 2.4318459033966064)
    assert learned.dnsmos(short, RATE) == pytest.approx(expected_short, abs=1e-5)
    assert learned.dnsmos(long, RATE) == pytest.approx(expected_long, abs=1e-5)


@needs_speechmos
@pytest.mark.parametrize(("clip", "expected"), [("helicopter_0db.noisy", 1.6238426), ("fire_10db.clean", 3.8236824)])
def test_plcmos_equals_speechmos(clip, expected):
    """Against speechmos 0.0.1.1, whose random raters were replaced by ours."""
    assert learned.plcmos(*soundfile.read(CLIPS / f"{clip}.flac")) == pytest.approx(expected, abs=1e-5)


@needs_distillmos
@pytest.mark.parametrize(
    ("clip", "times", "expected"),
    [("helicopter_0db.noisy", 1, 1.6793343), ("fire_10db.clean", 1, 4.0280323), ("fire_10db.clean", 4, 3.7571630)],
)
def test_distillmos_equals_its_package(clip, times, expected):
    """Against distillmos 0.9.1: clips that are padded, and one of six excerpts."""
    signal, rate = soundfile.read(CLIPS / f"{clip}.flac")
    score = learned.score("distillmos", np.tile(signal, times), rate, find_weights("distillmos"))
    assert score == {"distillmos": pytest.approx(expected, abs=1e-4)}


def test_another_file_is_not_taken_for_distillmos(tmp_path):
    torch.save({"model": {}}, tmp_path / "distill_mos_v7.pt")
    with pytest.raises(ValueError, match="not a Distill-MOS checkpoint"):
        learned.score("distillmos", np.ones(RATE), RATE, tmp_path / "distill_mos_v7.pt")


@needs_speechmos
@needs_distillmos
@pytest.mark.parametrize("group", ["dnsmos", "plcmos", "distillmos"])
def test_the_opinion_on_silence_is_undefined(group):
    assert np.isnan(list(learned.score(group, np.zeros(RATE), RATE, find_weights(group)).values())).all()


@needs_speechmos
@needs_distillmos
@pytest.mark.parametrize("key", ["dnsmos_ovrl", "plcmos", "distillmos"])
def test_the_opinion_on_clean_speech_is_better_than_on_noisy(key):
    noisy, clean = (soundfile.read(CLIPS / f"helicopter_0db.{kind}.flac")[0] for kind in ("noisy", "clean"))
    group = key.partition("_")[0]
    scores = [learned.score(group, x, RATE, find_weights(group))[key] for x in (noisy, clean)]
    assert scores[0] + 0.5 < scores[1]


@needs_speechmos
def test_dnsmos_finds_its_files_without_importing_their_package():
    import subprocess
    import sys

    code = (
        "import sys; from clearstate.metrics.learned import find_weights; find_weights('dnsmos'); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "speechmos" not in loaded and "torch" not in loaded


@needs_speechmos
def test_a_network_of_another_kind_is_refused(pair):
    wrong = find_weights("dnsmos") / "sig_bak_ovr.onnx"
    nine_seconds = np.resize(pair[0], 144_160 // 320 * 320 + 160)
    with pytest.raises(ValueError, match=r"shape \(1, 3\), expected one number"):
        learned.utmos(nine_seconds, RATE, wrong)


def test_weights_are_looked_for_where_the_user_said(tmp_path, monkeypatch):
    monkeypatch.delenv(learned.FOLDER, raising=False)
    with pytest.raises(MissingWeights, match=r"--weights nisqa=FILE \(nisqa.tar\)"):
        find_weights("nisqa")
    file = tmp_path / "nisqa.tar"
    file.touch()
    assert find_weights("nisqa", {"nisqa": file}) == file
    assert find_weights("nisqa", {"nisqa": tmp_path}) == file
    monkeypatch.setenv(learned.FOLDER, str(tmp_path))
    assert find_weights("nisqa") == file
    with pytest.raises(MissingWeights, match="neither a file nor a folder with adapt_nr_telephone"):
        find_weights("scoreq", {"scoreq": tmp_path})


def test_without_its_wheel_a_score_names_it(monkeypatch):
    monkeypatch.delenv(learned.FOLDER, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingWeights, match="pip install --no-deps distillmos, or name a folder"):
        find_weights("distillmos")


class LoudnessOpinion(torch.nn.Module):
    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        return 5 * wave.square().mean(dim=1)


def test_utmos_runs_a_torchscript_file_at_16_khz(tmp_path):
    path = tmp_path / "utmos.pt"
    torch.jit.script(LoudnessOpinion()).save(str(path))
    tone = np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)
    assert learned.score("utmos", tone, 48_000, path) == {"utmos": pytest.approx(2.5, abs=0.01)}
    assert np.isnan(learned.utmos(np.zeros(100), RATE, path))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="has to be exported first"):
        learned.utmos(tone, RATE, tmp_path / "bare.pt")


def test_scoreq_pads_to_whole_steps(tmp_path):
    path = tmp_path / "scoreq.pt"

    class Length(torch.nn.Module):
        def forward(self, wave: torch.Tensor) -> torch.Tensor:
            return torch.tensor([wave.shape[1]])

    torch.jit.script(Length()).save(str(path))
    assert learned.scoreq(np.ones(321), RATE, path) == 640


@pytest.mark.parametrize(("group", "samples"), [("utmos", 321), ("scoreq", 640)])
def test_utmos_and_scoreq_run_an_onnx_file_of_one_waveform_and_one_number(tmp_path, group, samples):
    """A stub of the released networks' shape, (1, samples) to (1, 1), whose opinion is the number of samples."""
    from onnx import TensorProto, helper, save

    wave = helper.make_tensor_value_info("wave", TensorProto.FLOAT, [1, "samples"])
    opinion = helper.make_tensor_value_info("opinion", TensorProto.FLOAT, [1, 1])
    nodes = [
        helper.make_node("Sub", ["wave", "wave"], ["zeros"]),
        helper.make_node("Exp", ["zeros"], ["ones"]),
        helper.make_node("ReduceSum", ["ones", "axes"], ["opinion"], keepdims=1),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(nodes, group, [wave], [opinion], [axes])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "stub.onnx")
    assert learned.score(group, np.ones(321), RATE, tmp_path / "stub.onnx") == {group: samples}


NISQA_ARGS = {
    "cnn_pool_1": [24, 7],
    "cnn_pool_2": [12, 5],
    "cnn_pool_3": [6, 3],
    "cnn_dropout": 0.2,
    "cnn_kernel_size": [3, 3],
    "cnn_c_out_1": 16,
    "cnn_c_out_2": 32,
    "cnn_c_out_3": 64,
    "td_sa_d_model": 64,
    "td_sa_nhead": 1,
    "td_sa_h": 64,
    "td_sa_num_layers": 2,
    "td_sa_dropout": 0.1,
    "pool_att_h": 128,
    "pool_att_dropout": 0.1,
    "ms_n_fft": 4096,
    "ms_hop_length": 0.01,
    "ms_win_length": 0.02,
    "ms_n_mels": 48,
    "ms_fmax": 20_000,
    "ms_seg_length": 15,
    "ms_seg_hop_length": 4,
    "ms_max_segments": 1300,
}


def checkpoint(path: Path) -> torch.nn.Module:
    """torchmetrics' NISQA with random weights, saved as the release is."""
    from torchmetrics.functional.audio import nisqa as theirs

    model = theirs._NISQADIM(NISQA_ARGS).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            tensor.copy_(0.5 * torch.rand_like(tensor) + 0.01)
    torch.save({"args": NISQA_ARGS, "model_state_dict": model.state_dict()}, path)
    return model


def test_nisqa_equals_torchmetrics(tmp_path):
    from torchmetrics.functional.audio import nisqa as theirs

    from clearstate.metrics import nisqa as ours

    model = checkpoint(tmp_path / "nisqa.tar")
    x = warble(1.5, np.random.default_rng(0))
    features = torch.from_numpy(ours._features(x, RATE, NISQA_ARGS)).float()
    with torch.no_grad():
        windows, count = theirs._segment_specs(features.T[None], NISQA_ARGS)
        expected = model(windows, count.expand(1))[0]
    scores = ours.nisqa(x, RATE, tmp_path / "nisqa.tar")
    assert len(set(scores)) == 5
    torch.testing.assert_close(torch.tensor(scores), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rate", "some", "mean"),
    [
        (48_000, [-38.92433603, -0.61520366, -41.61404738, -37.36349434], -34.583331256881415),
        (16_000, [-28.52855037, -0.37447711, -35.23856639, -68.60361164], -38.0400016887877),
    ],
)
def test_nisqas_mel_bands_equal_librosas(rate, some, mean):
    """Against librosa 0.11: bands 0, 5, 20 and 47 of frame 50, in dB, and the mean of all."""
    from clearstate.metrics.nisqa import _features

    rng, n = np.random.default_rng(7), 2 * rate
    x = 0.3 * np.sin(2 * np.pi * 440 * np.arange(n) / rate) * np.linspace(0, 1, n) + 0.01 * rng.standard_normal(n)
    features = _features(x, rate, NISQA_ARGS)
    assert features.shape == (201, 48)
    np.testing.assert_allclose(features[50, [0, 5, 20, 47]], some, atol=1e-5)
    assert features.mean() == pytest.approx(mean, abs=1e-5)


def test_nisqa_of_silence_and_of_a_click_is_undefined(tmp_path):
    from clearstate.metrics.nisqa import nisqa

    checkpoint(tmp_path / "nisqa.tar")
    assert np.isnan(nisqa(np.zeros(RATE), RATE, tmp_path / "nisqa.tar")).all()
    assert np.isnan(nisqa(np.ones(2000), RATE, tmp_path / "nisqa.tar")).all()


def test_another_file_is_not_taken_for_nisqas(tmp_path):
    from clearstate.metrics.nisqa import nisqa

    torch.save({"state_dict": {}}, tmp_path / "other.tar")
    with pytest.raises(ValueError, match="not a NISQA"):
        nisqa(np.ones(RATE), RATE, tmp_path / "other.tar")


def test_mel_filters_have_unit_area():
    filters = mel_filters(RATE, 4096, 40, 8000)
    np.testing.assert_allclose(filters.sum(1) * RATE / 4096, 1, rtol=0.02)  # the bins sample each triangle coarsely
