"""Blocks that helpers compute: the result is that of one worker, whatever the helpers do."""

import pickle
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from clearstate.runtime import open_model
from clearstate.tasks.blocks import AHEAD, Helpers, Layout, Overlapping, lending

LAYOUT = Layout(length=100, overlap=30, fade=10)


def run(x, position):
    return np.cumsum(x, axis=1) + position  # depends on where the block begins


def through(helpers=None, elsewhere=run, samples=2_345, chunk=67):
    x = np.random.default_rng(0).standard_normal((2, samples)).astype(np.float32)
    blocks = Overlapping(run, 2, 2, LAYOUT, elsewhere=elsewhere)
    with lending(lambda: helpers):
        pairs = [blocks.push(x[:, at : at + chunk]) for at in range(0, samples, chunk)]
        pairs.append(blocks.finish())
    inputs, outputs = (np.concatenate([pair[i] for pair in pairs], axis=1) for i in (0, 1))
    np.testing.assert_array_equal(inputs, x)
    return outputs


class Elsewhere:
    """Starts blocks on threads, the n-th in the manner of `how(n)`."""

    def __init__(self, how=lambda n: "done"):
        self.pool, self.how, self.begun = ThreadPoolExecutor(2), how, 0

    def start(self, run, x, position):
        self.begun += 1
        how = self.how(self.begun)
        if how == "gone":
            raise OSError("no helper")
        if how == "dies":
            failed: Future = Future()
            failed.set_exception(OSError("the helper died"))
            return failed
        return self.pool.submit(run, x.copy(), position)


@pytest.mark.parametrize(
    "how",
    [
        lambda n: "done",
        lambda n: "dies",
        lambda n: "dies" if n % 3 == 0 else "done",
        lambda n: "gone" if n > 4 else "done",
    ],
    ids=["all work", "all die", "some die", "leave"],
)
@pytest.mark.parametrize("count", [1, 3])
def test_helpers_do_not_change_the_output(how, count):
    places = Elsewhere(how)
    np.testing.assert_array_equal(through(Helpers(places.start, count)), through())
    assert places.begun > 4


def test_the_comparison_sees_a_block_of_another_place():
    """The negative control."""
    wrong = through(Helpers(Elsewhere().start, 2), elsewhere=lambda x, position: run(x, position + 1))
    assert np.abs(wrong - through()).max() > 0.5


def test_without_a_form_that_can_be_sent_all_blocks_are_computed_here():
    places = Elsewhere()
    np.testing.assert_array_equal(through(Helpers(places.start, 2), elsewhere=None), through())
    assert not places.begun


def test_a_helper_that_never_answers_holds_a_bounded_number_of_blocks(monkeypatch):
    """After 2 (AHEAD + 1) blocks the runner waits for the first; here the wait ends in an error, and it goes on."""
    read = []

    def give_up(self, future):
        read.append(future)
        raise TimeoutError

    monkeypatch.setattr(Helpers, "read", give_up)
    np.testing.assert_array_equal(through(Helpers(lambda run, x, position: Future(), 1)), through())
    assert len(read) == AHEAD


def test_an_error_of_the_model_arrives():
    def fails(x, position):
        raise ValueError("the model fails")

    blocks = Overlapping(fails, 1, 1, LAYOUT, elsewhere=fails)
    with lending(lambda: Helpers(Elsewhere().start, 9)), pytest.raises(ValueError, match="the model fails"):
        _ = blocks.push(np.zeros((1, 500), np.float32)), blocks.finish()


@pytest.mark.parametrize("backend", ["onnx", "torch"])
@pytest.mark.parametrize("name, task", [("separate-fast", "separate"), ("extend-fast", "extend")])
def test_a_model_is_sent_by_its_name(name, task, backend):
    model = open_model(name, task, backend=backend)
    sent = pickle.dumps(model)
    received = pickle.loads(sent)
    assert len(sent) < 500 and type(received) is type(model)
    assert pickle.loads(sent) is received  # opened once in a process
