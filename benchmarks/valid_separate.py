"""Compute the table of a separator's card: SI-SDRi, SDRi and SNRi on validation mixtures.

    python benchmarks/valid_separate.py --model separate-fast --data FOLDER [--rooms INDEX] [--noise FOLDER]

FOLDER/s1 and FOLDER/s2 contain files of the same names, whose sum is the mixture. With --rooms each voice stands in a
room, which stays part of it: the responses that the index marks as "valid". With --noise there is a noise besides,
which is part of no voice: the difference of the files in FOLDER/noisy and FOLDER/clean. All in a fixed order.

The model runs as in `clearstate separate` (`Separator`). Mixtures of two are also grouped by the pitch distance of
their voices, because similar voices are harder to separate. The last line is a ceiling for comparison: each bin of a
spectrum (512 samples, hop 256) given to the louder voice, which needs to know them.

With --alone the inputs are the single voices, as they are, and what is printed is how far the louder output is above
the other, which should be silent.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile
from rich.progress import track
from scipy import signal

from clearstate.data.effects import make_room
from clearstate.data.pitch import median_pitch
from clearstate.data.shards import read_index, read_tar_audio
from clearstate.metrics.intrusive import sdr, si_sdr, snr
from clearstate.metrics.separation import best_order
from clearstate.tasks.separate import Separator, load_separator

NEAR, FAR = 2.5, 6.0  # semitones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="separate-fast", help="a name, or a folder with weights")
    parser.add_argument("--data", type=Path, required=True, help="folder with s1, s2, ... of the same file names")
    parser.add_argument("--items", type=int, help="use only the first ITEMS mixtures")
    parser.add_argument("--rooms", type=Path, metavar="INDEX", help="rir*.jsonl of room responses beside their shards")
    parser.add_argument("--noise", type=Path, metavar="FOLDER", help="folder with noisy/ and clean/")
    parser.add_argument("--snr", type=float, default=10.0, help="of the voices over the noise, dB")
    parser.add_argument("--alone", action="store_true", help="each voice by itself instead of the mixtures")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    given = parser.parse_args()
    separator = load_separator(given.model)
    folders = sorted(path for path in given.data.iterdir() if path.is_dir() and path.name[:1] == "s")
    if not folders:
        raise SystemExit(f"{given.data} holds no folders s1, s2, ...: name the one that does, such as valid/separate")
    names = sorted(path.name for path in folders[0].iterdir() if path.suffix in (".wav", ".flac"))[: given.items]
    if len(folders) != int(separator.model.speakers):
        raise SystemExit(
            f"{given.model} gives {separator.model.speakers} speakers, but {given.data} has {len(folders)}"
        )

    if given.alone:
        print(f"{given.model}: {alone(separator, [folder / name for folder in folders for name in names])}")
        return

    scene = Scene(given.rooms, given.noise, given.snr)
    rows, apart, ceiling = [], [], []
    for number, name in enumerate(track(names, description="mixtures", transient=True)):
        read = [soundfile.read(folder / name) for folder in folders]
        sources, rate = np.stack([audio for audio, _ in read]), read[0][1]
        apart.append(semitones(sources, rate) if len(sources) == 2 else np.nan)
        sources, mixture = scene.play(sources, number)
        voices = separator.separate(mixture, rate)
        for source, masked in zip(sources, ideal_binary_mask(sources, mixture), strict=True):
            ceiling.append(si_sdr(source, masked) - si_sdr(source, mixture))
        order = best_order(sources, voices)
        for source, j in zip(sources, order, strict=True):
            rows.append([metric(source, y) for metric in (si_sdr, sdr, snr) for y in (mixture, voices[j])])
    before, after = (np.array(rows)[:, i::2] for i in (0, 1))  # (sources, metrics)
    improved = (after[:, 0] > before[:, 0]).mean()
    print(f"{given.model} on {len(names)} mixtures ({len(rows)} voices) in {given.data}")
    print(f"{'dB':8}{'mixture':>9}{'output':>9}{'gain':>9}")
    result = {"mixtures": len(names), "improved": float(improved)}
    for i, key in enumerate(("si_sdr", "sdr", "snr")):
        values = before[:, i].mean(), after[:, i].mean(), (after - before)[:, i].mean()
        print(f"{key.upper().replace('_', '-'):8}" + "".join(f"{value:9.2f}" for value in values))
        result[key] = dict(zip(("mixture", "output", "gain"), map(float, values), strict=True))
    print(f"SI-SDR is better than the mixture's for {100 * improved:.0f} % of the voices")
    gains, far = (after - before)[:, 0].reshape(len(names), -1).mean(1), np.array(apart)  # per mixture
    for label, those in (
        (f"under {NEAR:g}", far < NEAR),
        (f"{NEAR:g} to {FAR:g}", (far >= NEAR) & (far < FAR)),
        (f"{FAR:g} and more", far >= FAR),
    ):
        if those.any():
            print(f"SI-SDR of {those.sum()} mixtures, pitch {label} semitones apart: {gains[those].mean():+.2f}")
            result[f"si_sdr_gain_{label.replace(' ', '_')}_semitones"] = float(gains[those].mean())
    print(f"ceiling, ideal binary mask: SI-SDR {np.mean(ceiling):+.2f}")
    result["ideal_binary_mask_si_sdr_gain"] = float(np.mean(ceiling))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


def alone(separator: Separator, files: list[Path]) -> str:
    """How far apart in level the two loudest outputs are for files with one voice each."""
    apart = []
    for path in track(files, description="voices", transient=True):
        powers = np.sort((separator.separate(*soundfile.read(path)) ** 2).sum(-1))
        apart.append(10 * np.log10(powers[-1] / powers[-2]))
    return (
        f"{len(files)} voices, each alone. Outputs apart by {np.median(apart):.1f} dB in the median, "
        f"{np.quantile(apart, 0.1):.1f} dB in the worst tenth; {np.greater_equal(apart, 20).mean():.0%} by at least 20"
    )


class Scene:
    """What happens to voices on their way: rooms and noises, if any."""

    def __init__(self, rooms: Path | None, noise: Path | None, snr_db: float, rate: int = 16_000) -> None:
        rows = [row for row in read_index(rooms) if row.get("split") == "valid"] if rooms else []
        responses = [audio for _, audio in read_tar_audio(rooms.parent, rows, rate)] if rooms else []
        self.rooms = [make_room("", response, rate) for response in responses]
        noisy = sorted((noise / "noisy").iterdir()) if noise else []
        self.noises = [soundfile.read(path)[0] - soundfile.read(noise / "clean" / path.name)[0] for path in noisy]
        self.snr_db = snr_db

    def play(self, sources: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Voices (k, n) to the voices at the microphone (k, n) and their mixture (n,), for mixture `number`."""
        k, n = sources.shape
        if self.rooms:
            wet = [self.rooms[(k * number + i) % len(self.rooms)].apply(voice)[0] for i, voice in enumerate(sources)]
            sources = np.stack([w * rms(voice) / rms(w) for w, voice in zip(wet, sources, strict=True)])
        mixture = sources.sum(0)
        if self.noises:
            noise = np.resize(self.noises[number % len(self.noises)], n)
            mixture = mixture + noise * rms(mixture) / rms(noise) * 10 ** (-self.snr_db / 20)
        return sources, mixture


def ideal_binary_mask(sources: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    """Voices (k, n) from the mixture (n,) and the knowledge which voice is the loudest in each bin."""
    window = {"window": "hann", "nperseg": 512, "noverlap": 256}
    powers = np.abs(signal.stft(sources, **window)[2]) ** 2  # (k, f, t)
    masks = powers == powers.max(0)
    return signal.istft(masks * signal.stft(mixture, **window)[2], **window)[1][:, : len(mixture)]


def rms(x: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.square(x).mean()))


def semitones(pair: np.ndarray, rate: int) -> float:
    """Pitch distance of two voices in semitones; NaN if one has no pitch."""
    first, second = (median_pitch(voice, rate) for voice in pair)
    return np.nan if first is None or second is None else float(abs(12 * np.log2(first / second)))


if __name__ == "__main__":
    main()
