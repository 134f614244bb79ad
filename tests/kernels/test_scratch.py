"""Working memory that is kept: whose it is, and when it is handed out."""

import threading

import pytest

from clearstate.kernels.scratch import lent


def place(count: int) -> int:
    with lent(count) as memory:
        assert memory.numel() == count
        return memory.data_ptr()


def test_a_thread_gets_the_same_memory_again_as_long_as_it_is_large_enough():
    first = place(1000)
    assert place(1000) == place(10) == first


def test_a_call_within_another_and_another_thread_get_memory_of_their_own():
    with lent(1000) as outer:
        outer.fill_(1.0)
        with lent(1000) as inner:
            inner.fill_(2.0)
        thread = threading.Thread(target=lambda: _write(1000))
        thread.start()
        thread.join()
        assert (outer == 1).all()


def _write(count: int) -> None:
    with lent(count) as memory:
        memory.fill_(3.0)


def test_memory_that_an_error_may_still_refer_to_is_not_handed_out_again():
    with pytest.raises(ZeroDivisionError), lent(1000) as held:
        raise ZeroDivisionError
    with lent(1000) as fresh:
        assert fresh.data_ptr() != held.data_ptr()
