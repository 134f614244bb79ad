"""Enhance the example recording, draw its spectrograms and compute its scores. `make demo` runs this.

Writes demo/result.wav and demo/spectrograms.png; the scores compare both with the clean reference of the example.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import soundfile

import clearstate
from clearstate import metrics
from clearstate.audio.pictures import before_and_after

CLIPS = Path(__file__).parent / "clips"
NOISY, CLEAN = CLIPS / "helicopter_0db.noisy.flac", CLIPS / "helicopter_0db.clean.flac"
DEMO = Path("demo")


def main() -> None:
    DEMO.mkdir(exist_ok=True)
    result, picture = DEMO / "result.wav", DEMO / "spectrograms.png"
    clearstate.enhance(NOISY, result, overwrite=True)
    before_and_after(NOISY, result, picture)

    print(f"noisy example   {os.path.relpath(NOISY)}\nresult          {result}\nspectrograms    {picture}\n")
    print(f"{'':16}{'PESQ':>8}{'STOI':>8}{'SI-SDR':>11}")
    print(f"{'before':16}{scores(NOISY)}\n{'after':16}{scores(result)}")
    if find_spec("pesq") is None or find_spec("pystoi") is None:
        print("\nPESQ and STOI: pip install 'clearstate[metrics]'")


def scores(path: Path) -> str:
    """One row: wide-band PESQ, STOI and SI-SDR of a file against the clean reference; a dash where a library lacks."""
    reference, rate = soundfile.read(CLEAN)  # (samples,)
    estimate, _ = soundfile.read(path)
    row = ""
    for score in (metrics.pesq_wb, metrics.stoi):
        try:
            row += f"{score(reference, estimate, rate):8.3f}"
        except metrics.MissingExtra:
            row += f"{'–':>8}"
    return row + f"{metrics.si_sdr(reference, estimate):8.2f} dB"


if __name__ == "__main__":
    main()
