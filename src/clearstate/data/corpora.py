"""Recognise public corpora by their folder structure: files, speakers and splits.

    found = recognise("/corpora/VCTK-Corpus-0.92")
    print(found.report())            # what was found, what is missing, where to get it
    found.files("speech")            # AudioFile(path, owner, split), ...
    found.pairs("train")             # [(noisy, clean), ...] of paired corpora
    found.mixtures("valid")          # Mixtures(mixture, sources) of separation corpora

A layout is a list of parts. Each part is a folder (a glob below the root) with a role and a split. To support a new
corpus, add a layout. `docs/data.md` explains how to get each corpus.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clearstate.data.folders import AudioFile, audio_files, group_of, search, speaker_of

# VoiceBank's published test speakers, and the two training speakers for validation. Other corpora made from VCTK
# contain them, too.
TEST_SPEAKERS = ("p232", "p257")
VALID_SPEAKERS = ("p226", "p287")

_WSJ0 = {"tr": "train", "cv": "valid", "tt": "test"}  # folders of the splits
_DNS_TEST, _DNS_ROOMS = "datasets/test_set/synthetic", ("no_reverb", "with_reverb")
_LIBRIMIX = {"train-100": "train", "train-360": "train", "dev": "valid", "test": "test"}


@dataclass(frozen=True)
class Part:
    """A folder of a corpus. `role` is speech, noise, rooms, noisy (its clean partner is `clean`) or mixtures."""

    role: str
    folder: str  # a glob below the root
    split: str = ""  # "" = the corpus does not say: hold out by speaker
    clean: str = ""  # of role noisy: the folder of its clean partners
    keep: Callable[[Path], bool] | None = None
    licence: str = ""  # a non-commercial licence; such parts need `SourceSpec.noncommercial`


@dataclass(frozen=True)
class Layout:
    """The folders of a known corpus."""

    name: str
    source: str  # where to get it
    parts: tuple[Part, ...]


def _first_microphone(path: Path) -> bool:
    # p280 and p315 have no second microphone and are usually excluded; mic2 repeats the sentences of mic1.
    return not path.stem.endswith("_mic2") and not path.name.startswith(("p280_", "p315_"))


def _response(path: Path) -> bool:
    return "noise" not in path.stem.lower()  # RIRS_NOISES has isotropic noises among its real responses


_WSJ0_MIXTURES = tuple(
    Part("mixtures", f"{top}wav*k/{cut}/{split}", name)
    for top in ("", "2speakers/", "3speakers/")
    for cut in ("min", "max")
    for split, name in _WSJ0.items()
)

LAYOUTS = (
    Layout(
        "VoiceBank+DEMAND",
        "Edinburgh DataShare 10283/2791 (CC BY 4.0): clean_ and noisy_trainset_28spk_wav.zip (or 56spk), unzipped",
        (
            Part("speech", "clean_trainset_28spk_wav"),
            Part("speech", "clean_trainset_56spk_wav"),
            Part("noisy", "noisy_trainset_28spk_wav", clean="clean_trainset_28spk_wav"),
            Part("noisy", "noisy_trainset_56spk_wav", clean="clean_trainset_56spk_wav"),
            Part("noisy", "noisy_testset_wav", "test", clean="clean_testset_wav"),
        ),
    ),
    Layout(
        "DNS-Challenge",
        "github.com/microsoft/DNS-Challenge: its download scripts (several licences, listed there)",
        (
            Part("speech", "datasets/clean"),
            Part("speech", "datasets_fullband/clean_fullband"),
            Part("noise", "datasets/noise"),
            Part("noise", "datasets_fullband/noise_fullband"),
            Part("rooms", "datasets/impulse_responses", keep=_response),
            Part("rooms", "datasets_fullband/impulse_responses", keep=_response),
            *(Part("noisy", f"{_DNS_TEST}/{room}/noisy", "test", f"{_DNS_TEST}/{room}/clean") for room in _DNS_ROOMS),
        ),
    ),
    Layout(
        "VCTK 0.92",
        "Edinburgh DataShare 10283/3443 (CC BY 4.0): VCTK-Corpus-0.92.zip",
        (Part("speech", "wav48_silence_trimmed", keep=_first_microphone), Part("speech", "wav48")),
    ),
    Layout(
        "LibriSpeech",
        "openslr.org/12 (CC BY 4.0): train-clean-100, train-clean-360, dev-clean",
        (
            Part("speech", "train-clean-*", "train"),
            Part("speech", "train-other-*", "train"),
            Part("speech", "dev-*", "valid"),
            Part("speech", "test-*", "test"),
        ),
    ),
    Layout(
        "LRS2-2Mix",
        "made from the LRS2 corpus, which needs an agreement with the BBC; 16 kHz, with its noise and reverberation",
        tuple(Part("mixtures", f"audio/wav*k/min/{split}", name) for split, name in _WSJ0.items()),
    ),
    Layout(
        "WSJ0-2mix",
        "made from the licensed WSJ0 corpus (LDC93S6A) with the published scripts",
        _WSJ0_MIXTURES,
    ),
    Layout(
        "WHAM!",
        "wham.whisper.ai (CC BY-NC 4.0): wham_noise.zip; its mixtures are made with the scripts there",
        tuple(Part("noise", f"wham_noise/{split}", name, licence="CC BY-NC 4.0") for split, name in _WSJ0.items())
        + _WSJ0_MIXTURES,
    ),
    Layout(
        "LibriMix",
        "github.com/JorisCos/LibriMix (CC BY 4.0 speech, WHAM! noise CC BY-NC 4.0): generated by its script",
        tuple(Part("mixtures", f"wav*k/{cut}/{s}", name) for cut in ("min", "max") for s, name in _LIBRIMIX.items()),
    ),
)


@dataclass(frozen=True)
class Mixture:
    """A published mixture; if `mixture` is None, the sum of its sources."""

    mixture: Path | None
    sources: tuple[Path, ...]


@dataclass(frozen=True)
class Corpus:
    """A layout found on disk: `parts` are the existing (part, folder)."""

    layout: Layout
    root: Path
    parts: tuple[tuple[Part, Path], ...]

    def files(self, role: str) -> list[AudioFile]:
        """The files of a role (speech, noise or rooms) with speaker or group, and split."""
        listed = []
        for part, folder in self.parts:
            if part.role != role:
                continue
            owner = speaker_of if role == "speech" else group_of
            keep = part.keep or (lambda path: True)
            found = (path for path in audio_files(folder) if keep(path))
            listed += [AudioFile(path, owner(path.relative_to(folder)), part.split, part.licence) for path in found]
        return listed

    def pairs(self, split: str, validate_on_test_set: bool = False) -> list[tuple[Path, Path]]:
        """(noisy, clean) files of a split; speakers p226 and p287 of VoiceBank are "valid" and never "train".

        Raises:
            ValueError: for split "test" unless `validate_on_test_set`, or if the corpus has no such pairs.
        """
        refuse_test_set(split == "test", f"split 'test' of {self.layout.name}", validate_on_test_set)
        listed = []
        for part, folder in self.parts:
            if part.role != "noisy":
                continue
            clean = _below(self.root, part.clean)
            if not clean:
                raise ValueError(f"{folder} has no clean partner: {part.clean} is missing in {self.root}")
            for noisy, partner in match(folder, clean[0]):
                belongs = part.split or ("valid" if speaker_of(Path(noisy.name)) in VALID_SPEAKERS else "train")
                if belongs == split and (split == "test" or speaker_of(Path(noisy.name)) not in TEST_SPEAKERS):
                    listed.append((noisy, partner))
        if not listed:
            raise ValueError(f"{self.layout.name} in {self.root} has no {split} pairs\n{self.report()}")
        return listed

    def mixtures(
        self, split: str, kind: str = "", validate_on_test_set: bool = False, noisy: bool = False
    ) -> list[Mixture]:
        """Mixtures and their sources. `kind` is a folder such as "mix_clean"; "" selects the cleanest available.

        Args:
            noisy: "" selects the mixtures with noise, instead.

        Raises:
            ValueError: for split "test" unless `validate_on_test_set`, or if there are none.
        """
        refuse_test_set(split == "test", f"split 'test' of {self.layout.name}", validate_on_test_set)
        listed = []
        for part, folder in self.parts:
            if part.role != "mixtures" or part.split != split:
                continue
            kinds = [kind] if kind else ["mix_both", "mix"] if noisy else ["mix_clean", "mix", "mix_both"]
            mix = next((folder / name for name in kinds if (folder / name).is_dir()), None)
            talkers = sorted(path for path in folder.glob("s[1-9]") if path.is_dir())
            if mix is None or len(talkers) < 2:
                continue
            for path in audio_files(mix):
                sources = tuple(talker / path.name for talker in talkers)
                if all(source.is_file() for source in sources):
                    listed.append(Mixture(path, sources))
        if not listed:
            raise ValueError(f"{self.layout.name} in {self.root} has no {split} mixtures\n{self.report()}")
        return listed

    def report(self) -> str:
        """Found and missing folders, one per line, and the source of the corpus."""
        there = {part for part, _ in self.parts}
        lines = [f"{self.layout.name} in {self.root}"]
        lines += [f"  found    {_short(folder, self.root)} ({_use(part)})" for part, folder in self.parts]
        lines += [f"  missing  {part.folder} ({_use(part)})" for part in self.layout.parts if part not in there]
        return "\n".join([*lines, f"  from     {self.layout.source}"])


def recognise(root: str | Path) -> Corpus | None:
    """Recognise the corpus at `root`: its top folder, or the folder that contains it."""
    root = Path(root)
    around = [root, *sorted(path for path in root.iterdir() if path.is_dir())] if root.is_dir() else []
    best: Corpus | None = None
    for layout in LAYOUTS:
        for base in around:
            parts = tuple((part, folder) for part in layout.parts for folder in _below(base, part.folder))
            if len(parts) > (len(best.parts) if best else 0):
                best = Corpus(layout, base, parts)
    return best


def expected_layouts() -> str:
    """The known layouts, for an error message."""
    return "\n".join(f"  {layout.name}: {layout.parts[0].folder}/...; from {layout.source}" for layout in LAYOUTS)


def match(noisy: Path, clean: Path) -> list[tuple[Path, Path]]:
    """Pairs of two folders by name, or by the `fileid_N` that DNS-Challenge puts at the end of both names.

    Raises:
        ValueError: if some noisy file has no partner.
    """

    def key(path: Path, base: Path) -> str:
        found = re.search(r"fileid_\d+$", path.stem)
        return found.group() if found else path.relative_to(base).with_suffix("").as_posix()

    listed, unusable = search(clean)
    partners = {key(path, clean): path for path in listed}
    lost = {key(path, clean) for path, _ in unusable}
    noisy_files = [path for path in audio_files(noisy) if key(path, noisy) not in lost]
    if lonely := [path.name for path in noisy_files if key(path, noisy) not in partners]:
        raise ValueError(
            f"{len(lonely)} files of {noisy} have no partner in {clean}, the first {lonely[0]!r}: "
            "the names of a pair must match"
        )
    return [(path, partners[key(path, noisy)]) for path in noisy_files]


def is_test_set(folder: str | Path) -> bool:
    """Whether a folder is the test part of a known corpus, by its name or its parents', or by p232 and p257 in it."""
    folder = Path(folder)
    known = re.compile(
        r"(noisy|clean)_testset(_\w+)?|(dev_)?test_?set(_\w+)?|tt|test|test-(clean|other)|p232|p257", re.I
    )
    if any(known.fullmatch(name) for name in folder.absolute().parts[-4:]):
        return True
    return any(path.name.startswith(TEST_SPEAKERS) for path in sorted(folder.glob("*"))[:2000])


def refuse_test_set(is_test: bool, what: str, allowed: bool) -> None:
    """ValueError for training or choosing checkpoints on a test set, unless a flag allows it."""
    if is_test and not allowed:
        raise ValueError(
            f"{what} is a test set: a checkpoint selected on it invalidates every score on it. Hold out training "
            "speakers instead (for VoiceBank p226 and p287: split 'valid'), or pass validate_on_test_set=True"
        )


def _below(base: Path, pattern: str) -> list[Path]:
    """Folders that match, looking through an archive's folder of the same name (x/x/, as unzipping often makes)."""
    found = [path for path in sorted(base.glob(pattern)) if path.is_dir()]
    return [path / path.name if (path / path.name).is_dir() else path for path in found]


def _short(folder: Path, root: Path) -> str:
    return folder.relative_to(root).as_posix()


def _use(part: Part) -> str:
    return f"{part.role}, {part.split}" if part.split else part.role
