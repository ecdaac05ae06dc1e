"""A run: its config made real, and its workdir with checkpoints, logs and timings."""
