"""Which code runs a recurrence is chosen openly: by variable, by context, and never silently the slow one."""

import os
import re
import subprocess
import sys
import threading
import warnings

import pytest
from scan_inputs import scan_inputs

from clearstate.kernels.backend import backend
from clearstate.ssm import selective_scan, use_backend

settings = sys.modules["clearstate.kernels.backend"]


@pytest.fixture
def fresh(monkeypatch):
    """No choice made, no warning given yet."""
    monkeypatch.delenv(settings.VARIABLE, raising=False)
    settings._warn_slow.cache_clear()
    yield
    settings._warn_slow.cache_clear()


@pytest.fixture
def without_kernels(fresh, monkeypatch):
    monkeypatch.setattr(settings, "unavailable", lambda kernel: f"{kernel} is not there: pip install {kernel}")


def test_the_kernel_of_the_device_is_taken_without_a_word(fresh):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend() == "numba"
        assert backend("mps") == "reference"  # there is no kernel to miss


@pytest.mark.parametrize("name", ["numba", "reference", "parallel"])
def test_the_environment_variable_chooses(fresh, monkeypatch, name):
    monkeypatch.setenv("CLEARSTATE_SCAN", name)
    assert backend() == name


@pytest.mark.parametrize("name", ["reference", "parallel"])
def test_a_context_chooses_over_the_variable_and_ends(fresh, monkeypatch, name):
    monkeypatch.setenv("CLEARSTATE_SCAN", "numba")
    with use_backend(name):
        assert backend() == name
        with use_backend("numba"):
            assert backend() == "numba"
        assert backend() == name
    assert backend() == "numba"
    with pytest.raises(KeyError), use_backend(name):
        raise KeyError
    assert backend() == "numba"


def test_a_context_is_seen_by_its_own_thread_alone(fresh):
    seen = []
    with use_backend("reference"):
        other = threading.Thread(target=lambda: seen.append(backend()))
        other.start()
        other.join()
    assert seen == ["numba"]


def test_the_choice_is_what_runs(fresh, monkeypatch):
    ran = []
    module = sys.modules["clearstate.ssm.scan"]
    for name in ("selective_scan_reference", "selective_scan_parallel", "scan_op"):
        form = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *x, form=form, name=name: (ran.append(name), form(*x))[1])
    for name in ("reference", "parallel", "numba"):
        with use_backend(name):
            selective_scan(**scan_inputs(1, 3, 2, 2))
    assert ran == ["selective_scan_reference", "selective_scan_parallel", "scan_op"]


def test_an_unknown_name_is_refused_with_those_that_are_known(fresh, monkeypatch):
    with (
        pytest.raises(ValueError, match=r"'fast' is not a scan backend: expected one of auto, numba"),
        use_backend("fast"),
    ):
        pass
    monkeypatch.setenv("CLEARSTATE_SCAN", "fast")
    with pytest.raises(ValueError, match=r"CLEARSTATE_SCAN='fast' is not a scan backend: expected one of auto, numba"):
        backend()


def test_the_slow_form_is_announced_once_with_the_reason(without_kernels):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert backend() == "reference"
            selective_scan(**scan_inputs(1, 3, 2, 2))
    (only,) = caught
    assert only.category is RuntimeWarning
    assert re.search("slow reference form, not in numba: .*pip install numba", str(only.message))


def test_the_slow_form_is_not_announced_to_who_asked_for_it(without_kernels):
    with warnings.catch_warnings(), use_backend("reference"):
        warnings.simplefilter("error")
        assert backend() == "reference"


def test_a_kernel_asked_for_by_name_is_an_error_where_it_cannot_run(without_kernels):
    with (
        use_backend("numba"),
        pytest.raises(RuntimeError, match="'numba' was asked for and cannot run: numba is not there"),
    ):
        selective_scan(**scan_inputs(1, 3, 2, 2))
    with use_backend("triton"), pytest.raises(RuntimeError, match="the tensors are on 'cpu': use backend 'auto'"):
        selective_scan(**scan_inputs(1, 3, 2, 2))


def test_without_numba_the_recurrence_still_runs_and_says_so():
    """A real import error, in a process of its own."""
    code = """
import sys, warnings
sys.modules["numba"] = None
import torch
from clearstate.ssm import backend, selective_scan
one = torch.ones(1, 3, 1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    y, _ = selective_scan(one, one, -one[0, :1], one, one)
assert [round(v, 4) for v in y.flatten().tolist()] == [1.0, 1.3679, 1.5032], y
assert backend() == "reference"
print(*(w.message for w in caught))
"""
    environment = {name: value for name, value in os.environ.items() if name != settings.VARIABLE}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "numba cannot be imported" in done.stdout and done.stdout.count("pip install numba") == 1
