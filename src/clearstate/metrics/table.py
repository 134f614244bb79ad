"""The table of scores: key, label, digits, direction and group. A new score needs an entry here."""

from __future__ import annotations

from dataclasses import dataclass

from clearstate.nearest import nearest


@dataclass(frozen=True)
class Score:
    """One column of a result."""

    label: str
    digits: int  # decimals printed
    better: int  # +1 more is better, -1 less is
    unit: str = ""
    group: str = "default"  # group name in --metrics
    needs_noisy: bool = False


SCORES: dict[str, Score] = {
    "pesq_wb": Score("PESQ-WB", 3, +1),
    "pesq_nb": Score("PESQ-NB", 3, +1),
    "stoi": Score("STOI", 3, +1),
    "estoi": Score("ESTOI", 3, +1),
    "si_sdr": Score("SI-SDR", 2, +1, "dB"),
    "si_sdri": Score("SI-SDRi", 2, +1, "dB", needs_noisy=True),
    "sdr": Score("SDR", 2, +1, "dB"),
    "sdri": Score("SDRi", 2, +1, "dB", needs_noisy=True),
    "snr": Score("SNR", 2, +1, "dB"),
    "ssnr": Score("SSNR", 2, +1, "dB"),
    "csig": Score("CSIG", 2, +1),
    "cbak": Score("CBAK", 2, +1),
    "covl": Score("COVL", 2, +1),
    "llr": Score("LLR", 3, -1),
    "wss": Score("WSS", 1, -1),
    "lsd": Score("LSD", 3, -1),
    "lsd_high": Score("LSD-high", 3, -1),
    "lsd_1024": Score("LSD-1024", 3, -1, group="lsd_1024"),
    "csig_divided": Score("CSIG/32768", 2, +1, group="divided"),
    "cbak_divided": Score("CBAK/32768", 2, +1, group="divided"),
    "covl_divided": Score("COVL/32768", 2, +1, group="divided"),
    "dnsmos_sig": Score("DNSMOS SIG", 2, +1, group="dnsmos"),
    "dnsmos_bak": Score("DNSMOS BAK", 2, +1, group="dnsmos"),
    "dnsmos_ovrl": Score("DNSMOS OVRL", 2, +1, group="dnsmos"),
    "dnsmos_p808": Score("DNSMOS P.808", 2, +1, group="dnsmos"),
    "plcmos": Score("PLCMOS", 2, +1, group="plcmos"),
    "distillmos": Score("Distill-MOS", 2, +1, group="distillmos"),
    "nisqa": Score("NISQA", 2, +1, group="nisqa"),
    "utmos": Score("UTMOS", 2, +1, group="utmos"),
    "scoreq": Score("SCOREQ", 2, +1, group="scoreq"),
    "wer": Score("WER", 1, -1, "%", group="asr"),
    "wer_noisy": Score("WER noisy", 1, -1, "%", group="asr", needs_noisy=True),
    "wer_clean": Score("WER clean", 1, -1, "%", group="asr"),
}

# `asr` has its own option, because it needs transcripts.
GROUPS = tuple(dict.fromkeys(score.group for score in SCORES.values() if score.group != "asr"))


def choose(words: list[str], *, noisy: bool) -> list[str]:
    """Keys for a list of keys and group names (`default`, `dnsmos`, ...), in the order of the table.

    Raises:
        ValueError: for an unknown word, with the closest one; or for an improvement score without noisy input.
    """
    wanted = set()
    for word in words:
        if word in GROUPS:
            wanted |= {key for key, score in SCORES.items() if score.group == word and (noisy or not score.needs_noisy)}
        elif word in SCORES and SCORES[word].group != "asr":
            if SCORES[word].needs_noisy and not noisy:
                raise ValueError(f"{word} needs the noisy input: give its folder with --noisy")
            wanted.add(word)
        else:
            known = [*GROUPS, *(key for key, score in SCORES.items() if score.group != "asr")]
            raise ValueError(f"no score is called {word!r}: {nearest(word, known)}")
    return [key for key in SCORES if key in wanted]
