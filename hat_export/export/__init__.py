"""Export: ONNX graphs built from a spec and weights, checked and bundled."""
