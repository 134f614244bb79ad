"""From any recording to a model and back."""
