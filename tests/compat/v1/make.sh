#!/usr/bin/env bash
# Makes files.tar.xz with the hat-export that is on the PATH. The one that is kept here was made by
# commit 9891f67 and is not to be made anew: see README.md.
# Usage: make.sh EMPTY_FOLDER
set -euo pipefail
cd "$1"
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=

python - <<'PYTHON'
"""A random model, pictures with captions."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hat_export.model.checkpoint import save_checkpoint
from hat_export.model.hat import HAT
from hat_export.spec import ModelSpec

WORDS = "a red blue green square picture of two dogs sky the on small old young cat".split()
special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
Path("vocab.txt").write_text("\n".join([*special, *WORDS, "##s"]) + "\n")
spec = ModelSpec(
    name="v1",
    image_size=32,
    resize_size=36,
    window_size=2,
    embed_dim=4,
    depths=(2, 1, 1, 1),
    image_heads=(1, 1, 2, 2),
    vocab_size=len(special) + len(WORDS) + 1,
    max_words=16,
    text_positions=16,
    text_dim=16,
    text_layers=2,
    text_heads=2,
    text_hidden=64,
    text_level_layers=(0, 1, 1),
    dim=12,
)
torch.manual_seed(0)
model = HAT(spec)
with torch.no_grad():
    for parameter in model.parameters():
        start = 0 if parameter.ndim > 1 else parameter
        # Multiples of 1/32 compress well.
        parameter.copy_(((start + 0.2 * torch.randn_like(parameter)) * 32).round() / 32)
save_checkpoint(Path("checkpoint"), model.eval(), Path("vocab.txt"))

random, entries = np.random.default_rng(0), []
with zipfile.ZipFile("images.zip", "w") as archive:
    for number in range(12):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (9, 11, 3), np.uint8)).save(file, "png")
        archive.writestr(f"{number}.png", file.getvalue())
        sentences = [{"raw": " ".join(random.choice(WORDS, 2 + j))} for j in range(5)]
        split = "val" if number < 4 else "test"
        entries.append({"filename": f"{number}.png", "split": split, "sentences": sentences})
Path("dataset_v1.json").write_text(json.dumps({"dataset": "v1", "images": entries}))
lines = [sentence["raw"] for entry in entries for sentence in entry["sentences"]]
Path("captions.txt").write_text("\n".join(lines[:15]) + "\n")
PYTHON

data=(--images images.zip --threads 1 -q)
hat-export keygen release.key
hat-export onnx checkpoint standard --threads 1 -q
hat-export sign standard --key release.key
hat-export onnx checkpoint onnxruntime --target onnxruntime --threads 1 -q
hat-export onnx checkpoint fp16 --precision fp16 --attention decomposed --threads 1 -q

quantize=(hat-export quantize --target cpu-avx2 --no-preflight)
calibration=(--calibration dataset_v1.json --split val "${data[@]}")
"${quantize[@]}" onnxruntime int8-dynamic --threads 1 -q
"${quantize[@]}" standard int8-static --mode int8-static --smooth "${calibration[@]}" \
    --save-plan plan.json
"${quantize[@]}" standard int4-weights --mode int4-weights --compensate "${calibration[@]}"
"${quantize[@]}" standard searched --max-drop rsum=100 --objective size "${calibration[@]}" \
    --state search-state.json --save-plan searched-plan.json --report quantize.json

for storage in float32 float16 int8; do
    hat-export index standard images.zip "images-$storage.hatidx" --storage $storage "${data[@]:2}"
done
# A deletion and two appends.
hat-export index-delete images-float16.hatidx images.zip/3.png images.zip/5.png
hat-export index standard images.zip images-float16.hatidx "${data[@]:2}"
for storage in float32 int8; do
    hat-export index standard captions.txt "captions-$storage.hatidx" --captions \
        --storage $storage "${data[@]:2}"
done

test=(--data dataset_v1.json "${data[@]}")
hat-bench parity standard int4-weights "${test[@]}" --no-cache --localize --gallery 2 --report parity.json \
    > /dev/null || test $? -le 2
brief=(--seconds 0 --calls 3 --passes 2 --image-batch 1 --text-batch 1 --score-size 2x3
    --gallery 3 --words 8 --threads 1 -q)
hat-bench latency standard onnxruntime "${brief[@]}" --cold-starts 1 --parity parity.json \
    --report latency.json > /dev/null
hat-bench latency standard onnxruntime "${brief[@]}" --cold-starts 0 --no-bound \
    --report latency-later.json > /dev/null
hat-bench profile standard --words 8 --runs 3 --threads 1 -q --report profile.json > /dev/null
hat-bench preflight onnxruntime --threads 1 -q --report preflight.json > /dev/null
hat-bench scoring --spec checkpoint/spec.json --images 2 --captions 3 --rounds 2 \
    --formula-captions 1 --threads 1 -q --report scoring.json > /dev/null
hat-bench search standard "${test[@]}" --queries 5 --report search.json > /dev/null
hat-bench load standard --work images --scenario SingleStream --seconds 0.1 --threads 1 -q \
    --logs logs --report load.json > /dev/null || test $? -le 1

python - <<'PYTHON'
"""What they give."""

import io
import json
import subprocess
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

import hat_export

captions = Path("captions.txt").read_text().splitlines()
with zipfile.ZipFile("images.zip") as archive:
    pictures = [
        Image.open(io.BytesIO(archive.read(name))).convert("RGB")
        for name in archive.namelist()[:4]
    ]
arrays = {}
backends = {"fp16": "emulation"}
for name in ("standard", "onnxruntime", "fp16", "int8-dynamic", "int8-static", "int4-weights"):
    with hat_export.open_bundle(name, backends.get(name, "onnxruntime"), threads=1) as session:
        images, texts = session.encode_images(pictures), session.encode_texts(captions[:5])
        for level in range(3):
            arrays[f"{name}/image_level{level + 1}"] = images.levels[level]
            arrays[f"{name}/text_level{level + 1}"] = texts.levels[level]
        arrays[f"{name}/scores"] = session.score(images, texts)
np.savez_compressed("expected.npz", **arrays)


def search(*arguments: str) -> object:
    command = ("hat-export", "search", *arguments, "--bundle", "standard", "--json", "-k", "4")
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["results"]


found = {}
Path("0.png").write_bytes(zipfile.ZipFile("images.zip").read("0.png"))
for storage in ("float32", "float16", "int8"):
    found[f"images-{storage}"] = search(f"images-{storage}.hatidx", "two red dogs")
for storage in ("float32", "int8"):
    found[f"captions-{storage}"] = search(f"captions-{storage}.hatidx", "--image", "0.png")
Path("expected_hits.json").write_text(json.dumps(found, indent=1) + "\n")
PYTHON

tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf - \
    standard onnxruntime fp16 int8-dynamic int8-static int4-weights checkpoint images.zip \
    dataset_v1.json captions.txt ./*.hatidx plan.json search-state.json searched-plan.json \
    parity.json latency.json latency-later.json profile.json preflight.json scoring.json \
    search.json load.json quantize.json release.key release.key.pub expected.npz \
    expected_hits.json | xz -9e > files.tar.xz
