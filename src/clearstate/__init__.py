"""clearstate clears up speech with state-space models."""

__version__ = "0.1.0"
