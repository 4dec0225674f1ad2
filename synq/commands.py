"""The commands: their functions, their own arguments, and the settings that they take."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synq.config.calibration import Calibration
from synq.config.evaluation import Evaluation
from synq.config.export import Export
from synq.config.finetune import Finetune
from synq.config.grid import MOST_SEED, Accept
from synq.config.images import RealImages, TestSet
from synq.config.model import Model
from synq.config.synthesis import Synthesis
from synq.config.train import Train


@dataclass(frozen=True)
class Command:
    """A stage as a command: its function, its own arguments, and the settings it takes.

    ``folder`` of the package is where the function's module is.
    """

    function: str
    text: str
    arguments: Mapping[str, dict[str, Any]]
    settings: Mapping[str, type] = field(default_factory=dict)
    computes: bool = True
    folder: str = "stages"


def _path(text: str, **more: Any) -> dict[str, Any]:
    return {"type": Path, "required": True, "metavar": "FILE", "help": text, **more}


def _word(text: str, kind: Callable[[str], Any] = str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "required": True, "help": text, **more}


_TEACHER = {"teacher": _path("the teacher's checkpoint")}
_RUN = {
    "bits": _word("widths, e.g. w4a4: weights and activations, 2 to 8 bits", metavar="wXaY"),
    "method": _word("name of the method, for the record", metavar="NAME"),
    "image_set": _word("name of the image set, for the record", metavar="NAME"),
}


def seed(text: str) -> int:
    """As torch and HDF5 can hold it."""
    value = int(text)
    if not 0 <= value <= MOST_SEED:
        raise ValueError
    return value


_SEED = {"seed": _word(f"seed of all randomness, 0 to {MOST_SEED}", seed, metavar="N")}
_CLASSES = {"classes": _word("the classes", int, nargs="+", metavar="C")}
_FOLDER = {
    "shard_folder": _path(
        "the folder that the names of the shards begin in (default: this one)",
        required=False,
        default=Path(),
        metavar="DIR",
    )
}
THREADS = {
    "threads": _word(
        "CPU threads; 0 leaves the choice to torch (default: 0)",
        int,
        required=False,
        default=0,
        metavar="N",
    )
}
_METRICS = {
    "metrics": _path("the metrics.json of every run", nargs="+"),
    "run_folder": _path(
        "the folder that their names begin in (default: this one)",
        required=False,
        default=Path(),
        metavar="DIR",
    ),
}
# Lists of files, and the argument that names their folder.
FOLDERS = {"shards": "shard_folder", "metrics": "run_folder", "exports": "run_folder"}
_TABLE = {"output": _path("the table to write; gets the three suffixes")}
_NAME = {"name": _word("name of the model, for the record", metavar="NAME")}

COMMANDS = {
    "quantize": Command(
        "command.quantize_factory",
        "quantize a network that a function returns, in one go and without a config",
        {
            "factory": _word(
                "the function, which returns the network with or without weights",
                metavar="PACKAGE.MODULE:FUNCTION",
            ),
            "weights": _path("a state dict to load (default: none)", required=False),
            "image_size": _word("height and width of the input, in px", int, metavar="N"),
            "channels": _word(
                "channels of the input (default: 3)", int, required=False, default=3, metavar="N"
            ),
            "mean": _word("mean of each channel, of images in [0, 1]", float, nargs="+"),
            "std": _word("standard deviation of each channel", float, nargs="+"),
            "classes": _word(
                "classes (default: as many as the network has logits)",
                int,
                required=False,
                metavar="N",
            ),
            "bits": _RUN["bits"],
            "method": _word(
                "a method of config.yaml (default: synq-plus)",
                required=False,
                default="synq-plus",
                metavar="NAME",
            ),
            "seed": _word(
                "seed of all randomness (default: 0)", seed, required=False, default=0, metavar="N"
            ),
            "test": _path(
                "test images, in one directory without labels, or in one per class, in "
                "alphabetical order, or in that of "
                '--set "test.names=[first, second, ...]" (default: agreement is measured)',
                required=False,
                metavar="DIR",
            ),
            "set": _word(
                "settings to change, by their names in config.yaml (default: none)",
                required=False,
                nargs="*",
                default=[],
                metavar="SECTION.NAME=VALUE",
            ),
            "output": _path("the folder to write into", metavar="DIR"),
        },
        folder="api",
    ),
    "fetch": Command(
        "fetch.fetch",
        "bring pretrained weights from a path or URL, verified, as a teacher",
        {
            **_NAME,
            "download": _path("where the file itself goes"),
            "output": _path("the teacher's checkpoint to write"),
        },
        {"settings": Model},
        computes=False,
    ),
    "fetch-zoo": Command(
        "fetch.fetch_zoo",
        "bring pretrained weights from a model zoo into the store, verified, as a teacher",
        {**_NAME, "output": _path("the teacher's checkpoint to write")},
        {"settings": Model},
        computes=False,
    ),
    "train": Command(
        "train.train",
        "train the embedded default's network; how its weights in this package were made",
        {"output": _path("the state dict to write, as safetensors")},
        {"settings": Train},
    ),
    "inspect": Command(
        "inspect.inspect",
        "tell what of a teacher is quantized and whether it fits, before any work",
        {
            **_TEACHER,
            "require": _word(
                "settings of methods that it must fit (default: that images can be synthesized)",
                required=False,
                nargs="*",
                metavar="METHOD:SETTING=VALUE",
            ),
            "recipe": _word(
                "what the teacher is made of, for the record",
                required=False,
                default="",
                metavar="X",
            ),
            "json": _path("a JSON file to write all of it to, and not here", required=False),
        },
        computes=False,
    ),
    "synthesize": Command(
        "synthesize.synthesize_shard",
        "synthesize the images of some classes as one HDF5 shard",
        {
            **_TEACHER,
            "output": _path("the shard to write"),
            **_CLASSES,
            **_SEED,
        },
        {"settings": Synthesis},
    ),
    "collect": Command(
        "collect.collect_shard",
        "write real images of some classes as a shard like the synthetic ones (few-shot)",
        {
            **_TEACHER,
            "output": _path("the shard to write"),
            **_CLASSES,
            **_SEED,
        },
        {"settings": RealImages},
    ),
    "borrow": Command(
        "borrow.borrow_shard",
        "write a shard of another network's images as this one takes them",
        {
            **_TEACHER,
            "lent": _path("the other network's shard"),
            "output": _path("the shard to write"),
        },
    ),
    "sensitivity": Command(
        "sensitivity.sensitivity",
        "tell how much the answers change when each layer alone is quantized",
        {
            **_TEACHER,
            "shards": _path("the shards of synthetic images", nargs="+"),
            **_FOLDER,
            **_RUN,
            **_SEED,
            "output": _path("the JSON file to write; .csv and .md are written beside it"),
        },
        {"calibration": Calibration},
    ),
    "sensitivity-figure": Command(
        "sensitivity.draw",
        "draw what sensitivity found, a bar a layer",
        {
            "sensitivity": _path("the JSON file that sensitivity wrote"),
            "output": _path("the SVG file to write"),
        },
        computes=False,
    ),
    "finetune": Command(
        "finetune.finetune_student",
        "quantize, calibrate and fine-tune one student",
        {
            **_TEACHER,
            "shards": _path("the shards of synthetic images", nargs="+"),
            **_FOLDER,
            **_RUN,
            **_SEED,
            "from_student": _path(
                "a student of more bits whose weights this one begins with (default: none)",
                required=False,
            ),
            "output": _path("the selected student's checkpoint to write"),
            "snapshots": _path("the safetensors file of students to evaluate, to write"),
        },
        {"calibration": Calibration, "settings": Finetune},
    ),
    "evaluate-teacher": Command(
        "evaluate_teacher.evaluate_teacher",
        "measure the full-precision network on the test images",
        {**_TEACHER, "output": _path("the JSON file to write")},
        {"test": TestSet, "settings": Evaluation},
    ),
    "evaluate": Command(
        "evaluate.evaluate_run",
        "measure a run's students on the test images",
        {
            **_TEACHER,
            "teacher_metrics": _path("what evaluate-teacher wrote"),
            "snapshots": _path("the students that finetune wrote"),
            "shards": _path(
                "the shards that they were trained on, for dataset: none alone",
                nargs="*",
                required=False,
                default=[],
            ),
            **_FOLDER,
            "output": _path("the metrics.json to write"),
        },
        {"test": TestSet, "settings": Evaluation},
    ),
    "export": Command(
        "export.export_student",
        "write a run's selected student packed to the bit and as ONNX, compared in ONNX Runtime",
        {
            **_TEACHER,
            "student": _path("the student that finetune wrote"),
            "shards": _path("the shards of the images to compare on", nargs="+"),
            **_FOLDER,
            "output": _path("the ONNX file to write"),
            "packed": _path("the packed file to write, as safetensors"),
            "record": _path("the JSON file to write, with what was found"),
            **THREADS,
        },
        {"settings": Export, "test": TestSet},
        computes=False,
    ),
    "unpack": Command(
        "unpack.unpack_student",
        "make a student again of its packed file, of which every forward is the same",
        {
            **_TEACHER,
            "packed": _path("the packed file that export wrote"),
            "output": _path("the student's checkpoint to write"),
        },
        computes=False,
    ),
    "predict": Command(
        "predict.predict",
        "name the classes of images with an exported student, in ONNX Runtime",
        {
            "model": {"type": Path, "metavar": "STUDENT", "help": "the ONNX file"},
            "images": {"type": Path, "nargs": "+", "metavar": "IMAGE", "help": "image files"},
            "top": _word(
                "how many classes of each (default: 5)",
                int,
                required=False,
                default=5,
                metavar="N",
            ),
            "json": {
                "action": "store_true",
                "required": False,
                "help": "write JSON in place of lines",
            },
        },
        computes=False,
    ),
    "tables": Command(
        "tables.write_accuracy",
        "write the accuracy of all runs as .csv, .md and .tex, and what to think of it beside them",
        {
            **_METRICS,
            "exports": _path(
                "the export.json of every run that has one", nargs="*", required=False, default=[]
            ),
            "ceilings": _word(
                "methods and their ceilings, to show the image gap between them (default: none)",
                required=False,
                nargs="*",
                default=[],
                metavar="METHOD=CEILING",
            ),
            "inspections": _path(
                "the inspection.json of every model (default: none)",
                nargs="*",
                required=False,
                default=[],
            ),
            "real": _word(
                "image sets that are made of real images (default: none)",
                required=False,
                nargs="*",
                default=[],
                metavar="SET",
            ),
            "benchmarks": _path("folder of the stages' seconds", metavar="DIR"),
            **_TABLE,
        },
        {"accept": Accept},
        computes=False,
    ),
    "ablation": Command(
        "tables.write_ablation",
        "write each method's difference to the full one as .csv, .md and .tex",
        {
            **_METRICS,
            "full": _word("the method that the others are compared with", metavar="NAME"),
            **_TABLE,
        },
        computes=False,
    ),
    "verdict": Command(
        "verdict.tell",
        "say what each quantization lost and whether that is accepted; exit code 1 where it is not",
        {"results": {"type": Path, "metavar": "RESULTS", "help": "the folder of results"}},
        computes=False,
    ),
    "page": Command(
        "page.write_page",
        "write one page of all results, with its figures",
        {"results": {"type": Path, "metavar": "RESULTS", "help": "the folder of results"}},
        computes=False,
    ),
    "status": Command(
        "status.status",
        "say what is done, running, waiting or has failed; at any time, from the files alone",
        {
            "results": {
                "type": Path,
                "nargs": "?",
                "default": Path("results"),
                "metavar": "RESULTS",
                "help": "the folder of results (default: results)",
            },
            "watch": {
                "type": float,
                "required": False,
                "nargs": "?",
                "const": 10.0,
                "default": 0.0,
                "metavar": "SECONDS",
                "help": "say it again and again, so often (default: once; without a number: 10)",
            },
        },
        computes=False,
    ),
    "verify": Command(
        "verify.verify",
        "check every artifact below a folder of results: whole, and made from one another",
        {"results": {"type": Path, "metavar": "RESULTS", "help": "the folder of results"}},
        computes=False,
    ),
}
