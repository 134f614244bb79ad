"""clearstate cleans up speech with state-space models. The names in this file are the stable public API.

    clearstate.enhance("talk.mp3", "clean.mp3")        remove noise from a file of any format and length
    clearstate.separate("talk.mp3", "voices/")         write one file per speaker
    clearstate.extend("old.wav", "wide.wav")           add the missing high frequencies, up to 48 kHz
    clearstate.load().enhance(array, 48_000)           remove noise from a signal in memory
    clearstate.Stream("live", sample_rate=48_000)      remove noise from live audio, chunk by chunk
    clearstate.build("semamba-advanced")               build a network with fresh weights, for training

Each name is imported on first use, so `import clearstate` alone does not load PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clearstate import moved
from clearstate.kernels import spinning  # noqa: F401 - before PyTorch is loaded

if TYPE_CHECKING:
    from clearstate.models import build
    from clearstate.tasks.enhance import Enhancer, enhance, load
    from clearstate.tasks.extend import Extender, extend
    from clearstate.tasks.separate import Separator, separate
    from clearstate.tasks.stream import Stream

__version__ = "0.2.0"
__all__ = [
    "Enhancer", "Extender", "Separator", "Stream", "__version__", "build", "enhance", "extend", "load", "separate",
]  # fmt: skip

_HOMES = {
    "Enhancer": "tasks.enhance",
    "Extender": "tasks.extend",
    "Separator": "tasks.separate",
    "Stream": "tasks.stream",
    "build": "models",
    "enhance": "tasks.enhance",
    "extend": "tasks.extend",
    "load": "tasks.enhance",
    "separate": "tasks.separate",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"clearstate.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'clearstate' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__


moved.follow()
