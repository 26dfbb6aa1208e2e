"""Serving a bundle with NVIDIA Triton Inference Server: a model repository, and what runs in it."""
