"""Live sound in chunks of any size, and proof that the contracts every model is held to can fail."""

import asyncio
import copy
import pickle
import time
import tracemalloc

import numpy as np
import pytest
import torch
from contracts import CAUSAL, OFFLINE, any_chunking_gives_the_offline_output
from doubles import CausalDouble, DoubleState, Identity, NonCausalDouble

from clearstate.models import build
from clearstate.tasks.enhance import Enhancer
from clearstate.tasks.stream import Stream

RATES = [16_000, 48_000, 44_100, 8_000]


def noise(channels, samples, level=0.1, seed=0):
    rng = np.random.default_rng(seed)
    x = level * rng.standard_normal((channels, samples)).astype(np.float32)
    return x[0] if channels == 1 else x


def run(stream, x, sizes):
    out, start, turn = [], 0, 0
    while start < x.shape[-1]:
        size = sizes[turn % len(sizes)]
        chunk = x[..., start : start + size]
        out.append(stream.process(chunk))
        assert out[-1].shape == chunk.shape and out[-1].dtype == np.float32
        start, turn = start + size, turn + 1
    return np.concatenate([*out, stream.flush()], axis=-1)


@pytest.fixture(scope="module")
def live():
    """The default model's architecture with arbitrary weights that do something."""
    torch.manual_seed(0)
    model = build("live").eval()
    with torch.no_grad():
        model.head.weight.mul_(20)
    return model


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", RATES)
def test_a_stream_is_the_file_later_by_the_latency_whatever_the_chunks(rate, channels):
    x = noise(channels, rate + 77)
    offline = Enhancer(CausalDouble()).enhance(x, rate, warm_up=False)
    for sizes in ([rate // 100], [1, 0, 4_000, 333], [10**9]):
        stream = Stream(CausalDouble(), rate, channels)
        y = run(stream, x, sizes)
        assert y.shape[-1] == x.shape[-1] + stream.latency_samples
        assert not y[..., : stream.latency_samples].any()
        np.testing.assert_allclose(y[..., stream.latency_samples :], offline, atol=1e-6)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_so_it_is_with_the_default_model(live, rate):
    x = noise(2, rate // 2)
    stream = Stream(live, rate, channels=2)
    y = run(stream, x, [rate // 100])[:, stream.latency_samples :]
    np.testing.assert_allclose(y, Enhancer(live).enhance(x, rate, warm_up=False), atol=2e-5)
    assert np.abs(y - x).max() > 0.01, "the model does nothing"


def test_single_samples_give_single_samples():
    x = noise(1, 1_500)
    y = run(Stream(CausalDouble()), x, [1])
    np.testing.assert_allclose(y[511:], Enhancer(CausalDouble()).enhance(x, 16_000, warm_up=False), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [*RATES, 22_050, 44_099])
def test_the_latency_is_enough_for_every_chunking_and_an_impulse_shows_it(rate, channels):
    stream = Stream(Identity(), rate, channels)
    assert stream.latency_seconds == stream.latency_samples / rate
    for place in (0, 1_000, 1_003):
        x = noise(channels, 3_000) * 0
        x[..., place] = 1
        y = run(stream, x, [7])
        assert (np.argmax(np.abs(y), axis=-1) == place + stream.latency_samples).all()


def test_the_latency_is_as_short_as_promised():
    """At the model's rate: the model's own window, no more. Elsewhere: the resampling filters on top, 3 ms each way."""
    model = CausalDouble()
    assert Stream(model).latency_samples == model.latency + model.hop - 1 == 511
    assert Stream(model, 48_000).latency_seconds < 0.032 + 0.0061
    assert Stream(model, 44_100).latency_seconds < 0.032 + 0.0061
    assert Stream(model, channels=2).latency_seconds < 0.048 + 1e-3


def test_the_latency_cannot_be_shorter():
    """Samples that come one by one: right before a hop is complete, all that was held back is used up."""
    chain = Stream(CausalDouble())._chain
    ready, least = 511, 511
    for _ in range(2_000):
        ready += chain.push(np.zeros((1, 1), dtype=np.float32)).shape[1] - 1
        least = min(least, ready)
    assert least == 0


def test_live_latency_is_at_most_32_ms(live):
    assert Stream(live).latency_seconds <= 0.032


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_two_streams_never_meet(live, rate):
    x, y = noise(1, rate // 2), noise(1, rate // 2, 0.5, seed=1)
    alone = run(Stream(live, rate), x, [480]), run(Stream(live, rate), y, [480])
    streams, out = (Stream(live, rate), Stream(live, rate)), ([], [])
    for start in range(0, rate // 2, 480):
        for stream, signal, parts in zip(streams, (x, y), out, strict=True):
            parts.append(stream.process(signal[start : start + 480]))
    for stream, parts, expected in zip(streams, out, alone, strict=True):
        assert np.array_equal(np.concatenate([*parts, stream.flush()]), expected)


def test_after_reset_and_after_flush_a_stream_is_as_good_as_new():
    x = noise(1, 10_000)
    stream = Stream(CausalDouble(), 48_000)
    first = run(stream, x, [480])
    assert np.array_equal(run(stream, x, [480]), first)  # run() ends with flush
    stream.process(noise(1, 5_000, 1.0, seed=2))
    stream.reset()
    assert np.array_equal(run(stream, x, [480]), first)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_strength_zero_only_delays(rate):
    x = noise(2, rate // 2)
    stream = Stream(CausalDouble(), rate, 2, strength=0)
    assert np.array_equal(run(stream, x, [100])[:, stream.latency_samples :], x)


def test_flush_right_away_and_of_very_short_signals():
    for samples in (0, 1, 255, 256, 257):
        for rate in (16_000, 48_000):
            stream = Stream(CausalDouble(0.5), rate)
            x = noise(1, samples)
            y = np.concatenate([stream.process(x), stream.flush()])
            assert y.shape == (samples + stream.latency_samples,)
            np.testing.assert_allclose(
                y[stream.latency_samples :], Enhancer(CausalDouble(0.5)).enhance(x, rate) if samples else x, atol=1e-6
            )


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2)])
def test_memory_does_not_grow(rate, channels):
    stream = Stream(CausalDouble(), rate, channels)
    chunk = noise(channels, rate // 100)
    tracemalloc.start()
    sizes = []
    for _ in range(12):
        for _ in range(100):
            stream.process(chunk)
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    # From the seventh second on, when all buffers have met their longest phase: a chunk's worth.
    assert max(sizes[6:]) - sizes[6] < 20_000, f"bytes after every second: {sizes}"


def test_one_row_keeps_its_two_dimensions():
    x = noise(1, 3_000)[None]
    stream = Stream(CausalDouble())
    assert stream.process(x).shape == (1, 3_000)
    assert stream.flush().shape == (1, 511)


@pytest.mark.parametrize(
    ("chunk", "channels", "says"),
    [
        (np.zeros((100, 2)), 2, r"shape \(100, 2\): expected \(2, n\) for channels=2"),
        (np.zeros(100), 2, r"shape \(100,\): expected \(2, n\)"),
        (np.zeros((2, 100)), 1, r"expected \(n,\) or \(1, n\)"),
        (np.zeros(100, dtype=np.int16), 1, "type int16: .* divide int16 samples by 32768"),
        (None, 1, "expected"),
        ({"a": 1}, 1, "expected"),
        ([[1.0], [1.0, 2.0]], 1, "expected an array of numbers"),
        (np.zeros(3, dtype=complex), 1, "type complex128"),
    ],
)
def test_a_bad_chunk_says_what_was_expected_and_leaves_the_stream_as_it_was(chunk, channels, says):
    x = noise(channels, 2_000)
    stream, twin = Stream(CausalDouble(), channels=channels), Stream(CausalDouble(), channels=channels)
    first = stream.process(x)
    with pytest.raises(ValueError, match=says):
        stream.process(chunk)
    assert np.array_equal(first, twin.process(x))
    assert np.array_equal(stream.process(x), twin.process(x))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_bad_samples_become_silence_and_are_counted(bad, rate):
    x = noise(1, 4_000)
    broken, silenced = x.copy(), x.copy()
    broken[1_000:1_003], silenced[1_000:1_003] = bad, 0
    stream = Stream(CausalDouble(), rate)
    assert np.array_equal(run(stream, broken, [480]), run(Stream(CausalDouble(), rate), silenced, [480]))
    assert stream.bad_samples == 3


def test_a_stream_can_refuse_bad_samples_instead():
    stream = Stream(CausalDouble(), on_bad="raise")
    with pytest.raises(ValueError, match="1 NaN or infinite"):
        stream.process(np.array([0.0, np.nan]))
    assert stream.bad_samples == 0
    with pytest.raises(ValueError, match="'silence' or 'raise'"):
        Stream(CausalDouble(), on_bad="ignore")


def test_huge_samples_are_clipped_and_nothing_becomes_infinite():
    y = run(Stream(CausalDouble(0.5)), np.array([1e300, -1e300, 1e39] * 500), [480])
    assert np.isfinite(y).all()


@pytest.mark.parametrize(("rate", "strength"), [(16_000, None), (16_000, 12), (44_100, None), (48_000, 6)])
def test_the_callers_buffer_may_be_used_again(rate, strength):
    x = noise(2, rate // 4)
    whole = run(Stream(CausalDouble(), rate, 2, strength), x, [480])
    stream, buffer, out = Stream(CausalDouble(), rate, 2, strength), np.empty((2, 480), np.float32), []
    for start in range(0, x.shape[1] // 480 * 480, 480):
        buffer[:] = x[:, start : start + 480]
        out.append(stream.process(buffer).copy())
        buffer[:] = 7
    done = np.concatenate(out, axis=1)
    np.testing.assert_array_equal(done, whole[:, : done.shape[1]])


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        memoryview,
        lambda x: np.frombuffer(x.tobytes(), x.dtype),  # read-only
        lambda x: np.repeat(x, 2)[::2],
        lambda x: x.astype(">f4"),
        lambda x: x.astype(object),
        lambda x: torch.from_numpy(x).requires_grad_(),
    ],
    ids=["list", "tuple", "memoryview", "read-only", "strided", "byte-swapped", "object", "tensor"],
)
def test_anything_like_an_array_is_taken(make):
    x = noise(1, 2_000)
    np.testing.assert_array_equal(Stream(CausalDouble()).process(make(x)), Stream(CausalDouble()).process(x))


@pytest.mark.parametrize("copying", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_copy_of_a_stream_is_refused_as_it_would_share_its_state(copying):
    with pytest.raises(TypeError, match="create another one"):
        copying(Stream(CausalDouble()))


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_apart_each_channel_is_a_stream_of_its_own(rate):
    x = noise(2, rate // 2) * np.array([[1.0], [0.01]], dtype=np.float32)
    apart = run(Stream(CausalDouble(), rate, 2, channels_mode="apart"), x, [480])
    for row, y in zip(x, apart, strict=True):
        np.testing.assert_array_equal(y, run(Stream(CausalDouble(), rate), row, [480]))
    linked = run(Stream(CausalDouble(), rate, 2), x, [480])
    assert linked.shape != apart.shape or np.abs(linked - apart).max() > 1e-3


def test_a_model_that_needs_the_whole_signal_is_refused_and_a_causal_one_named():
    with pytest.raises(
        ValueError, match=r"NonCausalDouble needs the whole signal; to stream, use (.live.|a causal one)"
    ):
        Stream(NonCausalDouble())


def test_bad_settings_are_refused():
    for settings in ({"sample_rate": 0}, {"channels": 0}, {"strength": -1}, {"sample_rate": 44_100.5}):
        with pytest.raises(ValueError, match="expected"):
            Stream(CausalDouble(), **settings)


# --- the contracts can fail ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contract", OFFLINE + CAUSAL, ids=lambda contract: contract.__name__)
@pytest.mark.parametrize("model", [CausalDouble(), CausalDouble(0.5), Identity()], ids=["wiener", "half", "identity"])
def test_a_sound_model_keeps_every_contract(model, contract):
    contract(model)


@pytest.mark.parametrize("contract", OFFLINE, ids=lambda contract: contract.__name__)
def test_a_sound_non_causal_model_keeps_the_contracts_of_all(contract):
    contract(NonCausalDouble())


class WrongLength(CausalDouble):
    def forward(self, noisy):
        return super().forward(noisy)[:, : noisy.shape[-1] // self.hop * self.hop]


class NormalisedOverTheBatch(CausalDouble):
    def forward(self, noisy):
        return super().forward(noisy) * (0.1 / (noisy.abs().max() + 1e-9))


class Hisses(CausalDouble):
    def forward(self, noisy):
        return super().forward(noisy) + 1e-6


class DividesByTheLevel(CausalDouble):
    def forward(self, noisy):
        return super().forward(noisy) / noisy.square().mean(-1, keepdim=True).sqrt()


class WritesIntoItsInput(CausalDouble):
    def forward(self, noisy):
        return super().forward(noisy.mul_(0.9))


class ReadsPastTheEnd(CausalDouble):
    def forward(self, noisy):
        beyond = noisy.as_strided((len(noisy), noisy.shape[1] + 1), noisy.stride()) if noisy.storage_offset() else noisy
        return super().forward(beyond)[:, : noisy.shape[-1]]


class DropsItsState(CausalDouble):
    def step(self, x, state):
        y, _ = super().step(x, state)
        return y, self.init_state(len(x))


class HidesItsState(CausalDouble):
    def step(self, x, state):
        hidden = getattr(self, "hidden", None)
        y, self.hidden = super().step(x, state if hidden is None or len(hidden[0]) != len(x) else hidden)
        return y, state


class MixesStreams(CausalDouble):
    def mask(self, spectrum, noise):
        gain, noise = super().mask(spectrum, noise)
        return gain.mean(0, keepdim=True), noise


class WritesIntoItsState(CausalDouble):
    def step(self, x, state):
        y, after = super().step(x, state)
        state.tail.copy_(after.tail)
        return y, after


class LooksAhead(CausalDouble):
    """Hears two hops ahead, one sample more than the latency it states."""

    def forward(self, noisy):
        early = torch.nn.functional.pad(noisy, (0, 2 * self.hop))[:, 2 * self.hop :]
        return 0.5 * super().forward(noisy) + 0.5 * early


class TakesAnyLength(CausalDouble):
    def step(self, x, state):
        whole = torch.nn.functional.pad(x, (0, -x.shape[-1] % self.hop))
        y, state = super().step(whole, state)
        return y[:, : x.shape[-1]], DoubleState(*state)


@pytest.mark.parametrize(
    ("broken", "caught_by"),
    [
        (WrongLength, "length_in_is_length_out"),
        (NormalisedOverTheBatch, "batch_items_do_not_meet"),
        (Hisses, "silence_stays_silent"),
        (DividesByTheLevel, "extreme_levels_stay_finite"),
        (WritesIntoItsInput, "the_input_is_left_as_it_was"),
        (ReadsPastTheEnd, "what_lies_beyond_the_signal_never_leaks"),
        (DropsItsState, "any_chunking_gives_the_offline_output"),
        (HidesItsState, "the_state_is_in_the_state"),
        (WritesIntoItsState, "the_state_is_in_the_state"),
        (MixesStreams, "streams_in_a_batch_do_not_meet"),
        (LooksAhead, "an_output_hears_nothing_beyond_the_latency"),
        (LooksAhead, "gradients_reach_no_further_than_the_latency"),
        (TakesAnyLength, "a_wrong_length_of_step_is_an_error"),
    ],
)
def test_each_contract_catches_the_model_that_breaks_it(broken, caught_by):
    contract = next(c for c in OFFLINE + CAUSAL if c.__name__ == caught_by)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        contract(broken())


def test_forgetting_the_state_between_chunks_is_seen(live):
    any_chunking_gives_the_offline_output(live)
    with pytest.raises(AssertionError):
        any_chunking_gives_the_offline_output(live, carry=False)


async def one_by_one(chunks, taken):
    for chunk in chunks:
        await asyncio.sleep(0)
        taken.append(len(chunk))
        yield chunk


def test_an_asynchronous_source_gives_what_process_and_flush_give():
    x, here = noise(1, 16_000), Stream(CausalDouble(0.5), 48_000)
    chunks = np.split(x, [480, 480, 5_000])

    async def work():
        stream = Stream(CausalDouble(0.5), 48_000)
        return [y async for y in stream.aiter(one_by_one(chunks, []))]

    got = asyncio.run(work())
    assert [len(y) for y in got] == [*map(len, chunks), here.latency_samples]
    np.testing.assert_array_equal(np.concatenate(got), run(here, x, [16_000]))


def test_a_slow_consumer_holds_back_an_asynchronous_source():
    async def work():
        taken, stream = [], Stream(CausalDouble())
        outputs = stream.aiter(one_by_one([noise(1, 160)] * 100, taken))
        for count in range(1, 5):
            await anext(outputs)
            await asyncio.sleep(0.01)
            assert len(taken) == count
        await outputs.aclose()

    asyncio.run(work())


def test_asynchronous_streams_run_at_the_same_time_and_do_not_mix():
    signals = [noise(1, 8_000, seed=seed) for seed in range(20)]

    async def one(x):
        return np.concatenate([y async for y in Stream(CausalDouble()).aiter(one_by_one(np.split(x, 50), []))])

    async def work():
        return await asyncio.gather(*map(one, signals))

    for x, got in zip(signals, asyncio.run(work()), strict=True):
        np.testing.assert_array_equal(got, run(Stream(CausalDouble()), x, [160]))


def test_a_cancelled_task_leaves_no_thread_that_changes_the_stream():
    stream, running = Stream(CausalDouble()), []

    class Slow:
        """`process` that takes its time."""

        def __call__(self, chunk):
            running.append(True)
            time.sleep(0.2)
            running.pop()
            return chunk

    stream.process = Slow()

    async def work():
        task = asyncio.ensure_future(anext(stream.aiter(one_by_one([noise(1, 160)], []))))
        while not running:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not running

    asyncio.run(work())
