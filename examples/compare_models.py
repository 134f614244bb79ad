"""Enhance one noisy file with several models, and print a table of their speed and scores.

    python examples/compare_models.py noisy.wav clean.wav live runs/mp-senet/best ...

A model is a name or a folder with weights. Writes compared/<number>-<model>.wav.
"""

import sys
from pathlib import Path

import soundfile

import clearstate
from clearstate import metrics

RESULTS = Path("compared")


def main() -> None:
    if len(sys.argv) < 4:
        sys.exit("usage: compare_models.py NOISY CLEAN MODEL [MODEL ...]")
    noisy, clean, *models = sys.argv[1:]
    RESULTS.mkdir(exist_ok=True)
    print(f"{'':24}{'parameters':>12}{'x real time':>13}{'PESQ':>8}{'STOI':>8}{'SI-SDR':>9}")
    print(f"{'noisy':24}{'':>25}{scores(clean, noisy)}")
    for i, name in enumerate(models, 1):
        enhancer = clearstate.load(name)
        result = RESULTS / f"{i}-{Path(name).resolve().name if Path(name).is_dir() else name}.wav"
        report = enhancer.enhance_file(noisy, result, overwrite=True)
        size = sum(p.numel() for p in enhancer.model.network.parameters())
        print(f"{name[-24:]:24}{size:12,}{report.speed:13.1f}{scores(clean, str(result))}")


def scores(clean: str, estimate: str) -> str:
    """Wide-band PESQ, STOI and SI-SDR in dB of a file; a dash where a library lacks."""
    (reference, rate), (signal, _) = soundfile.read(clean), soundfile.read(estimate)
    row = ""
    for score in (metrics.pesq_wb, metrics.stoi):
        try:
            row += f"{score(reference, signal, rate):8.3f}"
        except metrics.MissingExtra:
            row += f"{'–':>8}"
    return row + f"{metrics.si_sdr(reference, signal):9.2f}"


if __name__ == "__main__":
    main()
