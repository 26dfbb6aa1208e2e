"""Measurements: latency, load, profiles, bounds, scoring, search, and comparisons of runs."""
