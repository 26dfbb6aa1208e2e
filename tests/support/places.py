"""Where things lie that tests need, and how to import from folders that are no packages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hat_export

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
GOLDEN = TESTS / "golden"
SUPPORT = TESTS / "support"
BENCH = ROOT / "bench"
ATTACK = BENCH / "attack"
DEMO = ROOT / "demo"
#: The demo model's checkpoint.
MODEL = DEMO / "hat-tiny-emojicap"
#: BERT's own vocabulary, as installed with the package.
VOCABULARY = Path(hat_export.__file__).parent / "data" / "bert_base_uncased_vocab.txt"


@contextmanager
def on_path(folder: Path) -> Iterator[None]:
    """Modules of a folder can be imported: ``bench/`` and ``demo/`` are no packages."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
