"""Names that the model repository, the models in it and their clients agree on."""

from __future__ import annotations

from hat_export.spec import LEVELS

IMAGE = "hat_image"
TEXT = "hat_text"
ALIGNMENT = "hat_alignment"
#: Ensemble of the three: pixels and word pieces to scores.
SCORE = "hat_score"
#: Text to images of an index.
SEARCH = "hat_search"

IMAGE_LEVELS = tuple(f"image_level{level}" for level in range(1, LEVELS + 1))
TEXT_LEVELS = tuple(f"text_level{level}" for level in range(1, LEVELS + 1))

#: Results of a search that doesn't say how many it wants.
SEARCH_TOP_K = 10
#: Images that a search scores exactly.
SEARCH_CANDIDATES = 1000
