"""Shipped .onnx files against the networks, the choice of a backend, and files that cannot be run."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch

from clearstate import runtime
from clearstate.models import PRESETS, load_model
from clearstate.models.presets import WEIGHTS
from clearstate.runtime import open_model
from clearstate.runtime.agreement import LIMIT, compare, noise_like_speech
from clearstate.runtime.onnx import OnnxEnhancer
from clearstate.tasks.enhance import Enhancer
from clearstate.tasks.extend import Extender
from clearstate.tasks.separate import Separator
from clearstate.tasks.stream import Stream

LIVE = WEIGHTS / "live" / "model.onnx"
CLIPS = Path(__file__).resolve().parents[2] / "examples" / "clips"
SHIPPED = sorted(path.parent.name for path in WEIGHTS.glob("*/model.onnx"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_computes_what_its_network_does(name):
    task = PRESETS[name].task
    found = compare(open_model(name, task, backend="onnx"), open_model(name, task, backend="torch"))
    assert found.difference < LIMIT and found.holds()


def test_dropping_the_state_fails_the_comparison():
    class Forgetful(OnnxEnhancer):
        def stream_of(self, rows):
            return lambda x: OnnxEnhancer.stream_of(self, rows)(x)

    found = compare(Forgetful(LIVE), open_model("live", "enhance", backend="torch"))
    assert not found.holds()


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_files_and_streams_are_equal_on_both_backends(rate):
    noisy = soundfile.read(CLIPS / "fire_10db.noisy.flac", dtype="float32")[0]
    peak = np.abs(noisy).max()
    wanted = Enhancer("live", "torch").enhance(noisy, rate)
    assert np.abs(Enhancer("live", "onnx").enhance(noisy, rate) - wanted).max() < LIMIT * peak
    streams = [Stream("live", rate, backend=backend) for backend in ("onnx", "torch")]
    outputs = [np.concatenate([stream.process(part) for part in np.split(noisy, [100, 9_000])]) for stream in streams]
    assert np.abs(outputs[0] - outputs[1]).max() < LIMIT * peak


def test_separation_and_extension_are_equal_on_both_backends():
    noisy = soundfile.read(CLIPS / "fire_10db.noisy.flac", dtype="float32")[0]
    for work in (lambda how: Separator(backend=how).separate, lambda how: Extender(backend=how).extend):
        first, second = (work(backend)(noisy, 16_000) for backend in ("onnx", "torch"))
        assert first.shape == second.shape
        assert np.abs(first - second).max() < LIMIT * np.abs(second).max()


def test_several_signals_at_once_are_those_signals_one_by_one():
    model = OnnxEnhancer(LIVE)
    x = noise_like_speech(3, 20 * model.hop, model.sample_rate)
    together = model.open_stream(3)(x)
    for row, wanted in zip(x, together, strict=True):
        np.testing.assert_allclose(model.open_stream(1)(row[None])[0], wanted, atol=1e-6)


def test_the_output_of_a_hop_stays_when_the_next_ones_follow():
    model = OnnxEnhancer(LIVE)
    x = noise_like_speech(1, 6 * model.hop, model.sample_rate)
    advance = model.open_stream(1)
    hops = [advance(hop) for hop in np.split(x, 6, axis=1)]
    np.testing.assert_allclose(np.concatenate(hops, axis=1), model.open_stream(1)(x), atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 256), (1, 100), (256,)])
def test_samples_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(1, m 256\)"):
        OnnxEnhancer(LIVE).open_stream(1)(np.zeros(shape, np.float32))


def test_samples_of_another_type_are_converted():
    model = OnnxEnhancer(LIVE)
    x = noise_like_speech(1, 4 * model.hop, model.sample_rate)
    np.testing.assert_array_equal(model.open_stream(1)(x.astype(np.float64)), model.open_stream(1)(x))


def _foreign(path):
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)]), path)


def _without_a_state(path):
    model = onnx.load(LIVE)
    metadata = {entry.key: entry for entry in model.metadata_props}
    metadata["states"].value = metadata["states"].value.replace("state_tail", "state_tale")
    onnx.save(model, path)


def _of_the_future(path):
    model = onnx.load(LIVE)
    model.opset_import[0].version = 999
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(LIVE.read_bytes()[:100_000]), "is damaged, or no ONNX file"),
        (lambda path: path.write_bytes(b"RIFF" + bytes(100)), "is damaged, or no ONNX file"),
        (lambda path: path.write_bytes(b""), "is damaged, or no ONNX file"),
        (_foreign, "none of clearstate's"),
        (_without_a_state, "state_tail, state_tale"),
        (_of_the_future, "pip install --upgrade onnxruntime"),
        (lambda path: None, "does not exist"),
    ],
    ids=["cut", "another kind", "empty", "foreign", "missing state", "too new", "absent"],
)
def test_a_file_that_cannot_be_run_is_one_clear_line(tmp_path, make, words):
    path = tmp_path / "model.onnx"
    make(path)
    with pytest.raises((ValueError, OSError)) as error:
        open_model(path, "enhance")
    assert words in str(error.value) and "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_file_of_another_task_is_refused():
    with pytest.raises(ValueError, match="`separate` needs a separation model"):
        open_model(LIVE, "separate")


def test_the_choice_of_a_backend(tmp_path, monkeypatch):
    assert runtime.choose("live", LIVE) == "torch"
    assert runtime.choose("live", LIVE, "onnx") == "onnx"
    assert runtime.choose(str(LIVE), LIVE) == "onnx"
    monkeypatch.setattr(runtime, "has_torch", lambda: False)
    assert runtime.choose("live", LIVE) == "onnx"
    with pytest.raises(ValueError, match="clearstate export saf"):
        runtime.choose("saf", None, "onnx")
    with pytest.raises(ValueError, match="expected 'auto', 'onnx', 'torch'"):
        open_model("live", "enhance", backend="tflite")


def test_a_short_job_in_a_new_process_takes_what_loads_faster(monkeypatch):
    assert runtime.choose_for("live", "auto", 3.0) == "auto"  # PyTorch is loaded in this process
    monkeypatch.delitem(runtime.sys.modules, "torch")
    assert runtime.choose_for("live", "auto", 3.0) == "onnx"
    assert runtime.choose_for("live", "auto", 1e6) == "auto"
    assert runtime.choose_for("live", "auto", None) == "auto"
    assert runtime.choose_for("saf", "auto", 3.0) == "auto"
    assert runtime.choose_for("live", "torch", 3.0) == "torch"


def test_a_folder_with_an_onnx_file_runs_it(tmp_path):
    (tmp_path / "model.onnx").write_bytes(LIVE.read_bytes())
    assert isinstance(open_model(tmp_path, "enhance", backend="onnx"), OnnxEnhancer)


def test_sampling_settings_do_not_apply_to_one_step():
    with pytest.raises(ValueError, match="steps"):
        open_model("extend-fast", "extend", backend="onnx", steps=3)


def test_the_network_of_a_shipped_file_has_the_same_weights():
    """The files are made from the weights beside them; a new set of weights needs a new file."""
    x = noise_like_speech(1, 32 * 256, 16_000)
    with torch.inference_mode():
        wanted = load_model("live")(torch.from_numpy(x)).numpy()
    got = OnnxEnhancer(LIVE).open_stream(1)(np.pad(x, ((0, 0), (0, 256))))[:, 256:]
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())
