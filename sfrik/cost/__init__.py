"""Time and memory of the losses and of a training step: measured and predicted."""
