"""TensorRT engines: graphs in their precision, built, counted and bundled."""
