"""Losses, optimizers, training and evaluation steps, and the devices that they run on."""
