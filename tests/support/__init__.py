"""Helpers of the tests: rows, runs and grids, and stand-ins for clusters and browsers."""
