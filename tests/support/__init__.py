"""Helpers of the tests: rows, runs and grids, and stand-ins for clusters and browsers."""

from pathlib import Path

ROOT = Path(__file__).parents[2]  # of the repository
