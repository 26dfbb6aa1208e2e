"""Deterministic inputs for the HAT golden data: images, captions, kernel cases, scores.

Everything here is rebuilt from names, nothing is shipped as a big array.  Like
``hat_reference_weights`` (whose ``raw_bits`` and ``unit_noise`` it uses) it keeps to
integer arithmetic and single float32 operations, so it is the same bit for bit anywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hat_reference_weights import raw_bits, unit_noise

# --------------------------------------------------------------------------- images

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
N_IMAGES = 6


def synthetic_photo(
    name: str, height: int, width: int, cell: int = 32, grain: int = 24
) -> np.ndarray:
    """A smooth random RGB picture with some grain, uint8 [height, width, 3].

    A coarse grid of random colours (one per ``cell`` pixels) is interpolated linearly,
    in integers, and uniform grain of +-``grain`` grey levels is added and clipped.
    """
    gh, gw = -(-height // cell) + 1, -(-width // cell) + 1
    grid = (raw_bits(f"{name}/grid", gh * gw * 3) >> np.uint64(56)).astype(np.int64)
    grid = grid.reshape(gh, gw, 3)
    y, x = np.arange(height), np.arange(width)
    iy, fy = y // cell, (y % cell)[:, None, None]
    ix, fx = x // cell, (x % cell)[None, :, None]
    top = grid[iy][:, ix] * (cell - fx) + grid[iy][:, ix + 1] * fx
    low = grid[iy + 1][:, ix] * (cell - fx) + grid[iy + 1][:, ix + 1] * fx
    smooth = (top * (cell - fy) + low * fy) // (cell * cell)
    bits = raw_bits(f"{name}/grain", height * width * 3) >> np.uint64(40)
    noise = (bits % np.uint64(2 * grain + 1)).astype(np.int64).reshape(height, width, 3) - grain
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def normalise(photo: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> float32 [3, H, W]: /255, minus MEAN, over STD, as torchvision does."""
    x = photo.transpose(2, 0, 1).astype(np.float32) / np.float32(255.0)
    mean = np.asarray(MEAN, np.float32)[:, None, None]
    std = np.asarray(STD, np.float32)[:, None, None]
    return np.ascontiguousarray((x - mean) / std)


def golden_photo(index: int) -> np.ndarray:
    """uint8 [224, 224, 3]; the six pictures differ in smoothness and grain."""
    cell, grain = ((32, 24), (16, 8), (56, 40), (8, 4), (28, 64), (112, 16))[index]
    return synthetic_photo(f"hat-golden/image/{index}", 224, 224, cell, grain)


def golden_images() -> np.ndarray:
    """float32 [6, 3, 224, 224], normalised, ready for the image encoder."""
    return np.stack([normalise(golden_photo(i)) for i in range(N_IMAGES)])


#: name -> (height, width): pictures for checking resize + centre crop + normalise.
PREPROCESS_CASES: dict[str, tuple[int, int]] = {
    "landscape_640x480": (480, 640),
    "portrait_333x500": (500, 333),
    "small_200x150": (150, 200),
    "square_256": (256, 256),
    "odd_501x375": (375, 501),
    "large_1024x683": (683, 1024),
    "panorama_1000x260": (260, 1000),
}


def preprocess_photo(name: str) -> np.ndarray:
    height, width = PREPROCESS_CASES[name]
    return synthetic_photo(f"hat-golden/preprocess/{name}", height, width)


# ------------------------------------------------------------------------- captions

#: 30 captions, five per image in order (caption i belongs to image i // 5).
CAPTIONS: list[str] = [
    # image 0
    "Dogs run.",
    (
        "Two dogs chase a bright orange frisbee along the wet sand while small waves break "
        "behind them."
    ),
    "A brown dog and a white dog are playing on the beach.",
    (
        "On an overcast afternoon, a pair of mixed-breed dogs sprint side by side past a "
        "driftwood log, kicking up spray and sand."
    ),
    "Muddy dogs splash at the shoreline",
    # image 1
    "An elderly woman in a red headscarf sells mangoes and papayas at a crowded street market.",
    "A fruit stall.",
    "Shoppers squeeze between the stalls; one man haggles over a bunch of bananas.",
    (
        "A woman weighs fruit for a customer who wears a straw hat and carries a large wicker "
        "basket full of vegetables."
    ),
    (
        "Piles of tropical fruit - mangoes, papayas, rambutans, and plantains - are stacked "
        "high under a striped awning as the vendor, wearing a red headscarf, counts her change "
        "carefully."
    ),
    # image 2
    "A steam locomotive pulls eleven carriages over a stone viaduct.",
    "The No. 4472 train crosses the 24-arch bridge at 10:45 a.m.",
    "Smoke trails behind an old train.",
    (
        "People standing in the field below photograph the vintage steam train, its whistle "
        "blowing, as it slowly crosses the viaduct into town."
    ),
    "It's a train!",
    # image 3
    "A chef in a white jacket is plating crème brûlée at a tiny Parisian café.",
    "CHEF COOKING IN KITCHEN",
    "Someone uses a blowtorch to caramelise sugar on top of a dessert.",
    (
        "Inside a narrow, stainless-steel kitchen, three cooks prepare food while a fourth "
        "(the pastry chef) torches the sugar crust of a custard."
    ),
    "Three cooks work in a kitchen near a window",
    # image 4
    "A goalkeeper dives to her left but cannot reach the ball.",
    "Two teams, one in blue-and-yellow stripes and one in green, are playing football in the rain.",
    "The striker shoots; the goalkeeper doesn't move.",
    "Girls play soccer",
    (
        "A referee wearing black blows the whistle as a muddy midfielder slides in for a "
        "tackle on the soaked pitch, and the substitutes jump up from the bench."
    ),
    # image 5
    "Three hikers with heavy backpacks follow a ridge toward a snow-capped summit at sunrise.",
    "A mountaineer plants an ice axe in the snow ☃ near the top.",
    "Snowy mountains.",
    "The climbers' ropes stretch across a glacier riddled with crevasses.",
    "Hikers rest on a rock, drinking tea from a thermos, high above a valley filled with clouds.",
]

# ---------------------------------------------------------------------------- probe


def probe(size: int = 768) -> np.ndarray:
    """A fixed float32 vector; ``features @ probe()`` sums up a token in one number."""
    return unit_noise("hat-golden/probe", (size,))


# ------------------------------------------------------------- alignment kernel cases

#: name -> parameters; see ``kernel_case``.
KERNEL_CASES: dict[str, dict[str, Any]] = {
    # the three levels at full width
    "level1_R784_d768": dict(n=4, m=7, R=784, W=32, d=768, lens=(32, 2, 5, 1, 17, 9, 31)),
    "level2_R196_d768": dict(n=4, m=7, R=196, W=32, d=768, lens=(32, 2, 5, 1, 17, 9, 31)),
    "level3_R49_d768": dict(n=4, m=7, R=49, W=32, d=768, lens=(32, 2, 5, 1, 17, 9, 31)),
    # the same with narrow features
    "level1_R784_d32": dict(n=4, m=7, R=784, W=32, d=32, lens=(3, 32, 2, 8, 1, 12, 20)),
    "level2_R196_d32": dict(n=4, m=7, R=196, W=32, d=32, lens=(3, 32, 2, 8, 1, 12, 20)),
    "level3_R49_d32": dict(n=4, m=7, R=49, W=32, d=32, lens=(3, 32, 2, 8, 1, 12, 20)),
    # awkward sizes
    "odd_R5_d3": dict(n=3, m=4, R=5, W=6, d=3, lens=(6, 2, 3, 4)),
    "odd_R2_d1": dict(n=2, m=3, R=2, W=4, d=1, lens=(4, 2, 3)),
    "lambda_1": dict(n=3, m=4, R=49, W=12, d=32, lens=(12, 2, 7, 1), smooth=1.0),
    "lambda_100": dict(n=3, m=4, R=49, W=12, d=32, lens=(12, 2, 7, 1), smooth=100.0),
    # words that are noisy copies of regions: attention is peaked, scores are high
    "related_R49": dict(n=4, m=6, R=49, W=32, d=64, lens=(7, 32, 2, 14, 25, 3), related=True),
    "related_R784": dict(n=3, m=4, R=784, W=32, d=64, lens=(7, 32, 2, 14), related=True),
    # features that share a large common part, as trained features do
    "offset": dict(n=4, m=5, R=49, W=32, d=64, lens=(4, 32, 9, 2, 21), offset=3.0),
    # all dot products negative: the slope of the leaky ReLU cancels in the norm, while a
    # plain ReLU would leave uniform attention
    "negative": dict(n=3, m=4, R=49, W=10, d=32, lens=(10, 2, 6, 3), offset=2.0, flip=True),
    # magnitudes
    "large_x300": dict(n=3, m=4, R=49, W=10, d=64, lens=(10, 2, 6, 3), scale=300.0),
    "small_x1e-3": dict(n=3, m=4, R=49, W=10, d=64, lens=(10, 2, 6, 3), scale=1e-3),
    # so small that the 1e-8 beside the norm and the 1e-8 floor of the cosine decide
    "tiny_x2e-5": dict(n=3, m=4, R=49, W=10, d=64, lens=(10, 2, 6, 3), scale=2e-5),
    # one region of every image and the second word of every caption are all zero
    "zeros": dict(n=3, m=4, R=49, W=10, d=32, lens=(10, 2, 6, 3), zeros=True),
    # whole image 0 and whole caption 0 are zero
    "all_zero": dict(n=3, m=4, R=49, W=10, d=32, lens=(10, 2, 6, 3), blank=True),
}


def kernel_case(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Images float32 [n, R, d], captions float32 [m, W, d], lengths int64 [m], lambda.

    Rows of ``captions`` past a caption's length hold noise, not zeros: an implementation
    that lets padding leak into the score gives a wrong answer.
    """
    p = KERNEL_CASES[name]
    images = unit_noise(f"hat-golden/kernel/{name}/images", (p["n"], p["R"], p["d"]))
    captions = unit_noise(f"hat-golden/kernel/{name}/captions", (p["m"], p["W"], p["d"]))
    if p.get("related"):  # word w of caption j copies region 5w + 3 (mod R) of image j % n
        owner = np.arange(p["m"]) % p["n"]
        region = (5 * np.arange(p["W"]) + 3) % p["R"]
        captions = images[owner][:, region] + np.float32(0.5) * captions
    if "offset" in p:
        images = images * np.float32(0.5) + np.float32(p["offset"])
        captions = captions * np.float32(0.5) + np.float32(p["offset"])
        if p.get("flip"):
            captions = -captions
    if "scale" in p:
        images = images * np.float32(p["scale"])
        captions = captions * np.float32(p["scale"])
    if p.get("zeros"):
        images[:, 3] = 0
        captions[:, 1] = 0
    if p.get("blank"):
        images[0] = 0
        captions[0] = 0
    return images, captions, np.asarray(p["lens"], np.int64), float(p.get("smooth", 9.0))


# ---------------------------------------------------------------- recall score matrices

#: name -> (number of images, strength of the planted signal)
RECALL_CASES: dict[str, tuple[int, float]] = {
    "weak_100": (100, 0.6),
    "medium_100": (100, 1.4),
    "strong_100": (100, 2.6),
    "none_100": (100, 0.0),
    "medium_150": (150, 1.4),
}


def recall_matrix(name: str) -> np.ndarray:
    """float64 [N, 5N] scores: noise plus ``strength`` where caption j belongs to image j // 5.

    Signal and noise are rounded to multiples of 2**-10 and (j + 7 i) mod 1021 is added in
    units of 2**-20, so that no two entries of a row or of a column are equal (the answer
    does not hang on how ties are broken) and every entry is exact in float32 too.
    """
    n, strength = RECALL_CASES[name]
    noise = unit_noise(f"hat-golden/recall/{name}", (n, 5 * n)).astype(np.float64)
    i, j = np.arange(n)[:, None], np.arange(5 * n)[None, :]
    coarse = np.round((noise + strength * (j // 5 == i)) * 2.0**10) / 2.0**10
    return coarse + ((j + 7 * i) % 1021) / 2.0**20


def tied_matrix() -> np.ndarray:
    """float64 [30, 150] with many equal scores: shows how ties are broken."""
    n = 30
    bits = raw_bits("hat-golden/recall/tied", n * 5 * n) >> np.uint64(61)
    own = np.arange(5 * n)[None, :] // 5 == np.arange(n)[:, None]
    return bits.reshape(n, 5 * n).astype(np.float64) + 2.0 * own
