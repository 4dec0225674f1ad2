"""Students in ONNX Runtime: ``python -m benchmarks.runtime``.

How fast they are, in units of the float network's time in the same process, on networks with random
weights; and the same for what the runtime's own static quantization makes of the float file. With
--results and --test instead: the classes of torch and of the runtime on real images, of the runs of
a config and a folder with one directory a class.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir
import onnxruntime
import torch
from onnxruntime import quantization
from tabulate import tabulate
from torch import Tensor

from benchmarks.subjects import untrained
from benchmarks.timing import ratios
from synq.config.calibration import Calibration
from synq.config.images import TestSet
from synq.data.datasets import read
from synq.models.build import frozen
from synq.models.teacher import read_teacher
from synq.quantization.calibration import calibrate
from synq.quantization.convert import quantize
from synq.quantization.kernels import settle_biases
from synq.quantization.onnx import to_onnx
from synq.quantization.quantizers import Recipe
from synq.quantization.runtime import compared as compare
from synq.quantization.runtime import in_onnxruntime, session_of
from synq.quantization.student import read_student
from synq.runtime.process import generator_for

CPU = torch.device("cpu")
CALIBRATED_ON = 4  # images
CALLS = 8  # of single images, in one measurement
STATIC = "ONNX Runtime's own W8A8"
# What is measured: widths and scope.
RECIPES = {
    "W8A8, everything": Recipe(8, 8, scope="everything"),
    "W4A4, everything": Recipe(4, 4, scope="everything"),
    "W8A8, calls": Recipe(8, 8),
    "W4A4, calls": Recipe(4, 4),
}


class _Images(quantization.CalibrationDataReader):  # type: ignore[misc]
    """The images that the runtime's own quantization is calibrated on, one at a time."""

    def __init__(self, images: Tensor) -> None:
        self.images = iter(images.split(1))

    def get_next(self) -> Any:
        image = next(self.images, None)
        return None if image is None else {"images": image.numpy()}


def files(architecture: str, size: int, folder: Path) -> dict[str, Path]:
    """The float file as the first, the runtime's own, and one for each of ``RECIPES``."""
    shape = (3, size, size)
    images = torch.randn(CALIBRATED_ON, *shape, generator=generator_for(0))
    classes = 10 if "cifar10" in architecture else 1000
    found = {"float": folder / "float.onnx", STATIC: folder / "static.onnx"}
    network = frozen(untrained(architecture, classes, images))
    torch.onnx.export(
        network,
        (images[:2],),
        found["float"],
        dynamo=True,
        external_data=False,
        opset_version=21,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    quantization.quantize_static(
        found["float"],
        found[STATIC],
        _Images(images),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    for name, recipe in RECIPES.items():
        student = quantize(frozen(untrained(architecture, classes, images)), recipe, shape).eval()
        calibrate(student, [images], Calibration(range_estimator="minmax"))
        settle_biases(student, shape)
        found[name] = folder / f"{name}.onnx"
        integers = recipe.scope == "everything"
        onnx_ir.save(to_onnx(student, shape, {}, integers=integers), found[name])
    return found


def _repeat(session: onnxruntime.InferenceSession, images: Any, calls: int) -> None:
    for _ in range(calls):
        session.run(None, {"images": images})


def speeds(
    paths: Mapping[str, Path], size: int, batch: int, threads: int, repeats: int
) -> dict[str, str]:
    """Each file's time in units of the float one's, median and interquartile range.

    Of one thread the processor's time, which a busy machine moves little; of several by the clock.
    """
    calls = max(1, CALLS // batch)
    images = torch.randn(batch, 3, size, size, generator=generator_for(1)).numpy()
    runs: dict[str, Callable[[], object]] = {
        name: partial(_repeat, session_of(path, threads), images, calls)
        for name, path in paths.items()
    }
    unit = runs.pop("float")
    clock = time.process_time if threads == 1 else time.perf_counter
    found, seconds = ratios(unit, runs, repeats, clock)
    shown = {name: f"{ratio.median:.2f} ({ratio.spread:.2f})" for name, ratio in found.items()}
    return {"float, ms": f"{1000 * seconds / calls:.1f}", **shown}


def compared(results: Path, onnx: Path, test: TestSet) -> list[object]:
    """A row: the run; in percent images of the same class, top-1 in torch, in the runtime; kB."""
    run = onnx.parent.relative_to(results / "runs")
    network = read_teacher(results / "models" / run.parts[0] / "teacher.safetensors", CPU)
    student, _ = read_student(onnx.with_name("student.safetensors"), network)
    kind = {"classes": network.classes, "image_shape": network.image_shape, "name": network.name}
    images = read(test.dataset, test, "test", **kind)
    found = compare(
        in_onnxruntime(onnx, 0), student, images.batches(256, network.mean, network.std)
    )
    kilobytes = onnx.stat().st_size / 1000
    return [run, found.agreement, found.top1_in_torch, found.top1, kilobytes]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtime", description=__doc__)
    parser.add_argument("--results", type=Path, help="the folder of results")
    parser.add_argument("--test", help="the folder of the test set")
    parser.add_argument("--runs", default="*/*/*/seed0", help="which runs, as a pattern")
    parser.add_argument(
        "--networks",
        nargs="+",
        metavar="ARCHITECTURE:SIZE",
        default=["resnet20_cifar10:32", "resnet18:224", "mobilenetv2_w1:224"],
        help="of pytorchcv, with the side of the images in px",
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.results:
        if not arguments.test:
            parser.error("--results needs --test")
        test = TestSet(dataset="folder", path=arguments.test)
        found = sorted(arguments.results.glob(f"runs/{arguments.runs}/student.onnx"))
        rows = [compared(arguments.results, file, test) for file in found]
        headers = ["run", "same class", "top-1 in torch", "top-1 in the runtime", "kB"]
        print(tabulate(rows, headers, tablefmt="github", floatfmt=".2f"))
        return
    print(f"ONNX Runtime {onnxruntime.__version__}, in units of the float network's time\n")
    for words in arguments.networks:
        architecture, _, size = words.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            paths = files(architecture, int(size), Path(folder))
            columns = {
                f"batch {batch}, {threads} thread{'s' * (threads > 1)}": speeds(
                    paths, int(size), batch, threads, arguments.repeats
                )
                for batch in arguments.batch
                for threads in arguments.threads
            }
            names = next(iter(columns.values()))
            table = [[name, *(own[name] for own in columns.values())] for name in names]
            headers = [f"{architecture}, {size} px", *columns]
            print(tabulate(table, headers, tablefmt="github", disable_numparse=True), flush=True)
            print(flush=True)


if __name__ == "__main__":
    main()
