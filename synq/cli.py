"""The command line: ``synq STAGE --flag value ...``.

Every setting of a stage is a flag of the same name; the rules call the same commands. A stage's
module, and with it torch, is imported when the stage runs, so that ``--help`` is quick.
"""

import argparse
import contextlib
import dataclasses
import importlib
import os
import signal
import sys
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import synq
from synq.commands import COMMANDS, FOLDERS, THREADS
from synq.config.fields import convert, settings_of
from synq.errors import ConfigError, UserError


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
            stage.add_argument("--threads", **THREADS["threads"])
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
        sys.stdout.flush()
    except UserError as error:
        print(f"synq: error: {error}", file=sys.stderr)
        if fault:
            with contextlib.suppress(OSError):
                fault.parent.mkdir(parents=True, exist_ok=True)
                fault.write_text(str(error), "utf-8")
        return 2
    except BrokenPipeError:
        # Who reads has enough (``| head``); Python would flush once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("synq: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
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
        folder = values.get(FOLDERS.get(name, ""), Path())
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
