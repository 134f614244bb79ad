"""Every sample rate is checked."""

from fractions import Fraction

import numpy as np
import pytest

from clearstate.audio.rates import whole_rate


@pytest.mark.parametrize("kind", [int, float, np.int32, np.uint16, np.int64, np.float32, np.float64, Fraction])
def test_any_type_of_number_becomes_an_int(kind):
    rate = whole_rate(kind(16_000))
    assert rate == 16_000 and type(rate) is int


def test_a_number_in_an_array_is_a_number():
    assert whole_rate(np.array([[44_100]])) == whole_rate(np.array(44_100.0)) == 44_100


@pytest.mark.parametrize(
    "rate",
    [0, -1, 16_000.5, float("nan"), float("inf"), "16k", "16000", b"16000", True, np.True_, None, [16_000], 1j, {},
     2**40, np.array([8_000, 16_000])],
)  # fmt: skip
def test_anything_else_is_refused_in_one_line(rate):
    with pytest.raises(ValueError, match="expected a whole number of Hz") as error:
        whole_rate(rate)
    assert "\n" not in str(error.value)
