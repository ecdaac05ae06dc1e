"""Grids of runs, and the machines that train them."""
