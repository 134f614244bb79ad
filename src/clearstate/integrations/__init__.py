"""Filters for frameworks of voice agents. Each module needs its framework, so import it by its full name."""
