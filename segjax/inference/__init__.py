"""Logits and labels of trained networks, and their scores."""
