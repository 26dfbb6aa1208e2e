"""Sound files that malformed ones are made of: a small random model and what comes of it."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

DEMO = Path(__file__).resolve().parents[2] / "demo"

#: Names in the folder of sound files.
CHECKPOINT, BUNDLE, ZIP_CHECKPOINT, LEGACY_CHECKPOINT = "model", "bundle", "zip.ckpt", "old.ckpt"
DATA, IMAGE_INDEX, CAPTION_INDEX = "data", "images.hatidx", "captions.hatidx"
PARITY, LATENCY, PLAN = "parity.json", "latency.json", "plan.json"
CAPTIONS = ("a red square", "a picture of something blue", "two dogs", "sky", "")


def make_sound(folder: Path) -> None:
    """A checkpoint in every format, its bundle, indexes, a dataset, a plan and reports."""
    _checkpoints(folder)
    _dataset(folder / DATA)
    _programs(folder)
    (folder / "lines.txt").write_text("a dog\na cat\na red square\n")
    bundle = folder / BUNDLE
    _run("hat-export", "index", bundle, folder / DATA, folder / IMAGE_INDEX)
    captions = folder / CAPTION_INDEX
    _run("hat-export", "index", bundle, folder / "lines.txt", captions, "--captions")


def _programs(folder: Path) -> None:
    bundle, data = folder / BUNDLE, folder / DATA
    plan = ("--mode", "int8-weights", "--save-plan", folder / PLAN, "--no-preflight")
    _run("hat-export", "onnx", folder / CHECKPOINT, bundle)
    _run("hat-export", "quantize", bundle, folder / "int8", *plan)
    parity = ("--data", data, "--no-cache", "--report", folder / PARITY)
    _run("hat-bench", "parity", bundle, bundle, *parity)
    quick = ("--seconds", 0, "--calls", 2, "--passes", 2, "--cold-starts", 0, "--no-bound")
    _run("hat-bench", "latency", bundle, *quick, "--report", folder / LATENCY)


def _run(program: str, *arguments: object) -> None:
    command = [str(Path(sys.executable).parent / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")


def _checkpoints(folder: Path) -> None:
    import torch

    from hat_export.model.checkpoint import save_checkpoint
    from hat_export.model.hat import HAT
    from hat_export.spec import ModelSpec

    demo = ModelSpec.parse((DEMO / "hat-tiny-emojicap" / "spec.json").read_text())
    spec = replace(
        demo, name="small", embed_dim=8, image_heads=(1, 1, 2, 2), dim=16, text_dim=8, text_heads=1,
        text_hidden=16, text_layers=2, text_level_layers=(0, 1, 1)
    )  # fmt: skip
    torch.manual_seed(0)
    model = HAT(spec).eval()
    save_checkpoint(folder / CHECKPOINT, model, DEMO / "hat-tiny-emojicap" / "vocab.txt")
    state = {"state_dict": model.state_dict(), "epoch": 3, "callbacks": {}}
    torch.save(state, folder / ZIP_CHECKPOINT)
    torch.save(state, folder / LEGACY_CHECKPOINT, _use_new_zipfile_serialization=False)


def pictures() -> dict[str, bytes]:
    """Some small sound pictures by name."""
    from PIL import Image

    random, found = Random(0), {}
    for name, mode in (("a.png", "RGB"), ("b.jpg", "RGB"), ("c.gif", "P"), ("d.webp", "RGB")):
        raw = random.randbytes(8 * 6 * (3 if mode == "RGB" else 1))
        file = io.BytesIO()
        kind = {"jpg": "jpeg"}.get(name[2:], name[2:])
        Image.frombytes(mode, (8, 6), raw).resize((40, 30)).save(file, kind)
        found[name] = file.getvalue()
    return found


def _dataset(folder: Path) -> None:
    folder.mkdir(parents=True)
    entries = []
    for name, content in pictures().items():
        (folder / name).write_bytes(content)
        sentences = [{"raw": f"{text} {name}"} for text in CAPTIONS]
        entries.append({"filename": name, "split": "test", "sentences": sentences, "imgid": 1})
    content = {"dataset": "small", "images": entries}
    (folder / "dataset_small.json").write_text(json.dumps(content))


def rehash(bundle: Path, *names: str) -> None:
    """Have a manifest state sizes and hashes of files as they are, as an attacker would."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in names:
        content = (bundle / name).read_bytes()
        facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest["files"][name] = facts
    path.write_text(json.dumps(manifest))
