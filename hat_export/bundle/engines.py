"""What a bundle says of its TensorRT engines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

#: What builds and runs engines.
LIBRARIES = ("tensorrt", "tensorrt-rtx")


class Range(NamedTuple):
    """Sizes of one dynamic dimension in a profile.

    Attributes:
        smallest: Smallest size that the engine takes.
        best: Size for which it is tuned.
        largest: Largest size that it takes.
    """

    smallest: int
    best: int
    largest: int

    def __contains__(self, size: object) -> bool:
        """Whether the engine takes the size."""
        return isinstance(size, int) and self.smallest <= size <= self.largest


#: Dynamic dimension (``images``, ``captions``, ``words``) to its sizes.
Profile = Mapping[str, Range]


#: What an engine can be built from.
FORMS = ("graph", "plugin")

Shape = tuple[int, ...]


def shape_range(shape: tuple[int | str, ...], profile: Profile) -> tuple[Shape, Shape, Shape]:
    """Smallest, best and largest shape of an input under a profile.

    Args:
        shape: Sizes; a string names a dynamic dimension.
        profile: Ranges of those dimensions.
    """

    def at(which: int) -> Shape:
        return tuple(profile[dim][which] if isinstance(dim, str) else dim for dim in shape)

    return at(0), at(1), at(2)


@dataclass(frozen=True)
class EngineInfo:
    """One engine of a bundle.

    Attributes:
        file: File name inside the bundle.
        log: File name of the builder's log.
        library: ``tensorrt`` or ``tensorrt-rtx``.
        version: The library's version; engines run in no other.
        targets: Compute capabilities (10 * major + minor) that the engine was built for.
        device: GPU on which it was built; empty where there was none.
        tf32: Whether products of float32 tensors may round their inputs to TF32.
        profiles: Sizes that the engine takes; at run time the first one that fits is used.
        attention_expected: Attention layers of the model in this graph.
        attention_fused: How many of them are one fused kernel of the engine.
        attention_apart: The others, by the name of their node.
        graph_sha256: Hash of the ONNX graph (with its external data) that it was built from.
        form: One of :data:`FORMS`: built from the ONNX graph, or from the alignment plugin, which
            computes the same from other inputs.
    """

    file: str
    log: str
    library: str
    version: str
    targets: tuple[int, ...]
    device: str
    tf32: bool
    profiles: tuple[Profile, ...]
    attention_expected: int
    attention_fused: int
    attention_apart: tuple[str, ...]
    graph_sha256: str
    form: str = "graph"

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> EngineInfo:
        """Parse an entry of a manifest.

        Raises:
            KeyError, TypeError, ValueError: if a field is missing or of another kind.
        """
        profiles = tuple(
            {str(name): Range(*(int(size) for size in sizes)) for name, sizes in profile.items()}
            for profile in content["profiles"]
        )
        if not profiles:
            raise ValueError("an engine without a profile")
        form = str(content.get("form", "graph"))
        if form not in FORMS:
            raise ValueError(f"an engine of form {form}")
        if content["library"] not in LIBRARIES:
            raise ValueError(f"an engine of {content['library']!r}")
        return cls(
            file=str(content["file"]),
            log=str(content["log"]),
            library=str(content["library"]),
            version=str(content["version"]),
            targets=tuple(int(target) for target in content["targets"]),
            device=str(content["device"]),
            tf32=bool(content["tf32"]),
            profiles=profiles,
            attention_expected=int(content["attention_expected"]),
            attention_fused=int(content["attention_fused"]),
            attention_apart=tuple(str(name) for name in content["attention_apart"]),
            graph_sha256=str(content["graph_sha256"]),
            form=form,
        )


def target_names(targets: Iterable[int]) -> str:
    """``sm_80, sm_89``: compute capabilities as users write them."""
    return ", ".join(f"sm_{target}" for target in targets)
