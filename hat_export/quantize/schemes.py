"""Number formats of a quantized layer, and what each kind of machine wants of them."""

from __future__ import annotations

from dataclasses import dataclass

from hat_export.base.machine import cpu_features
from hat_export.errors import InputError

FP32 = "fp32"


@dataclass(frozen=True)
class Scheme:
    """How one layer is stored and computed.

    Attributes:
        name: As it stands in plans, manifests and on the command line.
        bits: Bits of a weight.
        activations: ``fp32``; ``dynamic``: int8 with the range of each call's own values;
            ``static``: a range found by calibration.
        largest_error: Relative error (root mean square) of a feature beyond which a bundle is
            refused as broken rather than coarse.
        reason: Why that error.
    """

    name: str
    bits: int
    activations: str
    largest_error: float
    reason: str


#: A rounding to a step of 1/127 of the range is wrong by 0.0023 of it (step / sqrt 12), and ranges
#: are 4 to 20 standard deviations wide: 1 to 5 % a product, of which the residual stream collects
#: some. Half of the feature's own size means a wrong scale or a saturated range.
_EIGHT_BIT = "roundings of a few percent per product, collected along the residual stream"

SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("int8-dynamic", 8, "dynamic", 0.5, _EIGHT_BIT),
        Scheme("int8-static", 8, "static", 0.5, _EIGHT_BIT),
        Scheme(
            "int8-weights", 8, "fp32", 0.25, "weights rounded to 1/127 of their channel's range"
        ),
        Scheme("int4-weights", 4, "fp32", 1.0, "weights rounded to 1/7 of their block's range"),
        Scheme("fp8", 8, "static", 0.75, "e4m3 keeps 4 significant bits: 2 to 4 % a product"),
    )
}


@dataclass(frozen=True)
class Target:
    """What a kind of machine multiplies integers with.

    Attributes:
        name: As in ``--target``.
        weight_limit: Largest magnitude of an int8 weight where activations are 8 bit too.
        signed_activations: int8 symmetric around 0 (zero point 0), or uint8 with a zero point.
        standard: Whether graphs may hold standard ONNX operators only.
        schemes: What it can run.
        int8_linear: Whether this project's int8 operator beats ONNX Runtime's there.
        requires: CPU features of which a machine needs one to run such a bundle rightly; none
            named: no need.
        reason: Why so, for reports.
    """

    name: str
    weight_limit: int
    signed_activations: bool
    standard: bool
    schemes: tuple[str, ...]
    int8_linear: bool
    requires: tuple[str, ...]
    reason: str


_ON_CPUS = ("int8-dynamic", "int8-static", "int8-weights", "int4-weights")
#: Instructions that sum products of uint8 and int8 in 32 bits, without saturation on the way.
EXACT_PRODUCTS = ("avx512_vnni", "avx_vnni", "amx_int8")

TARGETS = {
    target.name: target
    for target in (
        Target(
            "cpu-vnni",
            127,
            False,
            False,
            _ON_CPUS,
            True,
            EXACT_PRODUCTS,
            "VNNI and AMX sum uint8 x int8 products in 32 bits: the whole range is usable",
        ),
        Target(
            "cpu-avx2",
            # 255 * 64 + 255 * 64 = 32640 is the last sum of two products within int16.
            64,
            False,
            False,
            _ON_CPUS,
            True,
            (),
            "vpmaddubsw sums two uint8 x int8 products in 16 bits and saturates beyond 32767: "
            "weights stay within +-64",
        ),
        Target(
            "arm64",
            127,
            True,
            False,
            _ON_CPUS,
            False,
            (),
            "SDOT sums int8 x int8 products in 32 bits: symmetric activations need no zero point",
        ),
        Target(
            "tensorrt",
            127,
            True,
            True,
            ("int8-static", "fp8", "int8-weights", "int4-weights"),
            False,
            (),
            "TensorRT takes standard Q/DQ operators with zero point 0",
        ),
    )
}


def find_scheme(name: str) -> Scheme:
    """The scheme of that name.

    Raises:
        InputError: listing the names that there are.
    """
    if name not in SCHEMES:
        raise InputError(f"no quantization scheme {name!r}; there are: {', '.join(SCHEMES)}")
    return SCHEMES[name]


def find_target(name: str | None) -> Target:
    """The target of that name, or the one that this machine is.

    Raises:
        InputError: listing the names that there are.
    """
    if name is None:
        return TARGETS[machine_target(cpu_features())]
    if name not in TARGETS:
        raise InputError(f"no target {name!r}; there are: {', '.join(TARGETS)}")
    return TARGETS[name]


def machine_target(features: frozenset[str]) -> str:
    """Name of the target that a CPU of these features is."""
    if "asimd" in features:
        return "arm64"
    return "cpu-vnni" if features & set(EXACT_PRODUCTS) else "cpu-avx2"


def check_scheme(scheme: Scheme, target: Target) -> None:
    """Refuse a scheme that a target can't run.

    Raises:
        InputError: naming what it can.
    """
    if scheme.name not in target.schemes:
        raise InputError(
            f"target {target.name} can't run {scheme.name}; it runs: {', '.join(target.schemes)}"
        )
