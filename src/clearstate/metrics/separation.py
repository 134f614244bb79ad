"""Match the outputs of a separator to the reference speakers, for every mixture.

A separator does not know the order of the speakers, so outputs are matched to references by the order that gives the
highest mean SI-SDR (Yu et al. 2017, arXiv:1607.00325). Everything else is then scored as for enhancement.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from clearstate.metrics.files import Matches, Pair, audio_under, bare, load
from clearstate.metrics.intrusive import si_sdr

SPEAKERS_AT_MOST = 6  # 720 orders
_SPEAKER = re.compile(r"[-_. ](?:s|spk|speaker)(\d)$")


def best_order(references: Sequence[ArrayLike], estimates: Sequence[ArrayLike]) -> tuple[int, ...]:
    """order[i] is the estimate that belongs to reference i, by the highest mean SI-SDR over all orders.

    Args:
        references, estimates: as many of each, signals (samples,). A silent reference takes what is left over.
    Raises:
        ValueError: if their numbers differ or are too many.
    """
    count = len(references)
    if count != len(estimates):
        raise ValueError(f"{count} references and {len(estimates)} estimates: expected equal numbers")
    if count > SPEAKERS_AT_MOST:
        raise ValueError(
            f"{count} speakers are too many: expected at most {SPEAKERS_AT_MOST}, because every order is tried"
        )
    scores = np.array([[si_sdr(r, d) for d in estimates] for r in references])  # (references, estimates)
    scores = np.nan_to_num(scores, nan=0.0)
    orders = itertools.permutations(range(count))
    return max(orders, key=lambda order: sum(scores[i, j] for i, j in enumerate(order)))


def is_separated(folder: Path) -> bool:
    """Whether a folder contains one subfolder per speaker: s1, s2, ..."""
    return (folder / "s1").is_dir() and (folder / "s2").is_dir()


def match_separated(clean: Path, enhanced: Path, mixtures: Path | None = None) -> Matches:
    """Pair outputs with references, mixture by mixture, in the best order.

    References lie in clean/s1, clean/s2, ...; outputs in enhanced/s1, ..., or as NAME.s1.wav, NAME_s2.wav, ... A pair
    is called NAME/s1 after its reference. Mixtures, if given, are matched by name.
    """
    result = Matches()
    references = _by_mixture(clean, audio_under(clean, "clean", result))
    outputs = _by_mixture(enhanced, audio_under(enhanced, "enhanced", result))
    inputs = {bare(file.stem): file for file in audio_under(mixtures, "noisy", result)} if mixtures else {}
    for name, speakers in sorted(references.items()):
        found = outputs.pop(name, {})
        if len(found) != len(speakers) or (mixtures and name not in inputs):
            missing = f"{len(found)} of {len(speakers)} outputs in {enhanced}"
            result.unmatched.append(
                f"{name}: {missing if len(found) != len(speakers) else f'no mixture in {mixtures}'}"
            )
            continue
        keys, files = sorted(speakers), [found[key] for key in sorted(found)]
        try:
            order = _order_of_files([speakers[key] for key in keys], files)
        except (ValueError, OSError):
            order = tuple(range(len(keys)))  # an unreadable file is reported when it is scored
        for key, j in zip(keys, order, strict=True):
            result.pairs.append(Pair(f"{name}/s{key}", speakers[key], files[j], inputs.get(name)))
    result.unmatched += [f"{name}: no references in {clean}" for name in sorted(outputs)]
    return result


def _order_of_files(references: Sequence[Path], estimates: Sequence[Path]) -> tuple[int, ...]:
    loaded = [load(Pair("", r, d)) for r in references for d in estimates]
    shortest = min(len(pair.clean) for pair in loaded)
    count = len(estimates)
    clean = [loaded[i * count].clean[:shortest] for i in range(len(references))]
    return best_order(clean, [loaded[j].enhanced[:shortest] for j in range(count)])


def _by_mixture(folder: Path, files: Sequence[Path]) -> dict[str, dict[int, Path]]:
    """Mixture name -> speaker number -> file."""
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    for file in files:
        inside = re.fullmatch(r"s(\d)", file.parent.name)
        beside = _SPEAKER.search(file.stem)
        if inside and file.parent.parent == folder:
            found[bare(file.stem)][int(inside[1])] = file
        elif beside:
            found[bare(file.stem[: beside.start()])][int(beside[1])] = file
    return found
