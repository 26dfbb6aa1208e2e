"""Coverage-guided fuzzing of every parser."""

from __future__ import annotations

import argparse
from typing import Any


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    raise NotImplementedError
