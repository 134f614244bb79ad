"""What is wrong with a recording, and which command helps. `restore` chooses its steps from the same findings."""

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clearstate.tasks.inspect import Inspection

STEPS = ("clipping", "offset", "channel", "hum", "noise", "band")  # what `restore` does, in this order

OFFSET = 0.003  # of full scale
CUT_SHARE = 0.5  # of the clipped samples: asymmetric speech gets such an offset by clipping, and loses it by its repair
CLIPPED = 1e-4  # share of the samples
FAINT_HUM_DB = 40.0  # below the speech
FAINT_HUM_DBFS = -72.0
NOISY_DB = 18.0  # signal-to-noise ratio
NOTHING_BUT_NOISE_DB = -8.0  # signal-to-noise ratio; with no speech found, there is nothing to restore
MUSICAL = 0.5  # share of the time
NARROW_HZ = 7_000.0  # bandwidth
LEAST_RATE, MOST_RATE, LEAST_BAND_HZ = 4_000, 48_000, 2_000.0  # of recordings that `extend` accepts
QUIET_LUFS = -40.0
REVERBERANT_SECONDS = 0.8


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    kind: str  # a step of STEPS, or another word
    problem: str  # a few words
    command: str | None  # what helps; None if no command does


def find(found: "Inspection") -> list[Finding]:
    """List what is wrong, the worst first."""
    if found.peak_dbfs is None:
        return [Finding("silent", "digital silence", None)]
    file = shlex.quote(found.input)
    restore = f"clearstate restore {file}"
    listed: list[Finding] = []

    def add(kind: str, problem: str, command: str | None = None) -> None:
        listed.append(Finding(kind, problem, command))

    if found.broken:
        add("broken", "the file is damaged or cut off")
    if found.stereo == "dead channel":
        add("channel", f"channel {found.dead_channels[0]} is dead", restore)
    elif found.dead_channels:
        names = ", ".join(map(str, found.dead_channels))
        add("silent channels", f"no signal in channel {names} of {found.channels}")
    if found.stereo == "inverted":
        add("inverted", "channel 2 is channel 1 with inverted phase: both cancel in mono")
    worst = max(map(abs, found.dc_offset))
    if worst >= max(OFFSET, CUT_SHARE * found.clipped_share):
        add("offset", f"constant offset of {100 * worst:.2g} % of full scale", restore)
    if found.clipped_share >= CLIPPED:
        add(
            "clipping",
            f"clipped: {percent(found.clipped_share)} of the samples at {found.clipping_dbfs:.1f} dBFS",
            restore,
        )
    if audible_hum(found):
        add("hum", f"hum at {found.hum_hz} Hz, {found.hum_dbfs:.0f} dBFS", restore)
    if noisy(found):
        add("noise", f"noise: {round(found.snr_db or 0)} dB signal-to-noise ratio", f"clearstate enhance {file}")
    if narrow(found):
        add("band", f"narrow band: nothing above {found.bandwidth_hz / 1000:.2g} kHz", f"clearstate extend {file}")
    if found.speakers == 2:
        add("speakers", "two or more people speak at the same time", f"clearstate separate {file}")
    if (found.reverberation_seconds or 0) >= REVERBERANT_SECONDS:
        add("reverberation", f"reverberant: about {found.reverberation_seconds:.1f} s")
    if found.music_share > MUSICAL:
        add("music", "mostly music; the models are made for speech")
    elif found.speech_share == 0 and not listed:
        add("no speech", "no speech found")
    if found.loudness_lufs is not None and found.loudness_lufs < QUIET_LUFS:
        add("quiet", f"very quiet: {found.loudness_lufs:.0f} LUFS")
    return listed


def audible_hum(found: "Inspection") -> bool:
    """Whether the hum is loud enough to matter."""
    if found.hum_dbfs is None or found.loudness_lufs is None:
        return False
    return found.hum_dbfs > max(FAINT_HUM_DBFS, found.loudness_lufs - FAINT_HUM_DB)


def noisy(found: "Inspection") -> bool:
    """Whether enhancement helps: there is speech, and noise that can be heard."""
    if found.snr_db is None or found.snr_db >= NOISY_DB or found.music_share > MUSICAL:
        return False
    return found.speech_share > 0 or found.snr_db > NOTHING_BUT_NOISE_DB


def narrow(found: "Inspection") -> bool:
    """Whether extension helps: speech without its high frequencies, at a rate that the models accept."""
    within = LEAST_RATE <= found.sample_rate <= MOST_RATE and found.bandwidth_hz >= LEAST_BAND_HZ
    return within and found.bandwidth_hz < NARROW_HZ and found.speech_share > 0


def percent(share: float) -> str:
    """A share in words.

    >>> percent(0.996), percent(0.0012)
    ('100 %', '0.12 %')
    """
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
