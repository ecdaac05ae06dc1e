"""Time, memory and size of the networks, ours and those in PyTorch."""
