"""Broken or forged input is refused in one line, or good: never a traceback, never a hang.

A few hundred examples of each by default; HYPOTHESIS_PROFILE=thorough for 10,000 of each.
"""

import contextlib
import copy
import json
import math
import os
import re
import signal
import struct
from pathlib import Path

import h5py
import numpy
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synq.config.model import Model
from synq.config.reading import NAME, plan
from synq.errors import ConfigError, UserError
from synq.io.artifacts import read_checkpoint, read_json, save, write_checkpoint, write_json
from synq.io.hdf5 import BLOCK, seal
from synq.io.shards import ShardSet, write_shard
from synq.io.students import Students, write_students
from synq.models.build import build
from synq.models.teacher import read_teacher, write_teacher

common = {
    "deadline": None,  # the machine may be busy; a hang is what `bounded` is for
    "database": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
}
settings.register_profile("default", max_examples=200, **common)
settings.register_profile("thorough", max_examples=10_000, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

ROOT = Path(__file__).parents[2]
PATIENCE = 60  # seconds for one example, on a busy machine too
MEMORY = 3 << 30  # bytes that one example may add: what the largest input of a network takes
TEACHER = "ab" * 32


@contextlib.contextmanager
def bounded():
    """A UserError of one line, or nothing; any other exception or a hang fails the test."""

    def late(*_):
        raise AssertionError("this takes for ever")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        yield
    except UserError as error:
        text = str(error)
        if not text or not text.isprintable():
            raise AssertionError("not one printable line") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 10**9, 10**30, 10**400, -(10**400)]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["../x", "/etc/passwd", "a b", "$(touch pwned)", "; touch pwned", "x" * 300, "\x1b[2J"]
    ),
    st.sampled_from(
        ["-x", "a\nb", "é", "𝔘", "\x00", "1e5", "off", "w4a4", "w٣a4", "synq", "results/../../x"]
    ),
    st.dates(),
    st.binary(max_size=8),
    st.just([]),
    st.just({}),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=5)), max_size=3),
    st.dictionaries(
        st.one_of(st.text(max_size=8), st.integers(), st.none()), st.integers(), max_size=3
    ),
)


# The config.


def places(value, path=()):
    """The path of every value of a nested mapping or list."""
    found = [path] if path else []
    entries = value.items() if isinstance(value, dict) else []
    entries = enumerate(value) if isinstance(value, list) else entries
    for key, inner in entries:
        found += places(inner, (*path, key))
    return found


CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text("utf-8"))
PLACES = places(CONFIG)


@st.composite
def configs(draw):
    config = copy.deepcopy(CONFIG)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(PLACES))
        # The place may be gone by an earlier change.
        with contextlib.suppress(AttributeError, IndexError, KeyError, TypeError):
            inner = config
            for key in path[:-1]:
                inner = inner[key]
            kind = draw(st.sampled_from(["value", "delete", "add", "rename"]))
            if kind == "delete":
                del inner[path[-1]]
            elif kind == "value":
                inner[path[-1]] = draw(JUNK)
            elif isinstance(inner, list):
                inner.append(draw(JUNK))
            else:
                value = inner.pop(path[-1]) if kind == "rename" else inner[path[-1]]
                name = draw(st.one_of(st.text(max_size=12), JUNK.filter(is_hashable)))
                inner[name] = value if kind == "rename" else draw(JUNK)
    return config


def is_hashable(value):
    try:
        hash(value)
    except TypeError:
        return False
    return True


def check_plan(config):
    with bounded():
        whole = plan(config)
        for names in (whole.models, whole.image_sets, whole.methods):
            assert all(NAME.fullmatch(name) and len(name) <= 64 for name in names)
        assert re.fullmatch(r"[A-Za-z0-9._/][A-Za-z0-9._/-]*", whole.results)
        for run in whole.runs():
            path = "/".join(str(part) for part in run.values())
            assert ".." not in path
            assert len(path) < 255
            images = whole.methods[run["method"]].images
            assert all(
                re.fullmatch(r"[a-z0-9-]+", name) for name in whole.shards(run["model"], images)
            )


@given(configs())
def test_a_changed_config_is_planned_or_refused(config):
    check_plan(config)


@given(st.one_of(JUNK, st.dictionaries(st.sampled_from(list(CONFIG)), JUNK)))
def test_a_config_of_anything_is_refused(config):
    check_plan(config)


TEXT = (ROOT / "config.yaml").read_text("utf-8")


@given(st.data())
def test_a_config_file_with_changed_characters_is_planned_or_refused(data):
    text = TEXT
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = start + data.draw(st.sampled_from([0, 1, 1, 5, 500]))
        text = text[:start] + data.draw(st.text(max_size=4)) + text[end:]
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # Snakemake's to tell
        return
    check_plan(config)


def test_a_config_that_contains_itself_is_refused():
    with pytest.raises(ConfigError):
        plan(yaml.safe_load("&a {models: *a, grid: *a, image_sets: *a, methods: *a}"))


@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), float("nan")])
def test_a_number_that_is_none_is_refused(value):
    with pytest.raises(ConfigError, match="not a finite number"):
        plan({**CONFIG, "finetune": {"learning_rate": value}})


NAMES = ["../x", "/abs", "a b", "a;b", "$(x)", "`x`", "a'b", 'a"b', "x" * 300, "é", "", "-x", ".x"]
NAMES += ["a\n", "a/b", "a\\b", "*", "{x}", "a\x00", "٣"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("section", ["models", "image_sets", "methods"])
def test_names_that_would_leave_the_results_or_mean_something_to_a_shell_are_refused(section, name):
    config = copy.deepcopy(CONFIG)
    config[section][name] = next(iter(config[section].values()))
    with pytest.raises(ConfigError, match="has the name"):
        plan(config)


@pytest.mark.parametrize("name", ["a b", "a;b", "$(x)", "é", "", "-x", "x" * 300, "a\n", "{x}", 3])
def test_a_results_folder_that_means_something_to_a_shell_is_refused(name):
    with pytest.raises(ConfigError, match="results is "):
        plan({**CONFIG, "results": name})


def test_every_word_of_a_shell_command_that_is_not_ours_is_quoted():
    commands = rules = 0
    for path in (ROOT / "rules").glob("*.smk"):
        rules += len(re.findall(r"^rule ", path.read_text("utf-8"), re.MULTILINE))
        for block in re.findall(r"^    shell:\n((?: {8}.*\n)+)", path.read_text("utf-8"), re.M):
            commands += 1
            for word in re.findall(r"\{([^}]*)\}", block):
                assert word.endswith(":q") or word == "threads", f"{path.name}: {{{word}}}"
    assert commands == rules > 0


# Shards and files of students.


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    path = tmp_path_factory.mktemp("shard") / "shard.h5"
    images = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    record = {"teacher_sha256": TEACHER, "classes": [0, 1, 2], "model": "m", "settings": "{}"}
    write_shard(path, images, torch.tensor([0, 1, 2]), torch.rand(3), record)
    return path


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    path = tmp_path_factory.mktemp("students") / "students.safetensors"
    write_students(
        path, {"model": "m"}, [(0, {"a": torch.rand(2, 3)}), (1, {"b": torch.zeros(())})]
    )
    return path


@st.composite
def damages(draw, size):
    """Bytes to change, to cut and to add, as a function of the whole."""
    changes = draw(st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, 255)), max_size=4))
    cut, more = draw(st.one_of(st.none(), st.integers(0, size))), draw(st.binary(max_size=4))

    def damaged(content):
        content = bytearray(content)
        for place, value in changes:
            content[place] = value
        return bytes(content[:cut]) + more

    return damaged


def read_shard(path):
    with bounded():
        shards = ShardSet([path], TEACHER, 3, (1, 4, 4))
        images = shards.images(torch.arange(len(shards)))
        assert torch.isfinite(images).all()
        assert set(shards.labels.tolist()) <= {0, 1, 2}


@given(st.data())
def test_a_damaged_shard_is_refused(shard, data):
    content = shard.read_bytes()
    changed = data.draw(damages(len(content)))(content)
    path = shard.with_name("changed.h5")
    path.write_bytes(changed)
    if changed == content:
        read_shard(path)
    else:
        with pytest.raises(UserError):
            ShardSet([path], TEACHER)


SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 7, 1000, 1 << 20, 1 << 40]), max_size=5)
TYPES = st.sampled_from(["<f2", "<f4", ">f4", "<f8", "<i8", "<i4", "<u8", "?", "S5", "<c8"])
FILTERS = st.sampled_from(
    [
        {},
        {"compression": "gzip"},
        {"compression": "gzip", "shuffle": True},
        {"compression": "lzf"},
        {"fletcher32": True},
    ]
)


@st.composite
def forgeries(draw, groups, names):
    """A change through HDF5 itself, as somebody would make who knows the format."""
    group, name = draw(st.sampled_from(groups)), draw(st.sampled_from(names))
    kind = draw(st.sampled_from(["array", "absurd", "value", "attribute", "link", "group"]))
    shape, dtype, filters = tuple(draw(SHAPES)), draw(TYPES), draw(FILTERS)
    number, link = draw(st.floats()), draw(st.sampled_from(LINKS))
    attribute = draw(st.sampled_from(["kind", "format", "teacher_sha256", "checksum", "record"]))
    text = draw(
        st.one_of(
            st.integers(-9, 9), st.text('ab0{[]}\n"', max_size=9), st.floats(), st.just([1, 2])
        )
    )

    def forged(file):
        inner = file[group]
        if kind == "attribute":
            file.attrs[attribute] = text
            return
        if not isinstance(inner, h5py.Group):
            # An earlier change made an array of it, whose every value a question for a name reads.
            return
        if kind == "value":
            # Not of an absurd array: here it would take the memory that reading must not.
            if isinstance(inner.get(name), h5py.Dataset) and max(inner[name].shape, default=0) < 99:
                inner[name][...] = number
            return
        if name in inner:
            del inner[name]
        if kind == "array" and math.prod(shape) < 10_000:
            more = filters if shape and math.prod(shape) else {}
            inner.create_dataset(name, data=numpy.zeros(shape, dtype), **more)
        elif kind == "absurd":
            chunks = (1,) * len(shape) if shape and 0 not in shape else None
            inner.create_dataset(name, shape, dtype, chunks=chunks, **(filters if chunks else {}))
        elif kind == "link":
            inner[name] = link
        else:
            inner.create_group(name)

    return forged


LINKS = [
    h5py.SoftLink("/labels"),
    h5py.SoftLink("/nowhere"),
    h5py.SoftLink("/"),
    h5py.ExternalLink("/etc/passwd", "/"),
    h5py.ExternalLink("pwned.h5", "/images"),
    h5py.ExternalLink("../shard.h5", "/images"),
]


# What HDF5 itself refuses to write.
BROKEN = (AttributeError, KeyError, OSError, OverflowError, TypeError, ValueError)


def forge(path, changes):
    target = path.with_name("forged.h5")
    target.write_bytes(path.read_bytes())
    with contextlib.suppress(OSError, RuntimeError), h5py.File(target, "r+") as file:
        for change in changes:
            with contextlib.suppress(*BROKEN):
                change(file)
    seal(target)
    return target


@given(
    st.lists(forgeries(["/"], ["images", "labels", "confidence", "more"]), min_size=1, max_size=3)
)
def test_a_forged_shard_is_refused_or_good(shard, changes):
    path = forge(shard, changes)
    read_shard(path)
    assert {file.name for file in path.parent.iterdir()} <= {"shard.h5", "changed.h5", "forged.h5"}


def read_students(path):
    found = Students(path)
    return {epoch: found.student(epoch) for epoch in found.epochs}


@given(st.data())
def test_a_damaged_file_of_students_is_refused(students, data):
    content = students.read_bytes()
    path = students.with_name("changed.safetensors")
    path.write_bytes(data.draw(damages(len(content)))(content))
    with bounded():
        assert read_students(path)[0].keys() == {"a"}


@given(
    st.dictionaries(
        st.sampled_from(["epoch-0000/a", "epoch-0000/b", "epoch-0001/b", "epoch-0002/a", "a", ""]),
        st.sampled_from([torch.zeros(2, 3), torch.zeros(()), torch.arange(4)]),
    ),
    st.one_of(JUNK, st.dictionaries(st.sampled_from(["0", "1", "-1", "x", "²", ""]), JUNK)),
)
def test_a_forged_file_of_students_is_refused_or_good(students, tensors, checksums):
    path = students.with_name("forged.safetensors")
    try:
        save(path, "students", tensors, {"student_checksums": checksums}, summed={})
    except (TypeError, ValueError):  # no JSON
        return
    with bounded():
        read_students(path)


@given(st.binary(max_size=200))
def test_a_forged_start_of_an_hdf5_file_is_refused(shard, content):
    path = shard.with_name("changed.h5")
    path.write_bytes(bytes(BLOCK) + b"\x89HDF\r\n\x1a\n" + content)
    seal(path)
    with pytest.raises(UserError):
        ShardSet([path], TEACHER)


# Checkpoints and JSON.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "net.safetensors"
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3), "c": torch.zeros(0)}
    write_checkpoint(path, "student", tensors, {"history": [1.5, None], "model": "m"})
    return path


@given(st.data())
def test_a_damaged_checkpoint_is_refused(checkpoint, data):
    content = checkpoint.read_bytes()
    changed = data.draw(damages(len(content)))(content)
    path = checkpoint.with_name("changed.safetensors")
    path.write_bytes(changed)
    with bounded():
        assert read_checkpoint(path, "student")[0].keys() == {"a", "b", "c"}
        assert changed == content or json.loads(header(changed)) == json.loads(header(content))


def header(content):
    return content[8 : 8 + struct.unpack("<Q", content[:8])[0]]


ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "I64", "BOOL", "F8_E4M3", "F4", "C64", "X9", 3]),
        "shape": st.one_of(JUNK, st.lists(st.sampled_from([0, 1, 2, 6, 1 << 40, -1]), max_size=4)),
        "data_offsets": st.one_of(JUNK, st.lists(st.integers(-1, 64), min_size=2, max_size=2)),
    }
)


@given(
    st.dictionaries(st.text(max_size=4), ENTRIES, max_size=3),
    st.one_of(
        st.none(), st.text(max_size=9), st.sampled_from(["[" * 5000, "[]", "1", '{"kind": []}'])
    ),
    st.one_of(st.none(), st.integers(0, 2**64 - 1)),
)
def test_a_forged_checkpoint_is_refused(checkpoint, entries, record, length):
    metadata = {} if record is None else {"__metadata__": {"synq": record}}
    text = json.dumps({**entries, **metadata}, default=str).encode()
    path = checkpoint.with_name("changed.safetensors")
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(64))
    with pytest.raises(UserError):
        read_checkpoint(path, "student")
    with bounded():
        read_checkpoint(path, "student")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    model = Model(source="pytorchcv", architecture="resnet20_cifar10", classes=10, image_size=32)
    state = build(model.architecture, 10, 3, 32).state_dict()
    write_teacher(path, state, model, name="m", mean=[0.5] * 3, std=[0.3] * 3, origin="a test")
    return path, read_checkpoint(path, "teacher")


FIELDS = ["name", "architecture", "classes", "channels", "image_size", "mean", "std"]


@settings(max_examples=min(settings().max_examples, 1000))  # each may build a network
@given(st.sampled_from(FIELDS), st.one_of(JUNK, st.integers(1, 1 << 40)))
def test_a_forged_record_of_a_teacher_is_refused_or_good(teacher, field, value):
    path, (tensors, record) = teacher
    forged = path.with_name("forged.safetensors")
    try:
        write_checkpoint(forged, "teacher", tensors, {**record, field: value})
    except TypeError:  # no JSON
        return
    before = peak()
    with bounded():
        read_teacher(forged, torch.device("cpu"))
    assert peak() - before < MEMORY


def peak():
    """Highest memory of this process so far, in bytes."""
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) * 1024


@given(st.data())
def test_damaged_json_is_refused_or_the_same(checkpoint, data):
    path = checkpoint.with_name("metrics.json")
    content = {"model": "m", "top1": [1.5, float("inf")]}
    write_json(path, "metrics", content)
    whole = path.read_bytes()
    path.write_bytes(data.draw(damages(len(whole)))(whole))
    with bounded():
        assert content.items() <= read_json(path, "metrics").items()
