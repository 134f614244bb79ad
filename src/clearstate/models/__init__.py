"""The models, one file each, and the names under which they are built and loaded."""
