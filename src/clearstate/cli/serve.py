"""clearstate serve: files over HTTP and live streams over WebSockets. The service itself is in `serve/`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from clearstate.cli.terminal import UsageError, explain, note
from clearstate.cli.verbs import LOOPBACK, MODEL_FILES, Backend, Runtime


def run(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on. 0.0.0.0 accepts other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 chooses a free one.")] = 8000,
    model: Annotated[
        str, typer.Option("--model", "-m", help=f"Causal enhancement model of the streams: a name, {MODEL_FILES}.")
    ] = "live",
    backend: Runtime = Backend.auto,
    keys: Annotated[
        str | None,
        typer.Option(
            "--keys",
            metavar="FILE",
            help="API keys, one per line. Default: $CLEARSTATE_API_KEYS, separated by commas, or no keys.",
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Web page that may call the service from a browser. Can be repeated."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=0, help="Processes for the streams; 0: none besides the service. Default: one per core."),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="Files to process at the same time.")] = 1,
    max_streams: Annotated[
        int | None,
        typer.Option(min=1, help="Most open streams. Default: as many as the machine can serve in time."),
    ] = None,
    streams_per_key: Annotated[int, typer.Option(min=1, help="Most open streams of one client.")] = 1_000,
    jobs_per_key: Annotated[int, typer.Option(min=1, help="Most jobs of one client, finished ones included.")] = 50,
    max_upload: Annotated[int, typer.Option(min=1, metavar="MB", help="Largest upload.")] = 1024,
    max_hours: Annotated[float, typer.Option(min=0.001, metavar="H", help="Longest recording.")] = 4.0,
    keep: Annotated[float, typer.Option(min=1, metavar="S", help="Seconds until a finished job is deleted.")] = 3600.0,
    drain: Annotated[
        float, typer.Option(min=0, metavar="S", help="After SIGTERM, seconds for streams and jobs to finish.")
    ] = 30.0,
    spool: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder for uploads and results. Default: one for temporary files."),
    ] = None,
) -> None:
    """Serve enhancement, separation and extension over HTTP, and live noise removal over WebSockets.

    Files: POST /v1/enhance, /v1/separate and /v1/extend. Live sound: the WebSocket /v1/stream. /docs describes the
    interface, and docs/serve.md has examples for curl, Python and JavaScript. A stream that the machine cannot serve in
    time is refused. Needs the extra: pip install 'clearstate[serve]'

    **Examples**

    `clearstate serve`

    `curl --data-binary @talk.mp3 "http://127.0.0.1:8000/v1/enhance?format=mp3" -o clean.mp3`

    `clearstate serve --host 0.0.0.0 --keys keys.txt --workers 2`

    Exit codes: 0 stopped by SIGTERM, 1 cannot start, 2 wrong use, 130 interrupted.
    """
    for package in ("fastapi", "prometheus_client", "uvicorn", "websockets"):
        if find_spec(package) is None:
            raise UsageError(f"serve needs {package}: pip install 'clearstate[serve]'")
    from clearstate.serve.keys import read_keys
    from clearstate.serve.server import prepared
    from clearstate.serve.settings import Settings, stream_processes

    try:
        known = read_keys(keys)
    except (ValueError, OSError) as error:
        raise UsageError(f"--keys {explain(error)}") from error
    settings = Settings(
        model=model, backend=backend.value, host=host, port=port, keys=known, origins=tuple(allow_origin or ()),
        spool=spool, processes=stream_processes() if processes is None else processes,
        most_streams=max_streams, streams_per_key=streams_per_key,
        workers=workers, jobs_per_key=jobs_per_key, most_bytes=max_upload * 2**20, most_seconds=max_hours * 3600,
        keep_seconds=keep, drain_seconds=drain,
    )  # fmt: skip

    def started(address: str) -> None:
        note(f"clearstate: serving on {address} with {model}; {address}/docs describes the interface")
        if host not in LOOPBACK and not known:
            note("clearstate: without --keys, everybody who can reach this address can use the service")

    with prepared(settings, started) as server:
        server.run()
    if server.interrupted:
        raise KeyboardInterrupt
