"""The models, one network per file. `presets.py` has the table of names, `weights.py` loads and saves.

A new model is one file with a frozen `Config` dataclass and a network that names it, and one entry in `PRESETS`.
"""

from clearstate.models.presets import PRESETS, WEIGHTS, Preset, build, find
from clearstate.models.weights import load_model, save_model, tell_licence

__all__ = ["PRESETS", "WEIGHTS", "Preset", "build", "find", "load_model", "save_model", "tell_licence"]
