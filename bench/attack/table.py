"""Every door; one line each."""

from __future__ import annotations

from bundle_doors import EngineCacheDoor, GraphDoor, HashDoor, ManifestDoor, PartDoor, TritonDoor
from checkpoint_doors import (
    ExploitDoor,
    FolderDoor,
    LegacyDoor,
    SafetensorsDoor,
    ZipCheckpointDoor,
)
from data_doors import (
    CaptionDoor,
    HuggingFaceDoor,
    KarpathyDoor,
    PictureDoor,
    SourceDoor,
    TableDoor,
)
from doors import Door
from index_doors import CacheDoor, IndexDoor
from report_doors import CompareDoor, MergeDoor, PlanDoor, StateDoor

DOORS: dict[str, Door] = {
    "exploits": ExploitDoor(),
    "zip": ZipCheckpointDoor(),
    "legacy": LegacyDoor(),
    "safetensors": SafetensorsDoor(),
    "folder": FolderDoor(),
    "manifest": ManifestDoor(),
    "hashes": HashDoor(),
    "graph": GraphDoor(),
    "parts": PartDoor(),
    "triton": TritonDoor(),
    "engines": EngineCacheDoor(),
    "images-index": IndexDoor("images"),
    "captions-index": IndexDoor("captions"),
    "cache": CacheDoor(),
    "karpathy": KarpathyDoor(),
    "tables": TableDoor(),
    "huggingface": HuggingFaceDoor(),
    "sources": SourceDoor(),
    "pictures": PictureDoor(),
    "captions": CaptionDoor(),
    "plan": PlanDoor(),
    "state": StateDoor(),
    "compare": CompareDoor(),
    "merge": MergeDoor(),
}
