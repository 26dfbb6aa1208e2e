"""Exports and times HAT at its official size (Swin-B and BERT-base, 199 million parameters).

The weights are the stand-ins of ``tests/golden`` (made from parameter names, no download): speed
and numeric agreement don't hang on training. Writes the checkpoint, the bundle and the reports to
a folder, then times PyTorch and the bundle in turn within one run.

    python bench/official_size.py --out runs/bench
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "golden"))


def make_checkpoint(path: Path) -> None:
    """The stand-in weights in the official layout, as a Lightning-like file."""
    import torch
    from hat_reference_weights import make_weights

    table = json.loads((ROOT / "tests/golden/official_state_dict.json").read_text())["tensors"]
    weights = make_weights({name: entry["shape"] for name, entry in table.items()})
    state = {name: torch.from_numpy(array) for name, array in weights.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state}, path)


def run(program: str, *arguments: object) -> None:
    """Run one of the commands, as a user would; stop if it fails."""
    module = {"hat-export": "hat_export.cli.export", "hat-bench": "hat_export.cli.bench"}[program]
    shown = " ".join(map(str, (program, *arguments)))
    print(f"$ {shown}", flush=True)
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--seconds", type=float, default=10.0, help="time per case")
    arguments = parser.parse_args()
    checkpoint = arguments.out / "hat-stand-in.ckpt"
    bundle = arguments.out / "official"
    if not checkpoint.exists():
        make_checkpoint(checkpoint)
    run("hat-export", "onnx", checkpoint, bundle, "--overwrite")
    run(
        *("hat-bench", "latency", checkpoint, bundle, "--seconds", arguments.seconds),
        *("--report", arguments.out / "official_latency.json"),
        *("--report", arguments.out / "official_latency.html"),
        *("--report", arguments.out / "official_latency.md"),
    )
    demo = ROOT / "demo" / "hat-tiny-emojicap"
    tiny = arguments.out / "tiny"
    run("hat-export", "onnx", demo, tiny, "--overwrite")
    run(
        *("hat-bench", "latency", demo, tiny, "--seconds", arguments.seconds / 2),
        *("--report", arguments.out / "tiny_latency.json"),
        *("--report", arguments.out / "tiny_latency.md"),
    )


if __name__ == "__main__":
    main()
