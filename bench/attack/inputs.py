"""Malformed inputs through every door."""

from __future__ import annotations

import argparse
from typing import Any


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    raise NotImplementedError
