"""Makes a checkpoint of HAT at its official size (Swin-B and BERT-base, 199 million parameters).

The weights are the stand-ins of ``tests/golden`` (made from parameter names, no download): speed
and numeric agreement don't hang on training.

    python bench/official_checkpoint.py runs/bench/hat-stand-in.ckpt
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "golden"))


def make_checkpoint(path: Path) -> None:
    """The stand-in weights in the official layout, as a Lightning-like file."""
    import torch

    from hat_export.base.atomic import partial_file
    from hat_reference_weights import make_weights

    table = json.loads((ROOT / "tests/golden/official_state_dict.json").read_text())["tensors"]
    weights = make_weights({name: entry["shape"] for name, entry in table.items()})
    state = {name: torch.from_numpy(array) for name, array in weights.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial_file(path) as work:  # an interrupted run leaves nothing that looks finished
        torch.save({"state_dict": state}, work)
        work.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    make_checkpoint(parser.parse_args().checkpoint)


if __name__ == "__main__":
    main()
