"""The file for a runtime."""

from dataclasses import dataclass

from synq.config.fields import setting


@dataclass(frozen=True, kw_only=True)
class Export:
    """The file for a runtime."""

    format: str = setting(
        "onnx", "what the selected student is written as, too", choices=("onnx", "none")
    )
    target: str = setting(
        "onnxruntime",
        "runtime that the file is for: onnxruntime; openvino (compared there too, and no 2-bit "
        "types, which it has none of); tensorrt (INT8 without zero points, checked by TensorRT's "
        "rules, which never runs)",
        choices=("onnxruntime", "openvino", "tensorrt"),
    )
    images: int = setting(
        1000, "synthetic images on which the runtime is compared with torch, at most", minimum=1
    )
    test_images: int = setting(
        1000, "images of the test set that the runtime classifies too, at most", minimum=0
    )
    least_agreement: float = setting(
        95.0,
        "the least share of them on which both must name the same class",
        unit="percent",
        minimum=0,
        maximum=100,
    )
