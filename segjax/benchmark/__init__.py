"""Time, memory and size of the networks, ours and their PyTorch peers."""
