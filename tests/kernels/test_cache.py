"""Compiled code is kept under the digest of its sources, so that a change anywhere is seen."""

import numba

from clearstate.kernels import cache as compiled


def test_a_change_in_any_compiled_file_gives_another_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "kernel.py").write_text("@njit(cache=True)\ndef f(x): return g(x)\n")
    (tmp_path / "sub" / "helper.py").write_text("@njit\ndef g(x): return x\n")
    (tmp_path / "prose.py").write_text("x = 1\n")
    first = compiled.digest(tmp_path)
    (tmp_path / "prose.py").write_text("x = 2\n")
    assert compiled.digest(tmp_path) == first
    (tmp_path / "sub" / "helper.py").write_text("@njit\ndef g(x): return -x\n")
    assert compiled.digest(tmp_path) != first


def test_the_package_uses_the_folder_and_leaves_numbas_setting_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "cache_folder", lambda: tmp_path)
    before = numba.config.CACHE_DIR

    @compiled.njit(cache=True)
    def twice(x):
        return 2 * x

    assert twice(3) == 6
    assert before == numba.config.CACHE_DIR
    assert list(tmp_path.rglob("*.nbi"))
