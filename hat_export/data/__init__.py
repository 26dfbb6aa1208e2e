"""Inputs: images and their preprocessing, captions and their tokens, datasets in every form."""
