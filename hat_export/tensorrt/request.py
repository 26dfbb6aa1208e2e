"""What engines are asked for: sizes and targets, checked before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hat_export.bundle.engines import Profile, Range, target_names
from hat_export.errors import InputError
from hat_export.runtime.trt_library import TensorRT, find_gpu
from hat_export.spec import ModelSpec

#: First compute capability with each precision's tensor core products. fp16 runs on all that
#: TensorRT supports.
FIRST_TARGET = {"fp32": 75, "fp16": 75, "bf16": 80, "int8": 75, "fp8": 89}
#: The one target on which TensorRT-RTX has no products in float32 (they aren't in TF32 there).
TURING = 75
#: Targets below are built for only when asked for: Turing needs slower kernels in the same engine.
FIRST_DEFAULT_TARGET = 80


@dataclass(frozen=True)
class ProfileRequest:
    """Sizes that the engines shall take.

    Attributes:
        batch: Images or captions per call.
        shortest: Fewest word pieces per caption.
        tuned: Word pieces for which engines are tuned; more than the longest means the longest.
        longest: Most word pieces per caption; None for the most that the model takes.
    """

    batch: Range
    shortest: int
    tuned: int
    longest: int | None

    def resolve(self, spec: ModelSpec) -> Profile:
        """Ranges of all dynamic dimensions for a model.

        Raises:
            InputError: if sizes aren't in order, or beyond the model.
        """
        longest = self.longest or spec.max_words
        if longest > spec.max_words:
            raise InputError(
                f"--max-words {longest}: this model takes captions of at most {spec.max_words}"
            )
        words = Range(self.shortest, max(self.shortest, min(self.tuned, longest)), longest)
        for what, sizes in (("batch", self.batch), ("words", words)):
            if not 1 <= sizes.smallest <= sizes.best <= sizes.largest:
                raise InputError(
                    f"--min-{what} {sizes.smallest}, --opt-{what} {sizes.best}, --max-{what} "
                    f"{sizes.largest}: expected them in ascending order"
                )
        return {"images": self.batch, "captions": self.batch, "words": words}


def choose_targets(library: TensorRT, precision: str, wanted: Sequence[int]) -> tuple[int, ...]:
    """Compute capabilities to build for; empty for the GPU at hand.

    Raises:
        InputError: if the library or the precision can't be had on a wanted one.
    """
    first = FIRST_TARGET[precision]
    for target in wanted:
        if target < first:
            raise InputError(f"--sm {target}: {precision} needs sm_{first} or newer")
    if library.targets:
        if TURING in wanted and precision == "fp32":
            raise InputError(f"--sm {TURING}: {library} has no fp32 products there; use --fp16")
        unknown = [target for target in wanted if target not in library.targets]
        if unknown:
            raise InputError(
                f"--sm {unknown[0]}: {library} builds for {target_names(library.targets)}; others "
                "need --runtime tensorrt on such a GPU"
            )
        if wanted or find_gpu() is not None:
            return tuple(sorted(set(wanted)))
        lowest = max(first, FIRST_DEFAULT_TARGET)
        return tuple(target for target in library.targets if target >= lowest)
    gpu = find_gpu()
    chosen = tuple(sorted(set(wanted)))
    if gpu is None or not chosen or chosen == (gpu.capability,):
        return chosen
    if len(chosen) == 1 or min(*chosen, gpu.capability) < FIRST_DEFAULT_TARGET:
        raise InputError(
            f"--sm {chosen[0]}: {library} builds for the GPU at hand, {gpu.name} "
            f"(sm_{gpu.capability}), or portably for several targets from "
            f"sm_{FIRST_DEFAULT_TARGET} on; build on such a GPU, or with --runtime tensorrt-rtx"
        )
    return chosen
