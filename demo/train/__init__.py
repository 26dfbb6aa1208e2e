"""Training of a small HAT from scratch: how the bundled demo model was made.

The paper starts from pretrained Swin and BERT; a model of a few million parameters has none, so two
warm-up stages come before the paper's objective. Run ``python demo/train --help``.
"""
