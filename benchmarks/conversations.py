"""Long conversations of two known voices: does each stay in its own file, and is the timeline right?

    python benchmarks/conversations.py --data FOLDER [--pairs 6] [--minutes 5] [--model separate-fast] [--json FILE]

FOLDER holds clips with labelled speakers, as training does. Two voices speak in turn and sometimes at once, with pauses
of up to half a minute, in noise 25 dB below them. Printed for each pair, and as a mean:

    pitch      distance of the voices in semitones
    own file   share of the sound of each voice alone that is louder in its own file than in the other one. The files
               are told apart once for the whole conversation; chance is half
    after      the same for the first second after a pause of more than 12 s, when the model remembers nothing
    errors     diarisation error rate of the timeline: missed, invented and confused speech as a share of all speech,
               without 0.25 s around each change
"""

import argparse
import json
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import soundfile
from rich.progress import track

from clearstate.data.pitch import median_pitch
from clearstate.data.sources import open_sources
from clearstate.tasks.separate import Separator, load_separator

RATE = 16_000
FRAME = 800  # samples, 50 ms: the timeline's
LEAST_SECONDS = 25.0  # of a voice
NOISE_DB = 25.0  # below the voices
COLLAR = 5  # frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with clips of labelled speakers")
    parser.add_argument("--model", default="separate-fast", help="a name, or a folder with weights")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--minutes", type=float, default=5.0, help="of each conversation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args()
    separator, pool = load_separator(given.model), open_sources({"speech": [given.data], "sample_rate": RATE}).speech
    voices = [name for name, clips in pool.by_voice.items() if pool.samples[clips].sum() > LEAST_SECONDS * RATE]
    rng, rows = np.random.default_rng(given.seed), []
    for _ in track(range(given.pairs), description="conversations", transient=True):
        pair = [utterances(pool, name) for name in rng.choice(voices, 2, replace=False)]
        rows.append(judged(separator, *conversation(rng, pair, round(60 * given.minutes * RATE))))
    print(f"{given.model}, {given.pairs} conversations of {given.minutes:g} min")
    names = ("pitch", "own file", "after", "errors")
    print("".join(f"{name:>10}" for name in names))
    for row in [*rows, np.nanmean(rows, axis=0)]:
        print("".join(f"{value:10.1f}" if i == 0 else f"{100 * value:8.1f} %" for i, value in enumerate(row)))
    if given.json:
        given.json.write_text(json.dumps([dict(zip(names, map(float, row), strict=True)) for row in rows], indent=1))


def utterances(pool, name: str) -> list[np.ndarray]:
    """The clips of a voice without the silence at their ends, equally loud."""
    found = []
    for clip in pool.by_voice[name]:
        x = pool.read(int(clip))
        loud = np.flatnonzero(np.abs(x) > 0.03 * np.abs(x).max())
        x = x[loud[0] : loud[-1] + 1]
        found.append(0.05 * x / np.sqrt(np.mean(x**2)))
    return found


def conversation(rng: np.random.Generator, pair: list[list[np.ndarray]], n: int) -> tuple[np.ndarray, list[int], float]:
    """Voices (2, n), the samples at which somebody speaks after a long pause, and the distance in pitch."""
    voices, at, who, begins = np.zeros((2, n), np.float32), RATE, int(rng.integers(2)), []
    gains = 10 ** (rng.uniform(-3, 3, 2) / 20)
    pitches = [median_pitch(np.concatenate(clips), RATE) or np.nan for clips in pair]
    turns = [0, 0]
    while True:
        clip = pair[who][turns[who] % len(pair[who])]
        turns[who] += 1
        if at + len(clip) > n:
            return voices, begins, float(abs(12 * np.log2(pitches[0] / pitches[1])))
        voices[who, at : at + len(clip)] += gains[who] * clip
        kind = rng.random()
        pause = rng.uniform(-1.5, -0.5) if kind < 0.2 else rng.uniform(13, 30) if kind > 0.8 else rng.uniform(0.2, 2)
        at = max(0, at + len(clip) + round(pause * RATE))
        if pause > 12:
            begins.append(at)
        who = who if rng.random() < 0.3 else 1 - who


def judged(separator: Separator, voices: np.ndarray, begins: list[int], pitch: float) -> tuple[float, ...]:
    """The row of the table for a conversation."""
    spoken = power(voices)
    noise = np.random.default_rng(0).standard_normal(voices.shape[1])
    noise *= np.sqrt(spoken[spoken > 0].mean()) * 10 ** (-NOISE_DB / 20)
    with tempfile.TemporaryDirectory() as folder:
        soundfile.write(f"{folder}/talk.wav", voices.sum(0) + noise, RATE)
        done = separator.separate_file(f"{folder}/talk.wav", folder)
        found = np.stack([soundfile.read(speaker.file)[0] for speaker in done.speakers])
    truth = spoken > 1e-3 * spoken.max(1, keepdims=True)
    alone = [truth[who] & ~truth[1 - who] for who in range(2)]
    louder = power(found).argmax(0)
    order = max(
        ([0, 1], [1, 0]), key=lambda order: sum(spoken[i, alone[i] & (louder == order[i])].sum() for i in (0, 1))
    )
    in_own = sum(spoken[i, alone[i] & (louder == order[i])].sum() for i in (0, 1))
    after = []
    for begin in (b // FRAME for b in begins):
        for i in (0, 1):
            after += list(louder[begin : begin + 20][alone[i][begin : begin + 20]] == order[i])
    timeline = np.zeros_like(truth)
    for i in (0, 1):
        for start, end in done.speakers[order[i]].segments:
            timeline[i, round(start * RATE / FRAME) : round(end * RATE / FRAME)] = True
    total = sum(spoken[i, alone[i]].sum() for i in (0, 1))
    return pitch, in_own / total, float(np.mean(after)) if after else np.nan, error_rate(truth, timeline)


def power(x: np.ndarray) -> np.ndarray:
    """Power in frames: (2, n) -> (2, t)."""
    frames = x.shape[1] // FRAME
    return np.square(x[:, : frames * FRAME]).reshape(2, frames, FRAME).mean(2)


def error_rate(truth: np.ndarray, found: np.ndarray) -> float:
    """Diarisation error rate: max(spoken, found) - right, over what is spoken, without a collar at each change."""
    truth = closed(truth)
    changes = np.flatnonzero(np.diff(truth.astype(int), axis=1).any(0)) + 1
    counts = np.ones(truth.shape[1], bool)
    for change in changes:
        counts[max(0, change - COLLAR) : change + COLLAR] = False
    truth, found = truth[:, counts], found[:, counts]
    wrong = np.maximum(truth.sum(0), found.sum(0)) - (truth & found).sum(0)
    return float(wrong.sum() / max(1, truth.sum()))


def closed(truth: np.ndarray, gap: int = 6) -> np.ndarray:
    """Without pauses below 0.3 s, which end no segment of the timeline either."""
    truth = truth.copy()
    for row in truth:
        spoken = np.flatnonzero(row)
        for a, b in pairwise(spoken):
            if b - a <= gap:
                row[a:b] = True
    return truth


if __name__ == "__main__":
    main()
