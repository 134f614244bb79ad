"""Scores of enhanced, separated and extended speech."""
