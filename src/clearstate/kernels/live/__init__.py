"""The default model as one compiled function."""
