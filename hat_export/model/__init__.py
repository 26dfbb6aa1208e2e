"""The PyTorch reference and the reading of checkpoints."""
