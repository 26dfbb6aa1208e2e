"""What the machine reaches: matrix products by its best library, and memory bandwidth.

Each library is measured in a process of its own, with the number of its threads set before it is
loaded and nothing else spinning beside it. Started as
``python -m hat_export.benchmark.roofline.machine REQUEST``, it writes one JSON object.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from typing import Any

from hat_export.base.progress import Progress
from hat_export.benchmark.roofline.products import Product
from hat_export.errors import HatError

#: A product that is large enough for any library to reach its best.
PEAK_PRODUCT = Product(1, 1536, 1536, 1536)
#: What is copied for the memory bandwidth; reading and writing count.
COPY_BYTES = 256 << 20
#: Library -> the imports that it needs; where one is missing, the library takes no part.
LIBRARY_PACKAGES = {
    "OpenBLAS": ("numpy",),
    "MKL": ("torch",),
    "MLAS": ("onnx", "onnxruntime"),
    "oneDNN (OpenVINO)": ("openvino",),
}
CALLS = 3
SECONDS_PER_PRODUCT = 0.05


@dataclass(frozen=True)
class Machine:
    """Measured limits at a number of threads.

    Attributes:
        threads: Of every library.
        libraries: Those that took part.
        left_out: Those that could not, each with the reason.
        products: Fewest seconds of each product, and the library that took them.
        bandwidth: Bytes a second that a copy reads and writes.
    """

    threads: int
    libraries: tuple[str, ...]
    left_out: tuple[str, ...]
    products: dict[Product, tuple[float, str]]
    bandwidth: float

    @property
    def peak(self) -> float:
        """Floating point operations a second in the fastest product."""
        return max(product.flops / best[0] for product, best in self.products.items())

    def to_json(self) -> dict[str, Any]:
        """What reports keep of it."""
        return {
            "threads": self.threads,
            "libraries": list(self.libraries),
            "left_out": list(self.left_out),
            "peak_flops": self.peak,
            "bandwidth": self.bandwidth,
        }


def measure_machine(products: Sequence[Product], threads: int, progress: Progress) -> Machine:
    """Measure some products and the memory bandwidth.

    Args:
        products: Besides :data:`PEAK_PRODUCT`.
        threads: Threads of every library.
        progress: Told after each library.

    Raises:
        HatError: if no library, or not even a copy, can be measured.
    """
    wanted = sorted({*products, PEAK_PRODUCT})
    libraries = [
        name
        for name, packages in LIBRARY_PACKAGES.items()
        if all(importlib.util.find_spec(package) for package in packages)
    ]
    best: dict[Product, tuple[float, str]] = {}
    sizes = [astuple(product) for product in wanted]
    left_out = []
    for done, library in enumerate(libraries):
        try:
            found = _ask({"library": library, "threads": threads, "products": sizes})["seconds"]
        except HatError as error:
            left_out.append(f"{library} took no part: {error}")
            continue
        for product, seconds in zip(wanted, found, strict=True):
            best[product] = min(best.get(product, (seconds, library)), (seconds, library))
        progress.count("libraries of the bound timed", done + 1, len(libraries))
    if not best:
        raise HatError(f"no library computed the products of the bound: {'; '.join(left_out)}")
    bandwidth = _ask({"library": "", "threads": threads, "products": []})["bandwidth"]
    took_part = tuple(name for name in libraries if not any(x.startswith(name) for x in left_out))
    return Machine(threads, took_part, tuple(left_out), best, bandwidth)


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    variables = os.environ | {
        name: str(request["threads"])
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    }
    done = subprocess.run(
        [sys.executable, "-m", "hat_export.benchmark.roofline.machine", json.dumps(request)],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise HatError(
            f"measuring the bound ({request['library'] or 'memory'}) failed: {last}; "
            "leave the bound out with --no-bound"
        )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _fewest_seconds(call: Callable[[], object]) -> float:
    """A bound: what a call takes undisturbed."""
    from hat_export.base.timer import Timer

    return min(found.own for found in Timer().repeat(call, CALLS, SECONDS_PER_PRODUCT))


def _bandwidth(threads: int) -> float:
    import numpy as np

    source = np.ones((threads, COPY_BYTES // 4 // threads), np.float32)
    target = np.zeros_like(source)
    with ThreadPoolExecutor(threads) as pool:

        def copy() -> None:
            list(pool.map(lambda thread: np.copyto(target[thread], source[thread]), range(threads)))

        return 2 * source.nbytes / _fewest_seconds(copy)


def _main(request: dict[str, Any]) -> dict[str, Any]:
    threads = request["threads"]
    if not request["library"]:
        return {"bandwidth": _bandwidth(threads)}
    from hat_export.benchmark.roofline.libraries import exact_product

    products = [Product(*sizes) for sizes in request["products"]]
    calls = (exact_product(request["library"], product, threads) for product in products)
    return {"seconds": [_fewest_seconds(call) for call in calls]}


if __name__ == "__main__":
    print(json.dumps(_main(json.loads(sys.argv[1]))))
