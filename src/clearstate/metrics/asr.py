"""Word error rates of a speech recogniser on the enhanced, noisy and clean signals.

Nothing is downloaded: the pocketsphinx wheel includes a US English model, and Whisper needs the path of a model: a
folder for faster-whisper (extra `asr`), or a file for openai-whisper, which you install yourself.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from clearstate.metrics.extras import MissingExtra, need
from clearstate.metrics.files import Loaded, read_json, read_text, resample

RATE = 16_000  # Hz, of both recognisers


class WordErrors(NamedTuple):
    """Error counts of the best alignment."""

    substitutions: int
    deletions: int
    insertions: int
    words: int  # of the reference

    @property
    def rate(self) -> float:
        """(S + D + I) / N in percent; NaN without reference words. It can exceed 100."""
        errors = self.substitutions + self.deletions + self.insertions
        return 100 * errors / self.words if self.words else float("nan")


def words(text: str) -> list[str]:
    """Lower-case words, punctuation dropped, apostrophes inside words kept.

    >>> words("It's 5 o'clock -- said Mr. O'Neil!")
    ["it's", '5', "o'clock", 'said', 'mr', "o'neil"]
    """
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("’", "'"))


def wer(reference: str, hypothesis: str) -> WordErrors:
    """Word errors by edit distance (Levenshtein 1966), all three kinds at cost 1.

    >>> wer("the cat sat on the mat", "the cat sit on mat")
    WordErrors(substitutions=1, deletions=1, insertions=0, words=6)
    """
    r, h = words(reference), words(hypothesis)
    # best[j] = (errors, substitutions, deletions, insertions) of r[:i] against h[:j]
    best = [(j, 0, 0, j) for j in range(len(h) + 1)]
    for i, word in enumerate(r, start=1):
        row = [(i, 0, i, 0)]
        for j, found in enumerate(h, start=1):
            if word == found:
                row.append(best[j - 1])
                continue
            e, s, d, n = best[j - 1]
            substituted = (e + 1, s + 1, d, n)
            e, s, d, n = best[j]
            deleted = (e + 1, s, d + 1, n)
            e, s, d, n = row[j - 1]
            row.append(min(substituted, deleted, (e + 1, s, d, n + 1), key=lambda c: c[0]))
        best = row
    _, substitutions, deletions, insertions = best[-1]
    return WordErrors(substitutions, deletions, insertions, len(r))


def read_transcripts(path: Path) -> dict[str, str]:
    """File name -> text, from JSON (an object), JSON lines (`file` and `text`), or lines `name<tab or space>text`.

    Raises:
        ValueError: naming the line that is none of these.
    """
    if path.suffix == ".json":
        data = read_json(path)
        if not isinstance(data, dict):
            raise ValueError(f"{path} contains a {type(data).__name__}, expected an object of file name: text")
        return {str(name): str(text) for name, text in data.items()}
    result = {}
    if path.suffix == ".jsonl":
        for number, record in enumerate(read_json(path), start=1):
            if not isinstance(record, dict) or not {"file", "text"} <= set(record):
                raise ValueError(f"{path}, object {number}: expected the keys 'file' and 'text', got {record!r:.100}")
            result[str(record["file"])] = str(record["text"])
        return result
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        name, _, text = line.strip().partition("\t" if "\t" in line else " ")
        if not text.strip():
            raise ValueError(f"{path}, line {number}: expected a file name and its words, got {line.strip()!r}")
        result[name] = text.strip()
    return result


def word_errors(loaded: Loaded, transcript: str, recogniser: str) -> tuple[dict[str, float], int]:
    """`wer`, `wer_noisy` and `wer_clean` in percent, and how many words the transcript has."""
    signals = {"wer": loaded.enhanced, "wer_noisy": loaded.noisy, "wer_clean": loaded.clean}
    rates = {
        key: wer(transcript, transcribe(x, loaded.rate, recogniser)).rate for key, x in signals.items() if x is not None
    }
    return rates, len(words(transcript))


def transcribe(signal: np.ndarray, sample_rate: int, recogniser: str) -> str:
    """Transcribe a signal with a recogniser.

    Args:
        signal: (samples,) in [-1, 1].
        recogniser: "pocketsphinx", or "whisper:MODEL" with a folder of faster-whisper or a file of openai-whisper.
    Raises:
        ValueError: for another recogniser.   MissingExtra: when its library is not installed.
    """
    x = resample(np.asarray(signal, dtype=np.float64), sample_rate, RATE)
    check_recogniser(recogniser)
    if recogniser == "pocketsphinx":
        decoder = _pocketsphinx()
        decoder.start_utt()
        decoder.process_raw((np.clip(x, -1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return found.hypstr if found else ""
    return _whisper(Path(recogniser.partition(":")[2]))(x.astype(np.float32))


def check_recogniser(recogniser: str) -> None:
    """Raise an error unless `recogniser` is known and installed and its model exists."""
    name, _, model = recogniser.partition(":")
    if name == "pocketsphinx" and not model:
        need("pocketsphinx", "asr", "--asr pocketsphinx")
    elif name == "whisper":
        if not model or not Path(model).exists():
            what = f"{model} does not exist" if model else "no model named"
            raise ValueError(
                f"--asr whisper: {what}; expected a folder for faster-whisper or a file for openai-whisper, such as "
                "--asr whisper:faster-whisper-base or --asr whisper:base.en.pt"
            )
        _whisper_library(Path(model))
    else:
        raise ValueError(f"no recogniser is called {recogniser!r}: expected pocketsphinx or whisper:MODEL")


@lru_cache(maxsize=1)
def _pocketsphinx() -> Any:
    return need("pocketsphinx", "asr", "--asr pocketsphinx").Decoder(samprate=RATE, loglevel="FATAL")


@lru_cache(maxsize=1)
def _whisper(model: Path) -> Callable[[np.ndarray], str]:
    library = _whisper_library(model)
    if not model.is_dir():
        network = library.load_model(str(model))
        return lambda x: str(network.transcribe(x, language="en", temperature=0.0, fp16=False)["text"])
    try:
        faster = library.WhisperModel(str(model), device="cpu", compute_type="float32", cpu_threads=1)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--asr whisper: {model} is not a model folder of faster-whisper: {error}") from error
    return lambda x: "".join(part.text for part in faster.transcribe(x, language="en", temperature=0.0)[0])


def _whisper_library(model: Path) -> ModuleType:
    """faster-whisper for a folder, openai-whisper for a file."""
    if model.is_dir():
        return need("faster_whisper", "asr", "--asr whisper:FOLDER")
    try:
        return importlib.import_module("whisper")
    except ImportError as error:
        raise MissingExtra(
            "--asr whisper:FILE needs whisper, which is not installed: pip install openai-whisper"
        ) from error
