"""A training run: model, data and devices of its config, checkpoints, logs and timings."""
