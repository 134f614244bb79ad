"""clearstate app: a page to try everything in a browser. The page itself is in `app/`."""

import os
import threading
from importlib.util import find_spec
from typing import Annotated

import typer

from clearstate.cli.terminal import CommandError, UsageError, note
from clearstate.cli.verbs import LOOPBACK, check_model


def run(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on. 0.0.0.0 accepts other machines.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65_535, help="Port to listen on; 0 chooses any. Default: the first free one from 7860."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Enhancement model to begin with, a name or a folder.")
    ] = "studio",
    max_minutes: Annotated[float, typer.Option(min=0.01, metavar="MIN", help="Longest recording.")] = 30.0,
    max_mb: Annotated[float, typer.Option(min=0.01, metavar="MB", help="Largest upload.")] = 500.0,
    share: Annotated[
        bool,
        typer.Option(
            "--share",
            help="Also give the page a public address for a week, through a server of Gradio's. Everybody who knows it "
            "can use the app, and recordings pass through that server.",
        ),
    ] = False,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
) -> None:
    """Open an app in the browser: enhance, separate, extend and compare, with players and pictures.

    Recordings stay on this machine. The page needs no internet. Uploads and results are deleted after an hour, and when
    the app ends with Ctrl-C. Needs the extra: pip install 'clearstate[app]'

    **Examples**

    `clearstate app`

    `clearstate app --host 0.0.0.0 --max-minutes 10 --no-browser` for others in your network

    Exit codes: 1 cannot start, 2 wrong use, 130 ended by Ctrl-C.
    """
    for package in ("gradio", "matplotlib"):
        if find_spec(package) is None:
            raise UsageError(f"app needs {package}: pip install 'clearstate[app]'")
    check_model(model, "enhance", "--model")
    from clearstate.app.server import Settings, running
    from clearstate.app.work import Limits

    settings = Settings(model, host, port, Limits(max_minutes, max_mb), share, together=os.cpu_count() or 1)
    with running(settings) as page:
        note(f"clearstate: the app is at {page.local_url}; Ctrl-C ends it")
        if share and not page.share_url:
            raise CommandError("no public address could be made; check the connection, or leave out --share")
        if page.share_url:
            note(f"clearstate: everybody can use it at {page.share_url}")
        elif host not in LOOPBACK:
            note("clearstate: everybody who can reach this address can use the app")
        if browser:
            import webbrowser

            webbrowser.open(page.share_url or page.local_url)
        threading.Event().wait()
