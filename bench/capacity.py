"""What one core does, at the official size: the rates that docs/capacity.md extrapolates.

Every rate is measured with one thread, as many workers of one thread each would work. Pictures are
JPEGs of 500 x 375 pixels, captions 16 word pieces long; images and captions that are scored are
those encoded here. Medians of all rounds.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):  # read when numpy is imported
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

import hat_export  # noqa: E402
from hat_export.base.timer import Timer, own_median  # noqa: E402
from hat_export.index.images import ImageIndex, record_layout  # noqa: E402
from hat_export.index.record_format import ALIGNMENT  # noqa: E402
from hat_export.index.storage import STORAGES  # noqa: E402
from hat_export.runtime.self_test import noise_captions  # noqa: E402
from hat_export.runtime.session import Session  # noqa: E402
from hat_export.score.captions import prepare  # noqa: E402
from hat_export.score.features import ReducedImages  # noqa: E402
from hat_export.score.projection import pooled_width  # noqa: E402

IMAGES = 4
CAPTIONS = 32
WORDS = 16
#: Pooled vectors of a coarse search: too many for any cache of the CPU.
POOLED = 20_000


def photographs(count: int) -> list[bytes]:
    """JPEGs of smooth noise, which take about as long to decode as photographs."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (47, 63, 3), np.uint8))
        file = io.BytesIO()
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def rate(work: Callable[[], object], units: int, rounds: int) -> float:
    """Units a second: the median over rounds, after one that isn't counted."""
    return units / own_median(Timer().repeat(work, rounds))


def measure(session: Session, rounds: int) -> dict[str, float]:
    """Rates of one core, and the bytes of an image."""
    spec, projections = session.spec, session.projections
    pictures = photographs(IMAGES)
    ids, mask = noise_captions(spec, CAPTIONS, WORDS, seed=1)
    texts = session.encode_texts(ids, mask)
    reduced = session.reduce_images(pictures)
    random = np.random.default_rng(0)
    pooled = random.standard_normal((POOLED, pooled_width(spec)), np.float32)
    query = prepare(texts, projections).pooled[:1].T
    found: dict[str, float] = {
        "images_per_second": rate(lambda: session.reduce_images(pictures), IMAGES, rounds),
        "captions_per_second": rate(lambda: session.encode_texts(ids, mask), CAPTIONS, rounds),
        "pooled_per_second": rate(lambda: pooled @ query, POOLED, rounds),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.hatidx"
        with ImageIndex.create(path, spec, "capacity", projections, "float16") as index:
            levels = tuple(np.concatenate([level] * 4) for level in reduced.levels)
            names = [str(number) for number in range(4 * IMAGES)]
            index.add(names, ReducedImages(levels))
            pairs = len(names) * CAPTIONS
            found["pairs_per_second"] = rate(lambda: index.score(texts, 1), pairs, rounds)
    for name in ("float16", "int8"):
        layout = record_layout(spec, STORAGES[name])
        # A record ends with its checksum.
        end = 4 + max(section.offset + section.size for section in layout.values())
        found[f"{name}_bytes"] = end + -end % ALIGNMENT
    found["pooled_bytes"] = 2 * pooled_width(spec)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True, help="JSON of the rates.")
    arguments = parser.parse_args()
    with hat_export.open_bundle(arguments.bundle, threads=1) as session:
        found = {"model": session.spec.name, **measure(session, arguments.rounds)}
    arguments.out.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
