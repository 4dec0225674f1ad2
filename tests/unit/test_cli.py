"""The command line: help, exit codes, and one line about what the user can mend."""

import dataclasses
import importlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from synq import cli
from synq.config.calibration import Calibration
from synq.config.fields import settings_of
from synq.config.finetune import Finetune
from synq.errors import DivergenceError
from synq.stages import tables

SETTINGS = [
    (name, setting, field)
    for name, command in cli.COMMANDS.items()
    for cls in command.settings.values()
    for setting, (field, _) in settings_of(cls).items()
]
FINETUNE = [
    "finetune",
    "--teacher",
    "t",
    "--shards",
    "s",
    "--bits",
    "w4a4",
    "--method",
    "m",
    "--image-set",
    "i",
    "--seed",
    "0",
    "--output",
    "o",
    "--snapshots",
    "n",
]
WRONG = {
    "quantize": "--factory no_nets:build --image-size 8 --mean 0 --std 1 --bits w4a4 --output o",
    "finetune": " ".join(FINETUNE[1:]),
    "evaluate-teacher": "--teacher none --output o",
    "evaluate": "--teacher none --teacher-metrics m --snapshots s --output o",
    "sensitivity": "--teacher none --shards s --bits w4a4 --method m --image-set i --seed 0"
    " --output o",
    "sensitivity-figure": "--sensitivity none --output o",
    "export": "--teacher none --student s --shards h --output o --packed p --record r",
    "unpack": "--teacher none --packed p --output o",
    "predict": "none i",
    "tables": "--metrics none --benchmarks b --output o",
    "ablation": "--metrics none --full synq --output o",
    "verify": "none",
    "verdict": "none",
    "page": "none",
    "status": "none",
    "collect": "--teacher none --output o --classes 0 --seed 0 --dataset digits",
    "borrow": "--teacher none --lent l --output o",
    "inspect": "--teacher none --json j",
    "synthesize": "--teacher none --output o --classes 0 --seed 0",
    "train": "--output o --device cuda:999",
    "fetch": "--name n --download d --output o --source file --architecture resnet20_cifar10"
    f" --classes 10 --image-size 32 --weights none --sha256 {'0' * 64}"
    " --mean 0 0 0 --std 1 1 1",
    "fetch-zoo": "--name n --output o --source pytorchcv --architecture resnet20_cifar11",
}


def run(*arguments):
    """Exit code, standard output and standard error of ``python -m synq``."""
    words = [sys.executable, "-m", "synq", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("lines", [1, 20_000])
def test_a_reader_that_has_enough_ends_it_without_a_word(lines):
    program = (
        "import sys\n"
        "from synq import cli\n"
        "from synq.stages import status\n"
        f"status.status = lambda **_: print('a line\\n' * {lines})\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", program, "status", "results"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    command.stdout.close()
    assert command.stderr.read() == b""
    assert command.wait() == 128 + signal.SIGPIPE


def refused(capsys, *arguments):
    """Standard error of a command line that argparse itself refuses."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def error_line(capsys, *arguments):
    """The one line of a command that ends with exit code 2."""
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.startswith("synq: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def help_of(capsys, monkeypatch, command):
    """The paragraphs of the help, and each flag's entry, without line breaks."""
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    parts = re.split(r"\n\n|\n  (?=-)", capsys.readouterr().out)
    return [" ".join(part.split()) for part in parts]


def entry_of(parts, name):
    flag = "--" + name.replace("_", "-") + " "
    (entry,) = [part for part in parts if part.startswith(flag)]
    return entry


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_help_on_all_its_arguments(capsys, monkeypatch, command):
    parts = help_of(capsys, monkeypatch, command)
    assert cli.COMMANDS[command].text in parts
    for argument, options in cli.COMMANDS[command].arguments.items():
        if "required" in options:
            assert options["help"] in entry_of(parts, argument)
        else:
            assert any(options["help"] in part for part in parts)


@pytest.mark.parametrize(("command", "setting", "field"), SETTINGS)
def test_help_has_the_text_default_unit_and_choices_of_a_setting(
    capsys, monkeypatch, command, setting, field
):
    entry = entry_of(help_of(capsys, monkeypatch, command), setting)
    limits = field.metadata
    for part in (limits["text"], limits["unit"], *(limits["choices"] or [])):
        assert part in entry
    default = {"": "none", (): "none"}.get(field.default, str(field.default))
    if isinstance(field.default, tuple) and field.default:
        default = " ".join(map(str, field.default))
    default = default.lower() if isinstance(field.default, bool) else default
    required = field.default is dataclasses.MISSING
    assert entry.endswith("(required)" if required else f"(default: {default})")


def test_python_m_synq_is_the_command_line():
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert all(command in out for command in cli.COMMANDS)
    assert run("--version")[1].startswith("synq 0.")


def test_a_user_error_is_one_line_with_exit_code_2_and_no_file(tmp_path):
    arguments = ["synthesize", "--teacher", tmp_path / "none", "--output", tmp_path / "a" / "b.h5"]
    code, out, err = run(*arguments, "--classes", 0, "--seed", 0)
    assert (code, out) == (2, "")
    assert err.startswith(f"synq: error: {tmp_path / 'none'} does not exist")
    assert err.count("\n") == 1
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_reports_a_wrong_input_and_leaves_no_file(
    capsys, monkeypatch, tmp_path, command
):
    monkeypatch.chdir(tmp_path)
    error_line(capsys, command, *WRONG[command].split())
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--epochs", "-1"], "finetune.epochs is -1; it must be at least 0"),
        (["--holdout", "0.95"], "finetune.holdout is 0.95; it must be at most 0.9"),
        (["--learning-rate", "nan"], "finetune.learning_rate is nan, not a finite number"),
        (["--cam", "gradcm"], "finetune.cam is 'gradcm'; did you mean gradcam?"),
        (["--lowpass-sigma", "0"], "finetune.lowpass_sigma is 0.0 px; it must be above 0"),
        (["--range-power", "0"], "calibration.range_power is 0.0; it must be above 0"),
        (["--threads", "-1"], "threads is negative; write 0 or more"),
    ],
)
def test_a_value_out_of_range_is_refused_before_any_file_is_read(capsys, flags, text):
    assert error_line(capsys, *FINETUNE, *flags) == f"synq: error: {text}\n"


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--iterations", "3"], "unrecognized arguments: --iterations 3"),
        (["--epochs", "1.5"], "invalid int value: '1.5'"),
        (["--learning-rate", "fast"], "invalid float value: 'fast'"),
        (["--perturbed-features", "yes"], "'yes' is neither true nor false"),
        (["--perturbed-features"], "expected one argument"),
        (["--seed", "-3"], "argument --seed: invalid seed value: '-3'"),
        (["--seed", str(2**64)], "argument --seed: invalid seed value"),
    ],
)
def test_an_unknown_flag_or_a_value_of_the_wrong_type_is_refused(capsys, flags, text):
    assert text in refused(capsys, *FINETUNE, *flags)


@pytest.mark.parametrize("arguments", [[], ["fine"], ["finetune"], ["train", "--name", "n"]])
def test_a_missing_or_unknown_command_or_argument_is_refused(capsys, arguments):
    assert "usage: synq" in refused(capsys, *arguments)


@pytest.mark.parametrize(("word", "value"), [("true", True), ("false", False)])
def test_a_flag_that_is_true_or_false_says_so(word, value):
    given = cli.parser().parse_args([*FINETUNE, "--perturbed-features", word])
    assert given.perturbed_features is value


def test_a_setting_that_is_not_given_has_its_default(monkeypatch):
    taken = {}
    function = "synq.stages.finetune.finetune_student"
    monkeypatch.setattr(function, lambda **values: taken.update(values))
    assert cli.main([*FINETUNE, "--epochs", "3"]) == 0
    assert taken["settings"] == Finetune(epochs=3)
    assert taken["calibration"] == Calibration()
    assert (taken["device"], taken["threads"]) == ("auto", 0)


def test_every_command_has_its_function():
    for command in cli.COMMANDS.values():
        module, _, function = command.function.rpartition(".")
        assert callable(
            getattr(importlib.import_module(f"synq.{command.folder}.{module}"), function)
        )


@pytest.mark.parametrize("error", [DivergenceError("the loss is nan"), RuntimeError("a bug")])
def test_a_user_error_is_told_and_a_bug_keeps_its_traceback(capsys, monkeypatch, error):
    def fail(**_):
        raise error

    monkeypatch.setattr(tables, "write_accuracy", fail)
    arguments = ["tables", "--metrics", "m", "--benchmarks", "b", "--output", "o"]
    if isinstance(error, DivergenceError):
        assert error_line(capsys, *arguments) == "synq: error: the loss is nan\n"
    else:
        with pytest.raises(RuntimeError, match="a bug"):
            cli.main(arguments)


def test_an_interruption_is_one_line(capsys, monkeypatch):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tables, "write_accuracy", interrupted)
    assert cli.main(["tables", "--metrics", "m", "--benchmarks", "b", "--output", "o"]) == 130
    error = capsys.readouterr().err
    assert error.startswith("synq: interrupted")
    assert error.count("\n") == 1


@pytest.fixture
def ahead(tmp_path, monkeypatch):
    """Files from an hour after now, and one of before, in a folder of results and outside."""
    now = time.time()
    for name in ("results/ahead.json", "own.json", "linked.json", "results/before.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        age = 3600 if path.stem == "before" else -3600
        os.utime(path, (now - age, now - age))
    (tmp_path / "results/link.json").symlink_to(tmp_path / "linked.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tables, "write_accuracy", lambda **_: None)
    return now


def tabulated():
    names = ["ahead.json", "before.json", "link.json", "none", "../own.json"]
    words = ["--metrics", *names, "--run-folder", "results", "--benchmarks", "results"]
    assert cli.main(["tables", *words, "--output", "table"]) == 0


def test_results_that_are_newer_than_the_clock_get_the_present_time(ahead, monkeypatch, capsys):
    monkeypatch.setenv("SYNQ_RESULTS", os.path.abspath("results"))
    os.utime("results", (ahead + 3600,) * 2)
    tabulated()
    assert ahead - 1 <= os.path.getmtime("results/ahead.json") <= time.time()
    assert os.path.getmtime("results/before.json") == pytest.approx(ahead - 3600)
    assert os.path.getmtime("results") == pytest.approx(ahead + 3600)  # no file that a rule names
    assert capsys.readouterr().err == "results/ahead.json was newer than the clock\n"
    # Other files are the user's own, behind a link in the results too.
    assert os.path.getmtime("own.json") == pytest.approx(ahead + 3600)
    assert os.path.getmtime("linked.json") == pytest.approx(ahead + 3600)


def test_a_command_by_hand_leaves_the_times_of_its_inputs(ahead, monkeypatch, capsys):
    monkeypatch.delenv("SYNQ_RESULTS", raising=False)
    tabulated()
    for name in ("results/ahead.json", "own.json", "linked.json"):
        assert os.path.getmtime(name) == pytest.approx(ahead + 3600)
    assert capsys.readouterr().err == ""


def test_a_fault_of_the_users_is_not_tried_again_on_a_cluster(monkeypatch, tmp_path, capsys):
    output = tmp_path / "shards/shard.h5"
    words = ["synthesize", "--teacher", str(tmp_path / "none"), "--output", str(output)]
    words += ["--classes", "0", "--seed", "0"]
    kept = tmp_path / "shards/shard.h5.fault"
    # Who starts a command himself keeps nothing.
    first = error_line(capsys, *words)
    assert not kept.exists()
    monkeypatch.setenv("SYNQ_ATTEMPT", "1")
    assert error_line(capsys, *words) == first
    assert f"synq: error: {kept.read_text('utf-8')}\n" == first
    # Whatever is there now: what the command would do is not done.
    monkeypatch.setenv("SYNQ_ATTEMPT", "2")
    kept.write_text("once", "utf-8")
    assert error_line(capsys, *words) == "synq: error: once (not tried again)\n"
    # Another start of the workflow is a first attempt, and success forgets the fault.
    monkeypatch.setenv("SYNQ_ATTEMPT", "1")
    monkeypatch.setattr("synq.stages.synthesize.synthesize_shard", lambda **_: 0)
    assert cli.main(words) == 0
    assert not kept.exists()
