"""Start and stop the app, with a folder for temporary files that goes with it."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clearstate.app.catalogue import examples
from clearstate.app.work import Limits


@dataclass(frozen=True)
class Settings:
    """How the app is started."""

    model: str = "studio"
    host: str = "127.0.0.1"
    port: int | None = None  # None: the first free one from 7860
    limits: Limits = field(default_factory=Limits)
    share: bool = False
    together: int = 2  # files in work at the same time


@contextmanager
def running(settings: Settings) -> Iterator[Any]:
    """Run the app until the `with` block ends: the Gradio page, whose `local_url` is its address.

    Raises:
        OSError: if the port is in use.
    """
    with tempfile.TemporaryDirectory(prefix="clearstate-app-", ignore_cleanup_errors=True) as root:
        folders = {name: Path(root, name) for name in ("uploads", "work", "examples")}
        for folder in folders.values():
            folder.mkdir()
        os.environ |= {  # Gradio reads these
            "GRADIO_TEMP_DIR": str(folders["uploads"]),
            "GRADIO_EXAMPLES_CACHE": str(folders["examples"]),
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_ALLOWED_PATHS": "",
            "HF_HUB_OFFLINE": "1",
        }
        from clearstate.app.page import CSS, Runs, Site, build

        site = Site(settings.limits, folders["work"], Runs(settings.together))
        page = build(site, settings.model, examples(folders["examples"]))
        try:
            page.launch(
                server_name=settings.host, server_port=free_port() if settings.port == 0 else settings.port,
                share=settings.share, max_file_size=int(settings.limits.megabytes * 1e6), prevent_thread_lock=True,
                quiet=True, footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False,
                mcp_server=False, pwa=False, inline=False, css=CSS,
            )  # fmt: skip
        except OSError:
            where = f"{settings.host} port {settings.port or 'any from 7860'}"
            raise OSError(f"cannot listen on {where}; choose another --host or --port") from None
        try:
            yield page
        finally:
            page.close(verbose=False)


def free_port() -> int:
    """A port that nobody uses at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
