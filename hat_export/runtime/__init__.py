"""Sessions: the three verbs of a model, on every backend."""
