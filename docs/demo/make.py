"""Build the page that classifies a drawn digit by the float, 4-bit and 2-bit files, side by side.

    npm ci --prefix docs/demo --ignore-scripts
    python docs/demo/make.py results

The first line brings onnxruntime-web. The second writes ``build/index.html`` and what it needs
beside it, of the results of the default. The page is opened from the disk or from any web server. A
browser lets no page of a disk read other files, so that models and runtime are texts in a script.
"""

import argparse
import base64
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import onnx
import onnx_ir

from synq.config import layout
from synq.data.datasets import digits
from synq.errors import ArtifactError, UserError
from synq.io.artifacts import read_json
from synq.models.teacher import Teacher, read_teacher
from synq.quantization.onnx import to_onnx
from synq.runtime.process import prepare

HERE = Path(__file__).parent
RUNTIME = HERE / "node_modules/onnxruntime-web/dist"
ENGINE = ("ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
OF_EACH_CLASS = 2  # test images to pick


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, help="a folder of results")
    parser.add_argument("--model", default="digits-resnet20", help="(default: %(default)s)")
    parser.add_argument("--bits", nargs="+", default=["w4a4", "w2a2"], help="(default: w4a4 w2a2)")
    parser.add_argument("--method", default="synq-plus", help="(default: %(default)s)")
    parser.add_argument("--seed", default="0", help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=HERE / "build", help="(default: beside it)")
    try:
        build(**vars(parser.parse_args(arguments)))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def build(results: Path, model: str, bits: list[str], method: str, seed: str, output: Path) -> None:
    """Write the page; ArtifactError where the runtime, the network or a student is not there."""
    if not RUNTIME.is_dir():
        raise ArtifactError(f"{RUNTIME} is not there; npm ci --prefix {HERE} --ignore-scripts")
    network = read_teacher(results / layout.TEACHER.format(model=model), prepare("cpu", 1))
    runs = [{"model": model, "bits": own, "method": method, "seed": seed} for own in bits]
    students = [_student(results, run, network) for run in runs]
    metrics = [read_json(results / layout.METRICS.format(**run), "metrics") for run in runs]
    output.mkdir(parents=True, exist_ok=True)
    whole = output / "float.onnx"
    onnx_ir.save(to_onnx(network.model, network.image_shape, students[0][1]), whole)
    models = [_model("full precision", whole, metrics[0]["teacher"]["top1"])]
    for run, (path, _), found in zip(runs, students, metrics, strict=True):
        models.append(_model(run["bits"].upper(), path, found["selected"]["top1"]))
    whole.unlink()
    data = {
        "models": models,
        "about": {key: students[0][1][key] for key in ("names", "image_size", "mean", "std")},
        "tests": metrics[0]["test_images"],
        "digits": _digits(),
        "engine": {Path(name).suffix[1:]: _text(RUNTIME / name) for name in ENGINE},
    }
    (output / "data.js").write_text(f"const DATA = {json.dumps(data)};\n", "utf-8")
    for path in (RUNTIME / "ort.wasm.min.js", HERE / "index.html", HERE / "demo.js"):
        shutil.copy(path, output)
    print(f"open {output / 'index.html'}")


def _student(results: Path, run: dict[str, str], network: Teacher) -> tuple[Path, dict[str, Any]]:
    """A run's ONNX file and its metadata; ArtifactError where it is not of this network."""
    path = results / layout.ONNX.format(**run)
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist; run the workflow, or name another run")
    properties = onnx.load(path, load_external_data=False).metadata_props
    about: dict[str, Any] = json.loads({p.key: p.value for p in properties}.get("synq", "{}"))
    if about.get("teacher_sha256") != network.sha256 or network.image_shape[0] != 1:
        raise ArtifactError(f"{path} is no student of {network.name} for grey images")
    return path, about


def _model(name: str, path: Path, top1: float | None) -> dict[str, Any]:
    return {"name": name, "bytes": path.stat().st_size, "top1": top1, "onnx": _text(path)}


def _text(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _digits() -> list[dict[str, Any]]:
    """The first test images of each class, 8x8, from 0 to 16 as scikit-learn has them."""
    images = digits("test", channels=1, size=8)
    rows = [row for c in range(10) for row in (images.labels == c).nonzero()[:OF_EACH_CLASS, 0]]
    return [
        {
            "label": int(images.labels[row]),
            "pixels": (images.read(row[None])[0, 0] * 16).int().flatten().tolist(),
        }
        for row in rows
    ]


if __name__ == "__main__":
    sys.exit(main())
