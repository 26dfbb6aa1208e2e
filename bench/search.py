"""What the compact index costs and gives: precision, full size, many images.

    python bench/search.py precision            # error and recall of every storage, demo model
    python bench/search.py full                 # 1,000 x 5,000 at official size, made-up features
    python bench/search.py large                # one query against 100,000 images, made-up features

Each part prints its rows and writes them with machine and versions to ``--out``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
THREADS = len(os.sched_getaffinity(0))

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):  # read when numpy is imported
    os.environ.setdefault(variable, str(THREADS))

sys.path.insert(0, str(ROOT / "tests" / "support"))

import numpy as np  # noqa: E402

import formula  # noqa: E402
import hat_export  # noqa: E402
from hat_export.base.machine import environment, peak_memory  # noqa: E402
from hat_export.base.progress import PlainLines  # noqa: E402
from hat_export.base.timer import Timer, own_median  # noqa: E402
from hat_export.benchmark.search import build_index, encode_texts  # noqa: E402
from hat_export.data.dataset import CaptionDataset  # noqa: E402
from hat_export.data.karpathy import read_karpathy  # noqa: E402
from hat_export.index.captions import CaptionIndex  # noqa: E402
from hat_export.index.images import ImageIndex  # noqa: E402
from hat_export.index.storage import STORAGES  # noqa: E402
from hat_export.runtime.evaluate import score_dataset  # noqa: E402
from hat_export.runtime.session import Session  # noqa: E402
from hat_export.score.features import ReducedImages, TextFeatures  # noqa: E402
from hat_export.score.metrics import RECALL_AT, fold_mean, rank  # noqa: E402
from hat_export.score.projection import Projection, Projections  # noqa: E402
from hat_export.spec import OFFICIAL, TINY, ModelSpec  # noqa: E402


def demo_session(folder: Path) -> Session:
    """The demo model as a bundle, exported once."""
    bundle = folder / "tiny"
    if not (bundle / "manifest.json").exists():
        source = ROOT / "demo" / "hat-tiny-emojicap"
        command = [sys.executable, "-m", "hat_export.cli.export", "onnx", str(source), str(bundle)]
        subprocess.run(command, check=True)
    return hat_export.open_bundle(bundle, threads=THREADS)


def float64_scores(
    session: Session, dataset: CaptionDataset, texts: TextFeatures, images: int
) -> np.ndarray:
    """The formula of the tests on the float32 features."""
    pictures = [next(iter_) for iter_ in [dataset.images()] for _ in range(images)]
    features = session.encode_images(pictures)
    smooth = session.spec.softmax_lambda
    scores = np.zeros((images, len(texts)))
    for regions, words in zip(features.levels, texts.levels, strict=True):
        scores += formula.level_scores(regions, words, texts.lengths, smooth)
    return scores


def precision(folder: Path) -> list[dict[str, Any]]:
    """Size, error and recall of every storage on the demo model's test split."""
    dataset = read_karpathy(ROOT / "demo" / "emojicap", "test")
    rows = []
    with demo_session(folder) as session, tempfile.TemporaryDirectory(dir=folder) as temporary:
        texts = encode_texts(session, dataset)
        truth = float64_scores(session, dataset, texts, 40)
        for storage in STORAGES:
            path = Path(temporary) / f"{storage}.hatidx"
            with build_index(session, dataset, path, storage) as index:
                scores = index.score(texts, THREADS)
                result = rank(scores, dataset.owners)
                rows.append(
                    {
                        "storage": storage,
                        "bytes_per_image": path.stat().st_size / len(index),
                        "largest_error": float(np.abs(scores[:40] - truth).max()),
                        "i2t": [round(result.i2t.recall(at), 2) for at in RECALL_AT],
                        "t2i": [round(result.t2i.recall(at), 2) for at in RECALL_AT],
                        "rsum": round(result.rsum, 2),
                    }
                )
                print(rows[-1], flush=True)
    return rows


def random_projections(spec: ModelSpec, random: np.random.Generator) -> Projections:
    """Made-up projections of the right shapes."""
    first, second = (
        Projection(
            random.standard_normal((spec.dim, width), np.float32) / np.float32(width**0.5),
            random.standard_normal(spec.dim, np.float32) / np.float32(10),
        )
        for width in spec.level_widths[:2]
    )
    return Projections(first, second)


def random_images(spec: ModelSpec, count: int, random: np.random.Generator) -> ReducedImages:
    """Made-up stage outputs and features."""
    widths = (*spec.level_widths[:2], spec.dim)
    return ReducedImages(
        tuple(
            random.standard_normal((count, regions, width), np.float32)
            for regions, width in zip(spec.level_regions, widths, strict=True)
        )
    )


def random_texts(spec: ModelSpec, count: int, random: np.random.Generator) -> TextFeatures:
    """Made-up word features; lengths of Flickr30K's captions, 8 to 17."""
    lengths = random.integers(8, 18, count)
    shape = (count, int(lengths.max()), spec.dim)
    levels = tuple(random.standard_normal(shape, np.float32) for _ in range(3))
    return TextFeatures(levels, lengths)


def full(folder: Path) -> list[dict[str, Any]]:
    """A complete 1,000 x 5,000 score of official size, and recall from it."""
    random = np.random.default_rng(0)
    projections = random_projections(OFFICIAL, random)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        images = ImageIndex.create(
            Path(temporary) / "images.hatidx", OFFICIAL, "made-up", projections, "float16"
        )
        for start in range(0, 1000, 20):
            names = [str(start + number) for number in range(20)]
            images.add(names, random_images(OFFICIAL, 20, random))
        captions = CaptionIndex.create(
            Path(temporary) / "captions.hatidx", OFFICIAL, "made-up", projections, "float32"
        )
        for start in range(0, 5000, 50):
            names = [str(start + number) for number in range(50)]
            captions.add(names, random_texts(OFFICIAL, 50, random))
        size = (Path(temporary) / "images.hatidx").stat().st_size
        started = time.perf_counter()
        scores = images.score(captions, THREADS, PlainLines())
        seconds = time.perf_counter() - started
        owners = [caption // 5 for caption in range(5000)]
        whole, folds = rank(scores, owners), fold_mean(scores, owners, 5)
        row = {
            "images": 1000,
            "captions": 5000,
            "seconds": round(seconds, 1),
            "ms_per_pair": 1e3 * seconds / scores.size,
            "index_bytes_per_image": size / 1000,
            "peak_memory_bytes": peak_memory(),
            "threads": THREADS,
            "rsum_of_noise": whole.rsum,
            "rsum_of_noise_five_folds": folds["rsum"],
        }
        images.close()
        captions.close()
    print(row, flush=True)
    return [row]


def large(folder: Path) -> list[dict[str, Any]]:
    """One query against more and more made-up images of the demo model's size."""
    random = np.random.default_rng(0)
    spec, rows = TINY, []
    projections = random_projections(spec, random)
    queries = random_texts(spec, 20, random)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "large.hatidx"
        index = ImageIndex.create(path, spec, "made-up", projections, "float16")
        for goal in (1_000, 10_000, 100_000):
            while len(index) < goal:
                count = min(1000, goal - len(index))
                names = [str(len(index) + number) for number in range(count)]
                index.add(names, random_images(spec, count, random))
            for candidates, rescore in (("pooled", 100), ("level3", 100), ("pooled", None)):
                few = itertools.cycle(range(20 if rescore else 3))

                def run(few=few, candidates=candidates, rescore=rescore) -> object:
                    number = next(few)
                    query = queries[number : number + 1]
                    return index.search(query, 10, candidates, rescore, THREADS)

                calls = Timer().repeat(run, calls=20 if rescore else 3, warm_up=0)
                rows.append(
                    {
                        "images": goal,
                        "search": f"{candidates}, rescore {rescore}" if rescore else "exact",
                        "median_ms": 1e3 * own_median(calls),
                        "file_bytes": path.stat().st_size,
                        "peak_memory_bytes": peak_memory(),
                    }
                )
                print(rows[-1], flush=True)
        index.close()
    return rows


def scaling(folder: Path) -> list[dict[str, Any]]:
    """Time of the whole demo evaluation over images x captions."""
    rows = []
    with demo_session(folder) as session:
        for images in (125, 250, 500, 1000):
            dataset = read_karpathy(ROOT / "demo/emojicap", "test").limit(images)
            started = time.perf_counter()
            score_dataset(session, dataset)
            rows.append({"images": images, "seconds": time.perf_counter() - started})
            print(rows[-1], flush=True)
    return rows


PARTS = {
    "precision": precision,
    "full": full,
    "large": large,
    "scaling": scaling,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = PARTS[arguments.part](arguments.out)
    content = {"rows": rows, **environment()}
    path = arguments.out / f"search_{arguments.part}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
