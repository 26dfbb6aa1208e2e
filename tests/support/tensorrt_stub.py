"""Full TensorRT as far as a build goes, without a GPU."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any


class TensorRtStub:
    """Full TensorRT: builds for the GPU at hand, measures kernels, has an inspector."""

    __version__ = "10.14.1"

    def __init__(self) -> None:
        self.config: Any = None
        self.network: Any = SimpleNamespace(num_layers=0)
        self.network_flags = -1
        self.shapes: list[Any] = []
        self.given_timing = b""
        module = self

        class Base:
            def __init__(self) -> None:
                pass

        class Config:
            def __init__(self) -> None:
                self.cleared: list[Any] = []
                self.profiles = 0

            def clear_flag(self, flag: Any) -> None:
                self.cleared.append(flag)

            def add_optimization_profile(self, profile: Any) -> None:
                self.profiles += 1

            def create_timing_cache(self, content: bytes) -> Any:
                module.given_timing = content
                return SimpleNamespace(serialize=lambda: content + b"measured")

            def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
                assert not ignore_mismatch
                return True

        class Builder:
            def __init__(self, logger: Any) -> None:
                self.logger = logger

            def create_network(self, flags: int) -> Any:
                module.network_flags = flags
                return module.network

            def create_builder_config(self) -> Any:
                module.config = Config()
                return module.config

            def create_optimization_profile(self) -> Any:
                return SimpleNamespace(set_shape=lambda *shape: module.shapes.append(shape))

            def build_serialized_network(self, network: Any, config: Any) -> bytes:
                severity = SimpleNamespace(name="WARNING")
                for _ in range(2):
                    self.logger.log(severity, "Builder.cpp:7: something is slow")
                assert config.progress_monitor.step_complete("Building", 0)
                return b"plan"

        class OnnxParser:
            num_errors = 0

            def __init__(self, network: Any, logger: Any) -> None:
                pass

            def parse_from_file(self, path: str) -> bool:
                return True

        class Runtime:
            def __init__(self, logger: Any) -> None:
                pass

            def deserialize_cuda_engine(self, plan: Any) -> Any:
                layers = [
                    {"Name": "_gemm_mha_v2_1", "Metadata": "[ONNX Layer: a/Attention]"},
                    {"Name": "gemm_2", "Metadata": ""},
                ]
                text = json.dumps({"Layers": layers})
                inspector = SimpleNamespace(get_engine_information=lambda kind: text)
                return SimpleNamespace(create_engine_inspector=lambda: inspector)

        self.ILogger = self.IProgressMonitor = Base
        self.Builder, self.OnnxParser, self.Runtime = Builder, OnnxParser, Runtime
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
        self.BuilderFlag = SimpleNamespace(TF32="tf32")
        self.LayerType = SimpleNamespace()
        self.LayerInformationFormat = SimpleNamespace(JSON="json")
        self.HardwareCompatibilityLevel = SimpleNamespace(AMPERE_PLUS="ampere+")
