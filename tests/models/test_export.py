"""Parts of the export that can be compared without writing a file, a whole export, and what cannot be exported."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from clearstate.models import build, load_model
from clearstate.models.export import Streamed, export_onnx
from clearstate.models.export.graphs import halved
from clearstate.models.export.live_hop import LiveHop
from clearstate.models.live import Live, LiveConfig
from clearstate.models.parts import stft
from clearstate.runtime import open_model
from clearstate.runtime.agreement import compare

SMALL = LiveConfig(channels=24, bands=8, blocks=2, heads=2, wide=32, fine_channels=16, n_fft=256, hop=128)


@pytest.mark.parametrize("n", [256, 400, 512, 1024])
def test_the_transform_by_products_is_the_transform(n):
    x = torch.randn(2, 3, n)
    spec = torch.fft.rfft(x)
    assert (stft._rfft(x, n) - spec).abs().max() < 1e-5 * spec.abs().max()
    assert (stft._irfft(spec, n) - x).abs().max() < 1e-5


def test_a_length_that_is_no_multiple_of_four_is_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        stft.fold_arrays(402)


@pytest.mark.parametrize("config", [LiveConfig(), LiveConfig(blocks=6), SMALL], ids=["shipped", "six blocks", "small"])
def test_the_hop_that_is_exported_is_a_step_of_the_network(config):
    torch.manual_seed(1)
    net = Live(config).eval()
    with torch.no_grad():
        net.head.weight.mul_(20)
    streamed = Streamed(net)
    hop, states, state = LiveHop(net).eval(), list(streamed.states.values()), net.init_state(1)
    x = 0.1 * torch.randn(1, 12 * config.hop)
    x[:, : 2 * config.hop] = 0  # digital silence does not count for the level
    with torch.no_grad():
        for piece in x.split(config.hop, dim=1):
            wanted, state = net.step(piece, state)
            got, states = hop(piece, states)
            assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max() + 1e-9


def test_states_are_packed_and_unpacked_without_loss():
    streamed = Streamed(load_model("live"))
    states = [torch.randn(3, *state.shape[1:]) for state in streamed.states.values()]
    back = streamed.packed(streamed.unpacked(states), 3)
    for first, second in zip(states, back, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("live", {"channels": 24, "bands": 8, "blocks": 1, "heads": 2, "wide": 32, "n_fft": 256, "hop": 128}),
        ("semamba-basic-causal", {}),
        ("saf-causal", {"layers": 1}),
    ],
)
def test_a_causal_model_is_exported_whole(name, values, tmp_path):
    torch.manual_seed(2)
    net = build(name, **values).eval()
    export_onnx(net, tmp_path / "model.onnx", name=name)
    found = compare(open_model(tmp_path / "model.onnx", "enhance"), open_model(net, "enhance"))
    assert found.holds(), found


@pytest.mark.slow
def test_half_precision_halves_the_file_and_keeps_the_sound(tmp_path):
    net = load_model("live")
    export_onnx(net, tmp_path / "half.onnx", name="live", half=True)
    whole, half = (open_model(path, "enhance") for path in (tmp_path / "half.onnx", "live"))
    x = (0.1 * np.random.default_rng(0).standard_normal((1, 256 * 30))).astype(np.float32)
    first, second = (model.open_stream(1)(x) for model in (whole, half))
    assert np.abs(first - second).max() < 0.02 * np.abs(second).max()


@pytest.mark.parametrize("rounded", [False, True])
def test_weights_that_are_the_same_in_float16_are_stored_so(rounded):
    random = np.random.default_rng(0)
    weights = {"other": random.standard_normal((32, 32)), "same": random.standard_normal((32, 32)).astype(np.float16)}
    initializers = [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 32]) for name in "xy")
    nodes = [onnx.helper.make_node("MatMul", [a, b], [c]) for a, b, c in (("x", "other", "h"), ("h", "same", "y"))]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "two", [x], [y], initializers), ir_version=10)
    smaller = ir.to_proto(halved(ir.from_proto(model), rounded))
    kinds = {one.name.removesuffix("_half"): one.data_type for one in smaller.graph.initializer}
    assert kinds["same"] == onnx.TensorProto.FLOAT16
    assert (kinds["other"] == onnx.TensorProto.FLOAT16) == rounded
    feeds = {"x": np.ones((1, 32), np.float32)}
    wanted, got = (
        onnxruntime.InferenceSession(one.SerializeToString()).run(None, feeds)[0] for one in (model, smaller)
    )
    assert np.array_equal(wanted, got) != rounded


@pytest.mark.parametrize(("name", "words"), [("mambawave", "many steps"), ("s4m-tiny", "one step a sample")])
def test_what_cannot_be_exported_says_why(name, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        export_onnx(build(name), tmp_path / "model.onnx", name=name)
    assert not list(tmp_path.iterdir())
