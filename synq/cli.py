"""The command line: ``synq STAGE --flag value ...``.

Every setting of a stage is a flag of the same name; the rules call the same commands. A stage's
module, and with it torch, is imported when the stage runs, so that ``--help`` is quick.
"""

import argparse
import contextlib
import dataclasses
import importlib
import os
import sys
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import synq
from synq.config.calibration import Calibration
from synq.config.evaluation import Evaluation
from synq.config.export import Export
from synq.config.fields import convert, settings_of
from synq.config.finetune import Finetune
from synq.config.grid import Accept
from synq.config.images import RealImages, TestSet
from synq.config.model import Model
from synq.config.synthesis import Synthesis
from synq.config.train import Train
from synq.errors import ConfigError, UserError


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


def _word(text: str, kind: type = str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "required": True, "help": text, **more}


_TEACHER = {"teacher": _path("the teacher's checkpoint")}
_RUN = {
    "bits": _word("widths, e.g. w4a4: weights and activations, 2 to 8 bits", metavar="wXaY"),
    "method": _word("name of the method, for the record", metavar="NAME"),
    "image_set": _word("name of the image set, for the record", metavar="NAME"),
}
_SEED = {"seed": _word("seed of all randomness", int, metavar="N")}
_CLASSES = {"classes": _word("the classes", int, nargs="+", metavar="C")}
_FOLDER = {
    "shard_folder": _path(
        "the folder that the names of the shards begin in (default: this one)",
        required=False,
        default=Path(),
        metavar="DIR",
    )
}
_THREADS = {
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
_FOLDERS = {"shards": "shard_folder", "metrics": "run_folder", "exports": "run_folder"}
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
                "seed of all randomness (default: 0)", int, required=False, default=0, metavar="N"
            ),
            "test": _path(
                "test images, one directory per class (default: agreement is measured)",
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
            **_THREADS,
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


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="synq", description="Quantize an image classifier without its data."
    )
    top.add_argument("--version", action="version", version=f"synq {synq.__version__}")
    stages = top.add_subparsers(dest="command", required=True, metavar="STAGE")
    for name, command in COMMANDS.items():
        stage = stages.add_parser(name, help=command.text, description=command.text)
        for argument, options in command.arguments.items():
            # What is not required is no flag: an argument by its place, which argparse requires.
            stage.add_argument(_flag(argument) if "required" in options else argument, **options)
        for cls in command.settings.values():
            group = stage.add_argument_group(cls.__name__.lower(), _first_line(cls))
            for setting, (field_, kind) in settings_of(cls).items():
                group.add_argument(_flag(setting), **_options(field_, kind))
        if command.computes:
            stage.add_argument(
                "--device", default="auto", help="auto, cpu, cuda or cuda:n (default: auto)"
            )
            stage.add_argument("--threads", **_THREADS["threads"])
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code, or 2 after one line about what the user can mend."""
    values = vars(parser().parse_args(arguments))
    command = COMMANDS[values.pop("command")]
    fault = _fault(values)
    if fault and fault.is_file() and int(os.environ["SYNQ_ATTEMPT"]) > 1:
        print(f"synq: error: {fault.read_text('utf-8')} (not tried again)", file=sys.stderr)
        return 2
    try:
        for name, cls in command.settings.items():
            own = {key: values.pop(key) for key in settings_of(cls)}
            given = {key: value for key, value in own.items() if value is not None}
            values[name] = convert(cls, given, cls.__name__.lower())
        if values.get("threads", 0) < 0:
            raise ConfigError("threads is negative; write 0 or more")
        module, _, function = command.function.rpartition(".")
        run: Callable[..., int | None] = getattr(
            importlib.import_module(f"synq.{command.folder}.{module}"), function
        )
        code = run(**values) or 0
    except UserError as error:
        print(f"synq: error: {error}", file=sys.stderr)
        if fault:
            with contextlib.suppress(OSError):
                fault.parent.mkdir(parents=True, exist_ok=True)
                fault.write_text(str(error), "utf-8")
        return 2
    if fault:
        fault.unlink(missing_ok=True)
    if not values.keys().isdisjoint(("output", "json")):
        _set_back(values)
    return code


def _fault(values: Mapping[str, Any]) -> Path | None:
    """Where a job keeps the user's fault that it ended by; None for who starts a command himself.

    A batch system kills jobs for memory and time, and a profile repeats them for it: all of them,
    whatever they failed by. ``SYNQ_ATTEMPT`` says how often one was started.
    """
    output = values.get("output") or values.get("json")
    if not (os.environ.get("SYNQ_ATTEMPT") and isinstance(output, Path)):
        return None
    return output.with_name(f"{output.name}.fault")


def _set_back(values: Mapping[str, Any]) -> None:
    """Give results that are newer than the clock, because it was set back, the present time.

    Snakemake removes what a job has made where an input is newer: hours of work, while the clock
    has not reached that time again. The files' content, by which it decides what to remake, stays.
    It gives the outputs the present time itself, so the inputs must not be of a later one. That is
    for files in the results of the workflow that runs this command, which it names in
    ``SYNQ_RESULTS``: the times of all others are their owner's.
    """
    results = os.environ.get("SYNQ_RESULTS")
    if not results:
        return
    for name, value in values.items():
        folder = values.get(_FOLDERS.get(name, ""), Path())
        for word in value if isinstance(value, list) else [value]:
            path = folder / word if isinstance(word, Path) else None
            if not (path and path.is_file() and path.stat().st_mtime > time.time()):
                continue
            if path.resolve().is_relative_to(Path(results).resolve()):
                # Somebody else's file: only its owner can mend it.
                with contextlib.suppress(OSError):
                    os.utime(path)
                    print(f"{path} was newer than the clock", file=sys.stderr)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").splitlines()[0]


def _options(field_: "dataclasses.Field[Any]", kind: Any) -> dict[str, Any]:
    """argparse's options for a setting; its value is checked by the settings' own converter."""
    limits = field_.metadata
    required = field_.default is dataclasses.MISSING
    unit = f", in {limits['unit']}" if limits["unit"] else ""
    choices = f" [{', '.join(limits['choices'])}]" if limits["choices"] else ""
    default = "required" if required else f"default: {_shown(field_.default)}"
    options: dict[str, Any] = {
        "help": f"{limits['text']}{choices}{unit} ({default})".replace("%", "%%"),
        "required": required,
        "metavar": "X",
    }
    if typing.get_origin(kind) is tuple:
        options["nargs"] = "*"
        kind = typing.get_args(kind)[0]
    options["type"] = _boolean if kind is bool else kind
    return options


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(str(entry) for entry in value) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value) or "none"


def _boolean(word: str) -> bool:
    if word not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
    return word == "true"
