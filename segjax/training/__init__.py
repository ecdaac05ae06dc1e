"""What a training step is made of: losses, optimizers, the step, and the devices it runs on."""
