"""Datasets: prepared once by TFDS, read by index, batched and augmented."""
