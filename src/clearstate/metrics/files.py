"""Pair enhanced files with clean files by name, and load pairs at one rate and length."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from clearstate.audio.formats import READABLE, examples
from clearstate.audio.mono import Mix, find_mix
from clearstate.audio.paths import walk, why_no_file
from clearstate.audio.rates import whole_rate

Entry = TypeVar("Entry")

_WORDS = (
    "clear clearstate clean enhanced enh noisy noise denoised dn processed proc restored est estimate estimated pred "
    "output out mix mixture reference ref target degraded residual"
)
_WORD = "|".join(_WORDS.split())
_SUFFIX, _PREFIX = re.compile(rf"[-_. ]+({_WORD})$"), re.compile(rf"^({_WORD})[-_. ]+")
_SPEAKER_PART = re.compile(r"/s\d$")
_FILE_ID = re.compile(r"fileid_\d+")


@dataclass(frozen=True)
class Pair:
    """One pair to score. `name` is the clean file's path under its folder, without extension."""

    name: str
    clean: Path
    enhanced: Path
    noisy: Path | None = None


@dataclass
class Matches:
    """Pairs sorted by name, and unmatched and unusable files with the reason."""

    pairs: list[Pair] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    unusable: list[tuple[Path, str]] = field(default_factory=list)


def match(clean: Path, enhanced: Path, noisy: Path | None = None) -> Matches:
    """Pair the files of two or three folders by name; three single files are a pair whatever their names.

    Names agree if they are equal but for the extension; failing that, but for how accents are coded (a Mac takes é
    apart); failing that, but for what tools add (`x.clear.wav`, `x_enhanced.flac`, `noisy_x.wav`); failing that, if
    they carry the same `fileid_N`, as the DNS-Challenge names its files. A file of either side is used once; one that
    could go to several is left alone and listed.

    Raises:
        ValueError: if a folder does not exist or holds no audio.
    """
    if clean.is_file() and enhanced.is_file():
        return Matches([Pair(clean.stem, clean, enhanced, noisy)])
    result = Matches()
    references = audio_under(clean, "clean", result)
    found, alone = _pair_up(references, clean, audio_under(enhanced, "enhanced", result), enhanced)
    result.unmatched += alone
    inputs: dict[Path, Path] = {}
    if noisy:
        inputs, lonely = _pair_up(references, clean, audio_under(noisy, "noisy", result), noisy)
        result.unmatched += lonely
    for reference in references:
        if reference in found and (not noisy or reference in inputs):
            name = reference.relative_to(clean).with_suffix("").as_posix()
            result.pairs.append(Pair(name, reference, found[reference], inputs.get(reference)))
    return result


def audio_under(folder: Path, what: str, result: Matches) -> list[Path]:
    """The audio files of one side; unusable entries are added to `result`."""
    if not folder.exists():
        raise ValueError(f"--{what} {folder} does not exist (looked in {folder.absolute().parent})")
    if folder.is_file():
        raise ValueError(f"--{what} {folder} is a file: give folders for both, or files for both")
    files, unusable = walk(folder, READABLE)
    result.unusable += unusable
    if not files and not unusable:
        raise ValueError(f"--{what} {folder} contains no audio: looked for {examples(READABLE)} and below it")
    return files


def _pair_up(
    left: list[Path], left_root: Path, right: list[Path], right_root: Path
) -> tuple[dict[Path, Path], list[str]]:
    """Pairs left -> right, and a line for every file without a partner."""
    pairs: dict[Path, Path] = {}
    reasons: dict[Path, str] = {}
    for key in (_place, _composed_place, _bare_place, _bare_name, _file_id):
        groups: dict[str, tuple[list[Path], list[Path]]] = defaultdict(lambda: ([], []))
        used = set(pairs.values())
        for side, (files, root, taken) in enumerate(((left, left_root, pairs.keys()), (right, right_root, used))):
            for file in files:
                if file not in taken and (word := key(file.relative_to(root))):
                    groups[word][side].append(file)
        for ours, theirs in groups.values():
            if len(ours) == len(theirs) == 1:
                pairs[ours[0]] = theirs[0]
            elif ours and theirs:
                reasons |= {f: f"could go with {len(theirs)} files of {right_root}" for f in ours}
                reasons |= {f: f"could go with {len(ours)} files of {left_root}" for f in theirs}
    used = set(pairs.values())
    lines = [f"{f}: {reasons.get(f, f'no file of that name in {right_root}')}" for f in left if f not in pairs]
    lines += [f"{f}: {reasons.get(f, f'no file of that name in {left_root}')}" for f in right if f not in used]
    return pairs, lines


def _place(path: Path) -> str:
    return path.with_suffix("").as_posix()


def _composed_place(path: Path) -> str:
    return unicodedata.normalize("NFC", _place(path))


def _bare_place(path: Path) -> str:
    return unicodedata.normalize("NFC", (path.parent / bare(path.stem)).as_posix())


def _bare_name(path: Path) -> str:
    return bare(path.stem)


def _file_id(path: Path) -> str:
    found = _FILE_ID.search(path.stem.lower())
    return found.group() if found else ""


def bare(stem: str) -> str:
    """A file's stem without what tools add to it, in lower case, accents and their letters in one character.

    >>> bare("p232_001.clear"), bare("noisy_talk_enhanced"), bare("clean")
    ('p232_001', 'talk', 'clean')
    """
    stem, before = unicodedata.normalize("NFC", stem).lower(), ""
    strip: tuple[Callable[[str], str], ...] = (lambda s: _SUFFIX.sub("", s), lambda s: _PREFIX.sub("", s))
    while stem != before:
        before = stem
        for step in strip:
            stem = step(stem) or stem
    return stem


def for_pairs(entries: Mapping[str, Entry], names: Sequence[str]) -> dict[str, Entry]:
    """Assign entries of a list (transcripts, metadata) to pair names, with the same matching rules as files."""

    def loose(name: str) -> str:
        path = Path(_SPEAKER_PART.sub("", name))  # entries of a mixture apply to each of its speakers
        return bare(path.stem if path.suffix.lower() in READABLE else path.name)

    known = {loose(name): entry for name, entry in entries.items()}
    found = {name: entries[name] if name in entries else known.get(loose(name)) for name in names}
    return {name: entry for name, entry in found.items() if entry is not None}


def read_text(path: Path) -> str:
    """A text file in UTF-8.

    Raises:
        ValueError: naming the file if it is in another coding.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from None


def read_json(path: Path) -> Any:
    """Read a JSON file; a .jsonl file gives the list of its lines.

    Raises:
        ValueError: naming the file and the place where it is no JSON.
    """
    if path.suffix != ".jsonl":
        return _parsed(read_text(path), path, "")
    lines = enumerate(read_text(path).splitlines(), start=1)
    return [_parsed(line, path, f", line {number}") for number, line in lines if line.strip()]


def _parsed(text: str, path: Path, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}{where}: not JSON ({error}); correct the file") from None


@dataclass(frozen=True)
class Loaded:
    """The signals of a pair at one rate and length, (samples,) each, and notes about conversions."""

    clean: npt.NDArray[np.float64]
    enhanced: npt.NDArray[np.float64]
    noisy: npt.NDArray[np.float64] | None
    rate: int  # Hz, the clean file's
    notes: tuple[str, ...]


def load(pair: Pair) -> Loaded:
    """Read a pair: mix to mono, resample to the clean file's rate, and cut to the shortest length.

    Raises:
        ValueError: for a file that cannot be read, is empty, or holds values that are not numbers.
    """
    notes: list[str] = []
    channels, rate = _read(pair.clean)
    mix = find_mix(channels)
    clean = _mixed(channels, mix, "clean", notes)
    signals = [clean]
    for path, what in ((pair.enhanced, "enhanced"), (pair.noisy, "noisy")):
        if path is not None:
            own, own_rate = _read(path)
            x = _mixed(own, mix, what, notes)
            if own_rate != rate:
                notes.append(f"{what} resampled from {own_rate} to {rate} Hz")
                x = resample(x, own_rate, rate)
            if len(x) != len(clean):
                notes.append(
                    f"{what} is {abs(len(x) - len(clean))} samples {'longer' if len(x) > len(clean) else 'shorter'}"
                )
            signals.append(x)
    shortest = min(len(x) for x in signals)
    signals = [x[:shortest] for x in signals]
    return Loaded(signals[0], signals[1], signals[2] if pair.noisy else None, rate, tuple(notes))


def _read(path: Path) -> tuple[npt.NDArray[np.float64], int]:
    """(channels, samples) and the rate."""
    from clearstate.audio.io import read_audio

    if reason := why_no_file(path):
        raise ValueError(f"{path} {reason}")
    return read_audio(path)


def _mixed(x: npt.NDArray[np.float64], mix: Mix, what: str, notes: list[str]) -> npt.NDArray[np.float64]:
    """Mix to mono, with the clean file's mix if the number of channels is equal."""
    if len(x) == 1:
        return x[0]
    own = mix if len(mix.weights) == len(x) else find_mix(x)
    notes.append(f"{what} has {len(x)} channels, mixed down" + (f" ({own.note})" if own.note else ""))
    return own(x)


def resample(x: npt.NDArray[np.float64], rate: int, to: int) -> npt.NDArray[np.float64]:
    """Resample `x` (samples,) with libsoxr at its highest quality."""
    rate, to = whole_rate(rate), whole_rate(to)
    if rate == to:
        return x
    import soxr

    return soxr.resample(x, rate, to, quality="VHQ")
