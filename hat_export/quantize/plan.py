"""A plan: which layer is quantized how. Saved as JSON that a person can read and change."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hat_export.base.files import write_text
from hat_export.errors import InputError
from hat_export.quantize.calibration import METHODS
from hat_export.quantize.layers import Layer
from hat_export.quantize.schemes import (
    FP32,
    SCHEMES,
    Scheme,
    Target,
    check_scheme,
    find_scheme,
    find_target,
)

FORMAT = "hat-export quantization plan"
VERSION = 1


@dataclass(frozen=True)
class Plan:
    """What to do with every layer.

    Attributes:
        target: Name of the machine it is for.
        layers: Layer name to scheme; a layer that isn't named stays float32.
        kept: Layers left in float32 on purpose, with the reason.
        method: How static ranges are chosen; one of
            :data:`hat_export.quantize.calibration.METHODS`.
        smooth: Whether outliers are moved into weights where that makes products more exact.
        compensate: Whether weights are rounded so that later ones make up for earlier ones' errors
            on the calibration data.
    """

    target: str
    layers: Mapping[str, str]
    kept: Mapping[str, str] = field(default_factory=dict)
    method: str = "minmax"
    smooth: bool = False
    compensate: bool = False

    def scheme_of(self, layer: str) -> Scheme | None:
        """How a layer is quantized; None if it isn't."""
        name = self.layers.get(layer, FP32)
        return None if name == FP32 else find_scheme(name)

    @property
    def schemes(self) -> tuple[str, ...]:
        """Schemes in use, in the order of the table."""
        used = set(self.layers.values())
        return tuple(name for name in SCHEMES if name in used)

    @property
    def calibrated(self) -> bool:
        """Whether applying it takes calibration data."""
        return (
            self.smooth
            or self.compensate
            or any(SCHEMES[name].activations == "static" for name in self.schemes)
        )

    def title(self) -> str:
        """Its schemes with the number of layers of each."""
        count = Counter(self.layers.values())
        parts = [f"{count[name]} {name}" for name in self.schemes]
        return ", ".join([*parts, f"{len(self.kept)} {FP32}"] if self.kept else parts) or FP32

    def to_json(self) -> dict[str, Any]:
        """Content of the file."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "target": self.target,
            "method": self.method,
            "smooth": self.smooth,
            "compensate": self.compensate,
            "layers": dict(self.layers),
            "kept": dict(self.kept),
        }


def uniform_plan(
    layers: Iterable[Layer],
    scheme: Scheme,
    target: Target,
    keep: Mapping[str, str] | None = None,
    method: str = "minmax",
    smooth: bool = False,
    compensate: bool = False,
) -> Plan:
    """Every layer alike.

    Args:
        layers: Of both encoders.
        scheme: For products. A table of embeddings is stored in as many bits.
        target: The machine.
        keep: Layers, or beginnings of their names, that stay float32, with the reason.
        method: How static ranges are chosen.
        smooth: Whether to move outliers into weights.
        compensate: Whether later weights make up for earlier ones' rounding.

    Raises:
        InputError: if the target can't run the scheme, or a layer to keep doesn't exist.
    """
    check_scheme(scheme, target)
    chosen, kept = {}, {}
    layers = tuple(layers)
    for beginning in keep or {}:
        if not any(layer.name.startswith(beginning) for layer in layers):
            raise InputError(
                f"no layer begins with {beginning!r}; a saved plan (--save-plan) lists all names"
            )
    for layer in layers:
        reasons = [why for start, why in (keep or {}).items() if layer.name.startswith(start)]
        if reasons:
            kept[layer.name] = reasons[0]
        elif layer.table and target.standard:
            kept[layer.name] = "a table that is looked up, not multiplied"
        else:
            chosen[layer.name] = table_scheme(scheme) if layer.table else scheme.name
    return Plan(target.name, chosen, kept, method, smooth, compensate)


def table_scheme(scheme: Scheme) -> str:
    """How a table is stored where products use a scheme."""
    return "int4-weights" if scheme.bits == 4 else "int8-weights"


def write_plan(path: Path, plan: Plan) -> None:
    """Save a plan.

    Raises:
        OutputError: if the file can't be written.
    """
    write_text(path, json.dumps(plan.to_json(), indent=1) + "\n")


def read_plan(path: Path) -> Plan:
    """Read a plan, as saved or as edited by hand.

    Raises:
        InputError: naming the file and what is wrong in it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable plan ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: not a {FORMAT}")
    if content.get("version") != VERSION:
        raise InputError(f"{path}: version {content.get('version')}; this reads {VERSION}")
    try:
        target = find_target(str(content["target"]))
        layers = {str(key): str(value) for key, value in content["layers"].items()}
        for scheme in set(layers.values()) - {FP32}:
            check_scheme(find_scheme(scheme), target)
        method = str(content.get("method", "minmax"))
        if method not in METHODS:
            raise InputError(f"no method {method!r}; there are: {', '.join(METHODS)}")
        kept = {str(key): str(value) for key, value in content.get("kept", {}).items()}
        layers = {key: value for key, value in layers.items() if value != FP32}
        flags = (bool(content.get(key, False)) for key in ("smooth", "compensate"))
        return Plan(target.name, layers, kept, method, *flags)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: damaged plan ({type(error).__name__}: {error})") from None


def check_plan(plan: Plan, layers: Iterable[Layer]) -> None:
    """Refuse a plan for another model.

    Raises:
        InputError: naming a layer that the model lacks, or a scheme that a table can't have.
    """
    known = {layer.name: layer for layer in layers}
    unknown = [name for name in (*plan.layers, *plan.kept) if name not in known]
    if unknown:
        raise InputError(f"the plan names {unknown[0]!r}, which this model hasn't; make a new plan")
    for name, scheme in plan.layers.items():
        if known[name].table and scheme not in ("int8-weights", "int4-weights"):
            raise InputError(f"{name} is a table: int8-weights or int4-weights, not {scheme}")
