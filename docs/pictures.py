"""Draw the pictures of the documentation into docs/images: `python docs/pictures.py`.

Plots are drawn from docs/results/*.json, which the benchmarks write with --json; the drawing of the rooms from the
import rules in pyproject.toml. Each picture follows the light or dark setting of the browser.
"""

import hashlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGES, RESULTS = ROOT / "docs/images", ROOT / "docs/results"
COLOURS = {  # name: (light, dark)
    "paper": ("#ffffff", "#1e2129"),
    "ink": ("#1f2430", "#e6e8ee"),
    "soft": ("#5b6472", "#a9b1c0"),
    "grid": ("#d9dde5", "#3a404d"),
    "ours": ("#2f6fd0", "#7fb0ff"),
    "theirs": ("#b5590b", "#f0a45c"),
    "blue": ("#e3edfb", "#24354f"),
    "green": ("#e2f4e7", "#1f4030"),
    "sand": ("#fdf0d8", "#4a3a1c"),
}
LIGHT, DARK = (";".join(f"--{name}:{both[i]}" for name, both in COLOURS.items()) for i in range(2))
STYLE = f":root{{{LIGHT}}}@media (prefers-color-scheme: dark){{:root{{{DARK}}}}}"
NAMES = {  # of systems in benchmarks/peers.py
    "live:torch": "live, compiled",
    "live:onnx": "live, ONNX Runtime",
    "gtcrn": "GTCRN",
    "dtln": "DTLN",
    "rnnoise": "RNNoise",
    "deepfilternet3": "DeepFilterNet3",
}


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    for name, text in {
        "layers.svg": layers(),
        "signal-path.svg": signal_path(),
        "latency.svg": latency(),
        "quality-cost.svg": quality_against_cost(),
        "hops.svg": hops(),
    }.items():
        (IMAGES / name).write_text(text, encoding="utf-8")
    before_and_after()


# -- drawings ---------------------------------------------------------------------------------------------------------


def svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """A drawing with its title and colours."""
    view = f'viewBox="0 0 {width} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {view} font-family="sans-serif" font-size="15">'
    tip = (
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="5" refY="3" orient="auto">'
        '<path d="M0,0 L6,3 L0,6 z" fill="var(--soft)"/></marker></defs>'
    )
    paper = f'<rect width="{width}" height="{height}" fill="var(--paper)"/>'
    return "\n".join([head, f"<title>{title}</title><style>{STYLE}</style>{tip}{paper}", *parts, "</svg>\n"])


def box(x: float, y: float, width: float, height: float, lines: Sequence[str], fill: str = "blue") -> str:
    """A box with a name and, below it, smaller lines."""
    middle, first = x + width / 2, y + height / 2 + 5 - 9 * (len(lines) - 1)
    text = "".join(
        f'<text x="{middle:g}" y="{first + 18 * i:g}" text-anchor="middle" fill="var(--{"soft" if i else "ink"})"'
        f"{' font-size=' + chr(34) + '12' + chr(34) if i else ''}>{line}</text>"
        for i, line in enumerate(lines)
    )
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7" fill="var(--{fill})" '
        f'stroke="var(--soft)" stroke-width="1"/>{text}'
    )


def arrow(*points: tuple[float, float]) -> str:
    path = " L".join(f"{x:g},{y:g}" for x, y in points)
    return f'<path d="M{path}" fill="none" stroke="var(--soft)" stroke-width="1.5" marker-end="url(#tip)"/>'


def label(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="12" text-anchor="{anchor}" fill="var(--soft)">{text}</text>'


def rooms() -> list[list[str]]:
    """The layers of the package, top first, from the import rules in pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^layers = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert listed, "pyproject.toml lists no layers"
    return [layer.split(" | ") for layer in re.findall(r'"([^"]+)"', listed[1])]


def layers() -> str:
    """The rooms of the package: each may import those below it."""
    parts, height, width = [], 44, 720
    for row, names in enumerate(rooms()):
        y, each = 16 + row * (height + 12), (width - 60 - 10 * (len(names) - 1)) / len(names)
        fill = "green" if row < 3 else "blue" if row < 6 else "sand"
        parts += [box(50 + i * (each + 10), y, each, height, [name], fill) for i, name in enumerate(names)]
    bottom = 16 + len(rooms()) * (height + 12)
    parts.append(arrow((24, 20), (24, bottom - 14)))
    parts.append(
        f'<text transform="translate(18 {bottom / 2:g}) rotate(-90)" text-anchor="middle" font-size="12" '
        'fill="var(--soft)">imports go down</text>'
    )
    return svg(width, bottom + 4, "The rooms of the package; imports go down only", parts)


def signal_path() -> str:
    """What `tasks/chain.py` does with a signal."""
    parts = [
        box(20, 60, 110, 60, ["input", "any rate"], "sand"),
        box(180, 60, 130, 60, ["resample", "to 16 kHz"]),
        box(360, 60, 130, 60, ["model", "per channel"], "green"),
        box(540, 60, 150, 60, ["one gain", "for all channels"]),
        box(740, 60, 130, 60, ["resample", "back"]),
        box(360, 170, 130, 50, ["wait", "for the model"]),
        box(740, 170, 130, 50, ["add", "the correction"], "green"),
        box(900, 170, 90, 50, ["output"], "sand"),
        arrow((130, 90), (176, 90)),
        arrow((310, 90), (356, 90)),
        arrow((490, 90), (536, 90)),
        arrow((690, 90), (736, 90)),
        arrow((75, 120), (75, 195), (356, 195)),
        arrow((490, 195), (736, 195)),
        arrow((805, 120), (805, 166)),
        arrow((870, 195), (896, 195)),
        label(20, 32, "The correction (enhanced minus noisy) is added to the original. Above 8 kHz, its gain is used."),
        label(500, 186, "original samples"),
        label(815, 150, "correction"),
    ]  # fmt: skip
    return svg(1010, 240, "Signal path: the correction of a 16 kHz model is added to the original signal", parts)


def latency() -> str:
    """Latency budget of `Stream` at several rates."""
    import clearstate

    parts, left, scale = (
        [label(20, 26, "Latency of clearstate.Stream in milliseconds, before sound devices")],
        140,
        11.0,
    )
    for row, (rate, channels) in enumerate(((16_000, 1), (48_000, 1), (48_000, 2), (8_000, 1))):
        whole = 1000 * clearstate.Stream("live", rate, channels, backend="onnx").latency_seconds
        window, hop, linked = 16.0, 1000 * 255 / 16_000, 16.0 if channels > 1 else 0.0
        resampling = whole - window - hop - linked
        shares = (("window", window, "blue"), ("hop", hop, "green"), ("resampling", resampling, "sand"))
        y, x = 46 + 52 * row, float(left)
        name = f"{rate // 1000} kHz{', stereo' if channels > 1 else ''}"
        parts.append(f'<text x="{left - 10}" y="{y + 25}" text-anchor="end" fill="var(--ink)">{name}</text>')
        for part, ms, fill in (*shares, ("one gain", linked, "blue")):
            if ms > 0.1:
                parts.append(box(x, y, ms * scale, 38, [f"{part} {ms:.1f}" if ms > 8 else f"{ms:.1f}"], fill))
                x += ms * scale
        parts.append(f'<text x="{x + 10:g}" y="{y + 25}" fill="var(--ink)">{whole:.1f} ms</text>')
    about = "window: half of the model's 32 ms;  hop: until 16 ms are complete;  resampling: to 16 kHz and back"
    parts.append(label(left, 268, about))
    return svg(860, 284, "Latency budget of a stream at 16, 48 and 8 kHz", parts)


# -- plots ------------------------------------------------------------------------------------------------------------


def digest(name: str) -> str:
    """Of a file of results, written into its plot; a test finds out when the plot is older."""
    return hashlib.sha256((RESULTS / name).read_bytes()).hexdigest()[:16]


def sentinel(name: str) -> str:
    """A colour that stands for one of COLOURS while matplotlib draws."""
    return f"#0102{list(COLOURS).index(name) + 16:02x}"


def plotted(figure, source: str, title: str) -> str:
    """A figure as SVG with the colours of both settings, and the digest of its data."""
    import matplotlib

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "clearstate"})
    memory = io.StringIO()
    figure.savefig(memory, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    text = memory.getvalue()
    for name in COLOURS:
        text = text.replace(sentinel(name), f"var(--{name})")
    text = re.sub(r"<\?xml.*?<svg", "<svg", text, flags=re.DOTALL)
    text = re.sub(r"(<svg[^>]*>)", rf"\1\n <style>{STYLE}</style><!-- {source} {digest(source)} -->", text, count=1)
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)


def axes(width: float, height: float):
    """Empty axes in the colours of the documentation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor=sentinel("paper"))
    ax = figure.add_subplot(facecolor=sentinel("paper"))
    ax.tick_params(colors=sentinel("soft"), which="both")
    ax.grid(color=sentinel("grid"), linewidth=0.8)
    ax.set_axisbelow(True)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(sentinel("grid"))
    return figure, ax


def quality_against_cost() -> str:
    """PESQ against the time of a hop, from the JSON of benchmarks/peers.py."""
    found = json.loads((RESULTS / "peers.json").read_text(encoding="utf-8"))
    pesq = {name: means[found["columns"].index("PESQ")] for name, means in found["means"].items()}
    figure, ax = axes(7.2, 4.0)
    for name, share in found["hop_p99"].items():
        ours = name.startswith("live")
        ax.plot(1 / share, pesq[name], "o" if ours else "s", color=sentinel("ours" if ours else "theirs"), markersize=9)
        side = {"ha": "right", "xytext": (-9, -4)} if name == "dtln" else {"xytext": (9, -4)}  # GTCRN is on its right
        point = (1 / share, pesq[name])
        ax.annotate(NAMES.get(name, name), point, textcoords="offset points", color=sentinel("ink"), **side)
    ax.axhline(pesq["noisy"], color=sentinel("soft"), linestyle=":")
    ax.annotate(
        "noisy input", (45, pesq["noisy"]), (0, 5), textcoords="offset points", ha="right", color=sentinel("soft")
    )
    ax.set_xscale("log")
    ax.set_xlim(5, 62)
    ax.set_xticks([5, 10, 20, 40], ["5x", "10x", "20x", "40x"])
    ax.minorticks_off()
    ax.set_xlabel("times faster than real time, 99th percentile of a hop (faster to the right)", color=sentinel("soft"))
    ax.set_ylabel("PESQ on the validation pairs", color=sentinel("soft"))
    ax.set_title(f"Quality against cost ({found['machine']})", color=sentinel("ink"), fontsize=11)
    return plotted(figure, "peers.json", "Quality against cost")


def hops() -> str:
    """Time of a hop, from the JSON of benchmarks/streaming.py."""
    found = json.loads((RESULTS / "streaming.json").read_text(encoding="utf-8"))
    rows = [row for row in found["rows"] if "p99" in row and "reference" not in row["case"]][::-1]
    figure, ax = axes(7.2, 0.5 + 0.45 * len(rows))
    for y, row in enumerate(rows):
        median, p99 = 1000 * row["p50"], 1000 * row["p99"]
        ax.barh(y, median, color=sentinel("ours"), height=0.55)
        ax.plot([median, p99], [y, y], color=sentinel("soft"), linewidth=2)
        ax.plot(p99, y, "|", color=sentinel("ink"), markersize=12, markeredgewidth=2)
        ax.annotate(
            f"1/{row['hop'] / row['p99']:.0f}", (p99, y), (7, -4), textcoords="offset points", color=sentinel("ink")
        )
    ax.set_yticks(range(len(rows)), [row["case"] for row in rows], color=sentinel("ink"))
    ax.grid(visible=False, axis="y")
    ax.set_xlim(0, 1.15 * max(1000 * row["p99"] for row in rows))
    ax.set_xlabel(
        "ms for a hop of 16 ms: median, and 99th percentile with its share of the hop", color=sentinel("soft")
    )
    ax.set_title(found["machine"], color=sentinel("ink"), fontsize=11)
    return plotted(figure, "streaming.json", "Processing time of one hop")


def before_and_after() -> None:
    """The example of the demo as spectrograms, in 64 colours."""
    import tempfile

    from PIL import Image

    import clearstate
    from clearstate.audio import pictures

    noisy = ROOT / "examples/clips/helicopter_0db.noisy.flac"
    with tempfile.TemporaryDirectory() as folder:
        clean, picture = Path(folder) / "helicopter_0db.clear.wav", Path(folder) / "picture.png"
        clearstate.enhance(noisy, clean)
        pictures.before_and_after(noisy, clean, picture)
        with Image.open(picture) as drawn:
            small = drawn.convert("RGB").resize(
                (880, round(880 * drawn.height / drawn.width)), Image.Resampling.LANCZOS
            )
            small.quantize(64, dither=Image.Dither.NONE).save(IMAGES / "before_after.png", optimize=True)


if __name__ == "__main__":
    main()
