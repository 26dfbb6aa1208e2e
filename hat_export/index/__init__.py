"""Indexes of images and captions: the files, building them, and searching in them."""
