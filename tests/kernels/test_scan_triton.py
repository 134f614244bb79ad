"""The Triton scan without a GPU: interpreted at small sizes, and compiled for a GPU that need not be there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the CUDA scan needs triton, which is not installed: pip install triton")

ROOT = Path(__file__).resolve().parents[2]


def python(*arguments, **variables):
    """Run Python on one thread, from the repository's root; gives its output, and fails where it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CLEARSTATE_SCAN": "auto"} | variables
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_interpreted_kernels_agree_with_the_equation():
    out = python("-m", "pytest", "-p", "no:cacheprovider", "tests/kernels/interpreted_scan.py", TRITON_INTERPRET="1")
    assert "passed" in out and "skipped" not in out


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu(tmp_path):
    """The interpreter accepts more than the compiler does. With every optional input, and (float64) with none."""
    pytest.importorskip("triton.backends.nvidia", reason="this triton has no compiler for NVIDIA devices")
    program = """
import sys
import clearstate.ssm
assert "clearstate.kernels.scan_triton" not in sys.modules, "triton is slow to import: only on first use"

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from clearstate.kernels import scan_triton as scan_cuda

def assemble(kernel, dtype, terms, absent):
    fixed = dict(STATES=16, SOFTPLUS=True, TERMS=terms, EVERY=16, WIDTH=32, PADDED=16, **dict.fromkeys(absent))
    names = [p.name for p in kernel.params]
    types = {name: "i64" if name[-2:] in ("_b", "_t") or name == "dB_block" else "*" + dtype for name in names}
    types |= {name: "i32" for name in ("batch", "length", "channels") if name in names}
    types |= dict.fromkeys(fixed, "constexpr")
    source = ASTSource(kernel, types, {(names.index(name),): value for name, value in fixed.items()})
    made = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=scan_cuda.LAUNCH)
    print(kernel.__name__, dtype, len(absent), "entry" in made.asm["ptx"], len(made.asm["cubin"]) > 0)

for dtype, terms, absent in (("fp32", 8, []), ("fp64", 16, ["z", "D", "bias"])):
    assemble(scan_cuda._forward_kernel, dtype, terms, absent and [*absent, "h0", "kept"])
    assemble(scan_cuda._backward_kernel, dtype, terms, absent and [*absent, "dz", "dh_last"])
"""
    lines = python("-c", program, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    assert len(lines) == 4 and all(line.endswith("True True") for line in lines)
