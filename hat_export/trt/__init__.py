"""TensorRT: its libraries, what a bundle says of its engines, commands that repeat a build."""
