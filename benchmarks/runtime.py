"""Students in ONNX Runtime and in torch on real images: ``python -m benchmarks.runtime``.

The stage ``export`` compares them on synthetic ones. This needs the results of a config and a test
set in a folder, one directory a class.
"""

import argparse
from pathlib import Path

import onnxruntime
import torch
from tabulate import tabulate

from synq.config.images import TestSet
from synq.data.datasets import read
from synq.models.teacher import read_teacher
from synq.quantization.student import read_student

CPU = torch.device("cpu")


def compared(results: Path, onnx: Path, test: TestSet) -> list[object]:
    """A row: the run; in percent images of the same class, top-1 in torch, in the runtime; kB."""
    run = onnx.parent.relative_to(results / "runs")
    network = read_teacher(results / "models" / run.parts[0] / "teacher.safetensors", CPU)
    student, _ = read_student(onnx.with_name("student.safetensors"), network)
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    kind = {"classes": network.classes, "image_shape": network.image_shape, "name": network.name}
    images = read(test.dataset, test, "test", **kind)
    counts = torch.zeros(3, dtype=torch.long)
    for batch, labels in images.batches(256, network.mean, network.std):
        with torch.inference_mode():
            wanted = student(batch).argmax(1)
        found = torch.from_numpy(session.run(None, {"images": batch.numpy()})[0].argmax(1))
        pairs = ((wanted, found), (wanted, labels), (found, labels))
        counts += torch.stack([(one == other).sum() for one, other in pairs])
    return [run, *(100 * counts / len(images)).tolist(), onnx.stat().st_size / 1000]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtime", description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="the folder of results")
    parser.add_argument("--test", required=True, help="the folder of the test set")
    parser.add_argument("--runs", default="*/*/*/seed0", help="which runs, as a pattern")
    arguments = parser.parse_args()
    test = TestSet(dataset="folder", path=arguments.test)
    files = sorted(arguments.results.glob(f"runs/{arguments.runs}/student.onnx"))
    rows = [compared(arguments.results, file, test) for file in files]
    headers = ["run", "same class", "top-1 in torch", "top-1 in the runtime", "kB"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".2f"))


if __name__ == "__main__":
    main()
