"""The page: its tabs, and what happens when somebody presses a button."""

import contextlib
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from clearstate import __version__
from clearstate.app import catalogue, work
from clearstate.app.catalogue import Example
from clearstate.app.work import Limits, Progress, Result
from clearstate.metrics.results import markdown_table

NO_LIMIT_DB = 40  # the end of the slider for the strength
KEEP_SECONDS = 3600  # then uploads and results are deleted
WAVEFORM_SECONDS = 300.0
MOST_RUNS = 20  # in work or waiting, of all sessions
RATES = [48_000, 44_100, 32_000, 24_000, 16_000]  # Hz, of an extended recording

CSS = ".scores {overflow-x: auto} .scores :is(th, td) {white-space: nowrap; word-break: normal}"  # else words break
PROGRESS = gr.Progress()
Work = Callable[..., Result]
Outputs = list[Any]


class CancelledError(Exception):
    """The work was cancelled, or the page was closed."""


class Runs:
    """The work of all sessions: some at the same time, the rest waits, and each can be stopped from another thread.

    Args:
        together: how many work at the same time.
    """

    def __init__(self, together: int) -> None:
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(together)
        self._stops: list[tuple[str, threading.Event]] = []  # with the session of each

    @contextlib.contextmanager
    def begin(self, session: str, report: Progress) -> Iterator[Progress]:
        """Wait for a turn. The result reports progress, and raises `CancelledError` when the work is to stop.

        Raises:
            ValueError: if too many wait.
        """
        entry = session, threading.Event()

        def checked(share: float, text: str) -> None:
            if entry[1].is_set():
                raise CancelledError
            report(share, text)

        with self._lock:
            if len(self._stops) >= MOST_RUNS:
                raise ValueError("the app is busy with other recordings; try again in some minutes")
            self._stops.append(entry)
        try:
            while not self._turns.acquire(timeout=0.1):
                checked(0.0, "Waiting for other recordings")
            try:
                yield checked
            finally:
                self._turns.release()
        finally:
            with self._lock:
                self._stops.remove(entry)

    def stop(self, request: gr.Request) -> None:
        """Stop the work of a session."""
        with self._lock:
            for session, event in self._stops:
                if session == request.session_hash:
                    event.set()


@dataclass(frozen=True)
class Site:
    """What all tabs share."""

    limits: Limits
    folder: Path  # for the work in progress
    runs: Runs


@dataclass
class Inputs:
    """The left side of a tab."""

    file: Any
    settings: list[Any]
    run: Any
    cancel: Any
    examples: list[tuple[Any, Example]]


def build(site: Site, model: str, examples: dict[str, list[Example]]) -> Any:
    """The whole page."""
    with gr.Blocks(
        title="clearstate", analytics_enabled=False, delete_cache=(KEEP_SECONDS // 10, KEEP_SECONDS), fill_width=False
    ) as page:
        gr.Markdown(
            "# clearstate\n"
            "Clean up speech. Recordings are processed on the machine that this app runs on, and nowhere else."
        )
        with gr.Tab("Enhance"):
            _enhance_tab(site, model, examples["enhance"])
        with gr.Tab("Separate"):
            _separate_tab(site, model, examples["separate"])
        with gr.Tab("Extend"):
            _extend_tab(site, examples["extend"])
        with gr.Tab("Compare"):
            _compare_tab(site, model, examples["enhance"])
        with gr.Tab("About"):
            _about_tab(site)
        page.unload(site.runs.stop)
    return page


# ---------------------------------------------------------------------------------------------------------------- tabs


def _enhance_tab(site: Site, model: str, examples: list[Example]) -> None:
    names = catalogue.models("enhance", model)

    def settings() -> list[Any]:
        return [
            gr.Dropdown(catalogue.choices(names), value=names[0], label="Model and quality"),
            gr.Slider(
                0, NO_LIMIT_DB, NO_LIMIT_DB, step=1, label="Strength",
                info=f"Attenuate noise by at most this many dB; {NO_LIMIT_DB} sets no limit.",
            ),
            gr.Checkbox(False, label="Crisper speech", info="Stretches the contrast of the spectrum."),
            gr.Checkbox(True, label="Keep high frequencies", info="Those above 8 kHz, which the model does not see."),
        ]  # fmt: skip

    def options(name: str, strength: float, pcs: bool, highs: bool) -> dict[str, Any]:
        limit = None if strength >= NO_LIMIT_DB else strength
        return {"model": known(name, names), "strength": limit, "pcs": pcs, "highs": highs}

    with _columns("Remove noise", settings, examples) as (inputs, status, results):
        players = [_player(label) for label in ("Before", "After", "What was removed")]
        gr.Markdown("All play equally loud; only *what was removed* has its own loudness.")
        download = gr.DownloadButton("Download", variant="primary")
        picture = _picture("Spectrograms")

    _connect(site, inputs, work.enhance, options, status, results, [*players, download, picture], _one_file)


def _separate_tab(site: Site, model: str, examples: list[Example]) -> None:
    names = catalogue.models("separate")

    def settings() -> list[Any]:
        return [
            gr.Dropdown(catalogue.choices(names), value=names[0], label="Model"),
            gr.Checkbox(False, label="Remove noise first"),
        ]

    def options(name: str, denoise: bool) -> dict[str, Any]:
        return {"model": known(name, names), "denoise": model if denoise else None}

    with _columns("Separate two speakers", settings, examples) as (inputs, status, results):
        players = [_player("Speaker 1"), _player("Speaker 2")]
        picture = _picture("Timeline")
        files = gr.File(label="Download", interactive=False, file_count="multiple")

    def arrange(result: Result) -> Outputs:
        return [*_played(result.players[:2], result), str(result.picture), names_of(result.files)]

    _connect(site, inputs, work.separate, options, status, results, [*players, picture, files], arrange)


def _extend_tab(site: Site, examples: list[Example]) -> None:
    names = catalogue.models("extend")

    def settings() -> list[Any]:
        return [
            gr.Dropdown(catalogue.choices(names), value=names[0], label="Model"),
            gr.Dropdown([(f"{rate / 1000:g} kHz", rate) for rate in RATES], value=RATES[0], label="New sample rate"),
        ]

    def options(name: str, to: int) -> dict[str, Any]:
        return {"model": known(name, names), "to": int(to)}

    with _columns("Add high frequencies", settings, examples) as (inputs, status, results):
        players = [_player("Before"), _player("After")]
        download = gr.DownloadButton("Download", variant="primary")
        picture = _picture("Spectrograms")

    _connect(site, inputs, work.extend, options, status, results, [*players, download, picture], _one_file)


def _compare_tab(site: Site, model: str, examples: list[Example]) -> None:
    names = catalogue.models("enhance", model)

    def settings() -> list[Any]:
        return [gr.CheckboxGroup(catalogue.choices(names), value=names[:2], label="Models")]

    def options(chosen: list[str]) -> dict[str, Any]:
        return {"models": [known(name, names) for name in chosen]}

    with _columns("Compare", settings, examples) as (inputs, status, results):
        table = gr.Markdown(elem_classes="scores")
        players = [_player("Before"), *(_player(catalogue.shown(name)) for name in names)]
        picture = _picture("Spectrograms")
        files = gr.File(label="Download", interactive=False, file_count="multiple")

    def arrange(result: Result) -> Outputs:
        copies = dict(zip([row[0] for row in result.table[1:]], result.players, strict=True))
        shown = [copies.get(name) for name in ("before", *map(catalogue.shown, names))]
        return [markdown_table(result.table), *_played(shown, result), str(result.picture), names_of(result.files)]

    _connect(site, inputs, work.compare, options, status, results, [table, *players, picture, files], arrange)


def _about_tab(site: Site) -> None:
    limits = site.limits
    gr.Markdown(
        f"clearstate {__version__}. The code has the MIT licence; the weights of each model have the licence below.\n\n"
        f"This app accepts files of up to {limits.megabytes:g} MB and {limits.minutes:g} minutes. Uploads and results "
        f"are deleted after an hour and when the app ends.\n\n{catalogue.table()}"
    )
    for name, card in catalogue.cards().items():
        with gr.Accordion(f"Card of {name}", open=False):
            gr.Markdown(card)


# --------------------------------------------------------------------------------------------------------------- parts


@contextlib.contextmanager
def _columns(
    action: str, settings: Callable[[], list[Any]], examples: list[Example]
) -> Iterator[tuple[Inputs, Any, Any]]:
    """The two sides of a tab: the inputs; and the status, with what the `with` block makes for the results below it."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            inputs = _inputs(action, settings, examples)
        with gr.Column(scale=3, min_width=320):
            status = _status()
            with gr.Column(visible=False) as results:
                yield inputs, status, results


def _inputs(action: str, settings: Callable[[], list[Any]], examples: list[Example]) -> Inputs:
    """The left side of a tab: the recording, the settings, the buttons."""
    file = gr.File(label="Recording: any audio file, or a video", type="filepath", height=140)
    with gr.Accordion("Or record with the microphone", open=False):
        microphone = gr.Audio(
            sources=["microphone"], type="filepath", format="wav", label="Microphone", buttons=[], editable=False
        )
    buttons = []
    if examples:
        gr.Markdown("Or try an example:")
        with gr.Row():
            buttons = [(gr.Button(example.label, size="sm", min_width=100), example) for example in examples]
    chosen = settings()
    with gr.Row():
        run = gr.Button(action, variant="primary", min_width=180)
        cancel = gr.Button("Cancel", min_width=100)
    microphone.stop_recording(lambda path: path, microphone, file, api_visibility="private", show_progress="hidden")
    return Inputs(file, chosen, run, cancel, buttons)


def _status() -> Any:
    return gr.Markdown("Choose a recording, or press an example.", min_height=60, container=True)


def _player(label: str) -> Any:
    return gr.Audio(label=label, interactive=False, type="filepath", buttons=[], editable=False)


def _picture(label: str) -> Any:
    return gr.Image(label=label, show_label=False, interactive=False, type="filepath", buttons=["fullscreen"])


def _offered(file: Path) -> Any:
    return gr.DownloadButton(f"Download {file.name}", value=str(file))


def _one_file(result: Result) -> Outputs:
    """A result as values of players, a download and a picture."""
    return [*_played(result.players, result), _offered(result.files[0]), str(result.picture)]


def _played(copies: Sequence[Path | None], result: Result) -> list[Any]:
    """Players with a waveform, or plain ones for long recordings, which browsers would decode as a whole."""
    waveform = gr.WaveformOptions(show_recording_waveform=result.seconds <= WAVEFORM_SECONDS)
    return [gr.Audio(value=copy and str(copy), visible=copy is not None, waveform_options=waveform) for copy in copies]


def names_of(files: list[Path]) -> list[str]:
    """Paths as Gradio takes them."""
    return [str(file) for file in files]


def known(name: str, names: list[str]) -> str:
    """A model of the list. Requests can name any text, also a folder of the server."""
    if name not in names:
        raise gr.Error("there is no such model; choose one from the list", print_exception=False)
    return name


def _connect(
    site: Site,
    inputs: Inputs,
    action: Work,
    options: Callable[..., dict[str, Any]],
    status: Any,
    results: Any,
    outputs: list[Any],
    arrange: Callable[[Result], Outputs],
) -> None:
    """Make the buttons of a tab work.

    Args:
        action: a function of `work.py`.
        options: the values of the settings as arguments of the action.
        arrange: a result as values of `outputs`.
    """
    nothing = [gr.skip()] * len(outputs)

    # Gradio fills in `request` by its type and `progress` by its default.
    def run(
        request: gr.Request, progress: gr.Progress = PROGRESS, file: str | None = None, *settings: Any
    ) -> Iterator[Outputs]:
        if not file:
            raise gr.Error("choose a recording first", print_exception=False)
        chosen = options(*settings)
        yield ["", gr.Column(visible=False), *nothing]  # results of the last run disappear
        with (
            one_sentence(site.folder.parent),
            tempfile.TemporaryDirectory(dir=site.folder) as folder,  # Gradio copies what `yield` returns
        ):
            try:
                with site.runs.begin(
                    str(request.session_hash), lambda share, text: progress(share, desc=text)
                ) as report:
                    result = action(Path(file), Path(folder), site.limits, report, **chosen)
            except CancelledError:
                yield ["Cancelled.", gr.skip(), *nothing]
            else:
                yield [result.note, gr.Column(visible=True), *arrange(result)]

    call: dict[str, Any] = {
        "inputs": [inputs.file, *inputs.settings],
        "outputs": [status, results, *outputs],
        "show_progress_on": [status],
        "concurrency_limit": None,  # see `Runs`
        "api_visibility": "private",
    }
    inputs.run.click(run, **call)
    for button, example in inputs.examples:
        loaded = button.click(
            lambda path=str(example.file): path, None, inputs.file, api_visibility="private", show_progress="hidden"
        )
        loaded.success(run, **call)
    inputs.cancel.click(site.runs.stop, queue=False, api_visibility="private")


@contextlib.contextmanager
def one_sentence(root: Path) -> Iterator[None]:
    """Turn errors of the work into a sentence for the page, without the folders below `root`."""
    try:
        yield
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        text = re.sub(re.escape(str(root)) + r"([/\\][^/\\\s]+)*[/\\]", "", text)
        raise gr.Error(text, duration=None, print_exception=False) from error
