"""Settings that the runtime of ``export.target`` can never take, told before any job runs."""

import importlib.util

from synq.config.calibration import Calibration
from synq.config.export import Export

# Without it, ONNX Runtime makes UINT8 of INT8 on x86, and fails over a MaxPool between the two.
INT8_ALLOWED = "session.qdqisint8allowed"
# Without it, ONNX Runtime's kernels for x86 without VNNI add two products of 8 bits in 16 bits, and
# clip what does not fit: large activations by large weights of 8 bits. It has no effect elsewhere.
EXACT = "session.x64quantprecision"

_SIGNED = "its codes are INT8 without zero points, which do not hold"


def unfit(export: Export, calibration: Calibration, weight_bits: int, activation_bits: int) -> str:
    """Why no network's file of these settings fits the target; empty where one may.

    What ``keep_bits`` leaves out depends on the network, so that the export finds out.
    """
    if export.format == "none" or export.target != "tensorrt" or calibration.keep_bits:
        return ""
    if calibration.scope == "calls":
        return (
            "a layer with codes has to read codes, and of scope: calls the image has none; write "
            "calibration.scope: inputs"
        )
    if activation_bits == 8:
        return f"{_SIGNED} activations of 8 bits; write 7 or fewer"
    if calibration.sum_bits == 8:
        return f"{_SIGNED} an image of 8 bits; write calibration.sum_bits: 7"
    # With scope: everything those are symmetric.
    if calibration.scope == "inputs" and 8 in (weight_bits, calibration.ends_bits):
        return f"{_SIGNED} weights of 8 bits; write 7 or fewer, or calibration.scope: everything"
    return ""


def missing(export: Export) -> str:
    """What is not installed that the target needs; empty where nothing lacks."""
    needed = export.format != "none" and export.target == "openvino"
    if not needed or importlib.util.find_spec("openvino"):
        return ""
    return "export.target is openvino, which is not installed; pip install openvino"
