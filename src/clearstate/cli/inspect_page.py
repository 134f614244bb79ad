"""The page of `clearstate inspect --html`: one file with all pictures, for light and dark screens."""

import base64
import html
import struct
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clearstate import __version__
from clearstate.audio.inspection.loudness import to_lufs
from clearstate.audio.streams import STDIO
from clearstate.cli.inspect_text import advice, rows
from clearstate.cli.terminal import clock

if TYPE_CHECKING:
    from clearstate.tasks.inspect import Inspection

Floats = NDArray[np.floating]

RANGE_DB = 80.0  # of the spectrogram, from the darkest colour to the brightest
COLOURS = np.array([  # dark to bright, evenly spaced
    (0, 0, 4), (28, 16, 68), (79, 18, 123), (129, 37, 129), (181, 54, 122), (229, 80, 100), (251, 135, 97),
    (254, 194, 135), (252, 253, 191),
])  # fmt: skip
WIDTH, HEIGHT = 800, 180  # of the drawings

STYLE = """
:root { color-scheme: light dark; --ground: #fbfbf9; --card: #fff; --ink: #1c1c1a; --soft: #6a6a64; --line: #e3e3dc;
  --good: #1a7f4b; --bad: #b3541e; --accent: #2563a8; }
@media (prefers-color-scheme: dark) { :root { --ground: #16171a; --card: #1f2125; --ink: #e9e9e4; --soft: #9b9c98;
  --line: #34363b; --good: #5fcf98; --bad: #f0a06a; --accent: #7fb4ee; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.4rem; margin: 0 0 1.5rem; } h2 { font-size: 1.1rem; margin: 0; overflow-wrap: anywhere; }
h1 small, figcaption, dt, footer { color: var(--soft); font-weight: normal; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.2rem 1.4rem;
  margin: 0 0 1.5rem; }
.verdict { margin: .2rem 0 .8rem; font-weight: 600; color: var(--bad); } .fine .verdict { color: var(--good); }
code { display: block; width: fit-content; max-width: 100%; overflow-x: auto; padding: .3rem .7rem; margin: .3rem 0;
  border: 1px solid var(--line); border-radius: 6px; font: 13px/1.6 ui-monospace, monospace; color: var(--accent); }
dl { display: grid; grid-template-columns: 7rem 1fr; gap: .15rem .8rem; margin: 1rem 0; } dd { margin: 0; }
figure { margin: 1rem 0 0; } figcaption { font-size: .85rem; margin-bottom: .25rem; }
img { display: block; width: 100%; height: 200px; border-radius: 6px; image-rendering: auto; }
svg { display: block; width: 100%; height: auto; } svg path { fill: none; stroke: var(--accent); stroke-width: 1.4;
  vector-effect: non-scaling-stroke; } svg line { stroke: var(--line); vector-effect: non-scaling-stroke; }
svg text { fill: var(--soft); font: 20px system-ui, sans-serif; } svg .mark { stroke: var(--bad);
  stroke-dasharray: 4 3; }
.axis { display: flex; justify-content: space-between; color: var(--soft); font-size: .75rem; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 1.2rem; }
@media (max-width: 40rem) { .two { grid-template-columns: 1fr; } dl { grid-template-columns: 1fr; } }
table { border-collapse: collapse; width: 100%; margin-bottom: 1.5rem; }
td, th { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
a { color: var(--accent); }
"""


def page(found: Sequence["Inspection"]) -> str:
    """The whole page."""
    wrong = sum(bool(one.findings) for one in found)
    title = f"{len(found)} recording{'s' * (len(found) != 1)}"
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>clearstate inspect: {title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body><main>'
        f"<h1>{title} <small>{wrong} with a problem</small></h1>"
    ]
    if len(found) > 1:
        parts.append("<table><tr><th>file</th><th>length</th><th>what is wrong</th></tr>")
        for number, one in enumerate(found):
            parts.append(
                f'<tr><td><a href="#f{number}">{name(one)}</a></td><td>{clock(one.seconds)}</td>'
                f"<td>{html.escape(one.verdict)}</td></tr>"
            )
        parts.append("</table>")
    parts += [section(one, number) for number, one in enumerate(found)]
    return "".join(parts) + f"<footer>clearstate {__version__}</footer></main></body></html>\n"


def name(one: "Inspection") -> str:
    """The file name, safe in HTML."""
    text = "stdin" if one.input == STDIO else one.input
    return html.escape(text.encode("utf-8", "replace").decode())


def section(one: "Inspection", number: int) -> str:
    """One recording."""
    facts = "".join(f"<dt>{heading}</dt><dd>{html.escape(text)}</dd>" for heading, text in rows(one))
    commands = "".join(f"<code>{html.escape(line.encode('utf-8', 'replace').decode())}</code>" for line in advice(one))
    return (
        f'<section id="f{number}" class="{"" if one.findings else "fine"}"><h2>{name(one)}</h2>'
        f'<p class="verdict">{html.escape(one.verdict)}</p>{commands}<dl>{facts}</dl>{pictures(one)}</section>'
    )


def pictures(one: "Inspection") -> str:
    """Spectrogram, loudness over time and long-term spectrum."""
    measured = one.measurement
    if measured is None or one.peak_dbfs is None:
        return ""
    top, end = one.sample_rate / 2000, clock(one.seconds)
    times = '<div class="axis"><span>0</span><span>' + end + "</span></div>"
    return (
        f'<figure><figcaption>Spectrogram, 0 to {top:g} kHz</figcaption><img alt="spectrogram" '
        f'src="data:image/png;base64,{base64.b64encode(png(measured.spectrogram)).decode()}">{times}</figure>'
        f'<div class="two"><figure><figcaption>Loudness over time (LUFS)</figcaption>{loudness(measured.loudness)}'
        f"{times}</figure><figure><figcaption>Mean spectrum (dB), and where the recording ends</figcaption>"
        f'{spectrum(measured.spectrum, one)}<div class="axis"><span>0</span><span>{top:g} kHz</span></div></figure>'
        "</div>"
    )


def png(level: Floats) -> bytes:
    """A picture of levels in dB (rows, columns), the first row at the bottom."""
    brightest = float(np.percentile(level, 99.9))
    share = np.clip((level[::-1] - brightest + RANGE_DB) / RANGE_DB, 0, 1) * (len(COLOURS) - 1)
    known = np.arange(len(COLOURS))
    pixels = np.stack([np.interp(share, known, channel) for channel in COLOURS.T], axis=2).astype(np.uint8)
    height, width, _ = pixels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)  # no filter

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    data = zlib.compress(lines.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def loudness(power: Floats) -> str:
    """The loudness of windows of 400 ms."""
    level = np.maximum(to_lufs(thinned(power)), -70.0)
    return drawing(level, -70.0, max(0.0, float(level.max())))


def spectrum(power: Floats, one: "Inspection") -> str:
    """The mean spectrum, with a line at the bandwidth."""
    level = 10 * np.log10(thinned(power) + 1e-16)
    high = float(level.max())
    mark = one.bandwidth_hz / (one.sample_rate / 2) if one.bandwidth_hz < one.sample_rate / 2 else None
    return drawing(np.maximum(level, high - 100), high - 100, high, mark)


def thinned(values: Floats) -> Floats:
    """At most WIDTH means of neighbours."""
    together = -(-len(values) // WIDTH)
    whole = len(values) // together * together
    means = values[:whole].reshape(-1, together).mean(1)
    return means if whole == len(values) else np.append(means, values[whole:].mean())


def drawing(level: Floats, low: float, high: float, mark: float | None = None) -> str:
    """A curve (n,) in SVG with lines every 20 dB."""
    x = np.linspace(0, WIDTH, max(2, len(level)))
    y = HEIGHT * (high - (level if len(level) > 1 else np.repeat(level, 2))) / max(1e-9, high - low)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    lines = "".join(
        f'<line x1="0" x2="{WIDTH}" y1="{at:.1f}" y2="{at:.1f}"/><text x="4" y="{at - 4:.1f}">{db:.0f}</text>'
        for db in np.arange(np.ceil(low / 20 + 0.1) * 20, high, 20)
        for at in [HEIGHT * (high - db) / (high - low)]
    )
    marked = (
        f'<line class="mark" x1="{mark * WIDTH:.1f}" x2="{mark * WIDTH:.1f}" y1="0" y2="{HEIGHT}"/>' if mark else ""
    )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{lines}{marked}<path d="M{points}"/></svg>'
