"""Whether a folder of results is what was written, and all of it made from one another."""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synq.config import layout
from synq.config.grid import wider
from synq.config.plan import shard_name
from synq.errors import ArtifactError, ConfigError, FormatError
from synq.io.artifacts import FORMER, file_sha256, read_checkpoint, read_json
from synq.io.hdf5 import refusing
from synq.io.shards import REMEDY, open_shard
from synq.io.students import Students

KINDS = ("damaged", "stale", "older", "left over")
RUN_FILES = (layout.STUDENT, layout.SNAPSHOTS, layout.METRICS, layout.EXPORT)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    It is damaged, stale, of an older version of the program, or left over by a job that was killed.
    """

    kind: str
    path: Path
    text: str

    def __str__(self) -> str:
        # The reader's own errors name the file already.
        named = self.text.startswith(str(self.path))
        return f"{self.kind}: {self.text if named else f'{self.path} {self.text}'}"


@dataclass
class Walk:
    """The findings so far, and what later files are compared with.

    ``teachers`` are SHA-256 by model, ``shards`` checksums by path below the root. ``lent`` are the
    borrowed shards, each with the path of the one that it was made of and that one's checksum.
    """

    root: Path
    findings: list[Finding] = field(default_factory=list)
    files: int = 0
    teachers: dict[str, str] = field(default_factory=dict)
    shards: dict[str, str] = field(default_factory=dict)
    lent: list[tuple[Path, str, str]] = field(default_factory=list)

    def find(self, kind: str, path: Path, text: str) -> None:
        self.findings.append(Finding(kind, path, text))

    def opened(self, path: Path, read: Callable[[], Any]) -> Any:
        """What ``read`` gives; None and a finding where the file is refused."""
        self.files += 1
        try:
            return read()
        except FormatError as error:
            self.find("older", path, str(error))
            return None
        except ArtifactError as error:
            self.find("damaged", path, str(error))
            return None

    def check(self, path: Path, record: Mapping[str, Any], **wanted: Any) -> None:
        """A finding for each entry of a record that is not as the file's place says."""
        for key, value in wanted.items():
            if record.get(key) != value:
                self.find("stale", path, f"is of {key} {record.get(key)!r}, not {value!r}")

    def check_teacher(self, path: Path, found: object, model: str) -> None:
        if found != self.teachers.get(model):
            other = "another teacher than" if model in self.teachers else "a teacher that is not"
            teacher = layout.TEACHER.format(model=model)
            self.find("stale", path, f"was made from {other} {teacher}")


def verify(*, results: Path) -> int:
    """Print what is wrong below ``results``; 1 unless all is well or left over, else 0."""
    if not results.is_dir():
        raise ConfigError(f"{results} is not a folder; name the folder of results")
    if not any((results / name).is_dir() for name in layout.ARTIFACTS):
        folders = ", no ".join(layout.ARTIFACTS)
        raise ConfigError(f"{results} holds no {folders}; is it a folder of results?")
    walk = Walk(results)
    for path, names in layout.found(results, layout.TEACHER):
        _teacher(walk, path, names["model"])
    for template, kind in (
        (layout.INSPECTION, "inspection"),
        (layout.TEACHER_METRICS, "teacher metrics"),
    ):
        for path, names in layout.found(results, template):
            _of_teacher(walk, path, kind, names["model"])
    _shards(walk)
    for path, names in layout.found(results, f"{layout.SENSITIVITY}.json"):
        _sensitivity(walk, path, names)
    for _, names in layout.found(results, f"{layout.RUNS}/{layout.RUN}"):
        _run(walk, names)
    for former, name in FORMER.items():
        for path in sorted(results.glob(f"runs/*/*/*/*/{former}")):
            walk.find("older", path, f"is of an older layout; delete it, {name} takes its place")
    for path in _left_over(results):
        walk.find("left over", path, "is of a job that was killed or still runs")
    for finding in walk.findings:
        print(finding)
    kinds = [finding.kind for finding in walk.findings]
    counts = [f"{kinds.count(kind)} {kind}" for kind in KINDS]
    print(f"{results}: {walk.files} files checked, {', '.join(counts)}")
    return int(any(kind != "left over" for kind in kinds))


def _teacher(walk: Walk, path: Path, model: str) -> None:
    record = walk.opened(path, lambda: read_checkpoint(path, "teacher")[1])
    # Of an older or damaged teacher too: what was made from this very file is not stale.
    with contextlib.suppress(ArtifactError):
        walk.teachers[model] = file_sha256(path)
    if record is None:
        return
    walk.check(path, record, name=model)
    download = walk.root / layout.DOWNLOAD.format(model=model)
    origin = str(record.get("origin"))
    if download.is_file() and " sha256:" in origin:
        digest = walk.opened(download, lambda: file_sha256(download))
        if digest is not None and digest != origin.partition(" sha256:")[2]:
            walk.find("stale", download, "is not the file that the teacher beside it was made from")


def _of_teacher(walk: Walk, path: Path, kind: str, model: str) -> None:
    found = walk.opened(path, lambda: read_json(path, kind))
    if found is not None:
        walk.check_teacher(path, found.get("teacher_sha256"), model)


def _shards(walk: Walk) -> None:
    for path, names in layout.found(walk.root, layout.SHARD):
        _shard(walk, path, names)
    for path, place, checksum in walk.lent:
        _made_of(walk, path, place, checksum)


def _shard(walk: Walk, path: Path, names: Mapping[str, str]) -> None:
    def read() -> dict[str, Any]:
        with open_shard(path) as file, refusing(path, REMEDY):
            texts = {key: str(file.attrs[key]) for key in ("model", "teacher_sha256", "checksum")}
            classes = [int(number) for number in file.attrs["classes"]]
            return {
                **texts,
                "seed": str(file.attrs["seed"]),
                "name": shard_name(classes[0], classes[-1]),
                "lent": [str(file.attrs.get(key, "")) for key in ("lent_by", "lent_checksum")],
            }

    record = walk.opened(path, read)
    if record is None:
        return
    walk.shards[layout.SHARD.format(**names)] = record["checksum"]
    walk.check(path, record, model=names["model"], seed=names["seed"], name=names["shard"])
    walk.check_teacher(path, record["teacher_sha256"], names["model"])
    lender, checksum = record["lent"]
    if lender:
        place = layout.SHARD.format(**{**names, "model": lender})
        walk.lent.append((path, place, checksum))


def _made_of(walk: Walk, path: Path, place: str, checksum: object) -> None:
    """A finding where the shard at ``place`` is not the one that a file was made of."""
    if walk.shards.get(place) != checksum:
        other = "another" if place in walk.shards else "no whole"
        text = f"was made from images that are gone: there is {other} {place}"
        walk.find("stale", path, text)


def _sensitivity(walk: Walk, path: Path, names: Mapping[str, str]) -> None:
    record = walk.opened(path, lambda: read_json(path, "sensitivity"))
    if record is not None:
        _student(walk, path, record, names)


def _run(walk: Walk, names: Mapping[str, str]) -> None:
    """The files of one run; those that are missing are not made yet, which is no finding."""
    student, snapshots, metrics, export = (
        walk.root / template.format(**names) for template in RUN_FILES
    )
    record = kept = None
    if snapshots.exists():
        kept = walk.opened(snapshots, lambda: _snapshots(snapshots))
    if student.exists():
        record = walk.opened(student, lambda: read_checkpoint(student, "student")[1])
    if kept is not None:
        _student(walk, snapshots, kept, names)
    if record is not None:
        _student(walk, student, record, names)
        _rung(walk, student, record, names)
    if kept is not None and record is not None:
        shared = {k: v for k, v in kept.items() if k not in ("kind", "format", "checksum")}
        own = {key: record.get(key) for key in shared}
        if json.dumps(own, sort_keys=True) != json.dumps(shared, sort_keys=True):
            walk.find("stale", student, "and students.safetensors beside it are of two runs")
    _metrics(walk, metrics, kept, names)
    _export(walk, export, student, names)


def _rung(walk: Walk, path: Path, record: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """A finding where the wider student of a ladder is not the one that this one began with."""
    digest, bits = record.get("from_student"), wider(names["bits"])
    if not (digest and bits):
        return
    place = layout.STUDENT.format(**{**names, "bits": bits})
    there = (walk.root / place).is_file()
    if not there or file_sha256(walk.root / place) != digest:
        other = "another" if there else "no"
        walk.find("stale", path, f"began with a student that is gone: there is {other} {place}")


def _snapshots(path: Path) -> dict[str, Any]:
    students = Students(path)
    for epoch in students.epochs:
        students.student(epoch)
    return {**students.record, "checksum": students.checksum}


def _student(walk: Walk, path: Path, record: Mapping[str, Any], names: Mapping[str, str]) -> None:
    _place(walk, path, record, names)
    shards, checksums = record.get("shards"), record.get("shard_checksums")
    if not (isinstance(shards, list) and isinstance(checksums, list) and len(shards)):
        walk.find("stale", path, "does not say which shards it was made from")
        return
    for shard, checksum in itertools.zip_longest(shards, checksums):
        images = {"image_set": record.get("image_set"), "shard": shard}
        place = layout.SHARD.format(**{**names, **images})
        _made_of(walk, path, place, checksum)


def _place(walk: Walk, path: Path, record: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Compare a record with the run's folder."""
    walk.check(path, {**record, "seed": str(record.get("seed"))}, **names)
    walk.check_teacher(path, record.get("teacher_sha256"), names["model"])


def _metrics(
    walk: Walk, path: Path, kept: Mapping[str, Any] | None, names: Mapping[str, str]
) -> None:
    metrics = walk.opened(path, lambda: read_json(path, "metrics")) if path.exists() else None
    if metrics is None:
        return
    _place(walk, path, metrics, names)
    if kept is not None and metrics.get("students_checksum") != kept["checksum"]:
        walk.find(
            "stale", path, "measured other students than those in students.safetensors beside it"
        )


def _export(walk: Walk, path: Path, student: Path, names: Mapping[str, str]) -> None:
    """The files to ship, and the record of them."""
    found = walk.opened(path, lambda: read_json(path, "export")) if path.exists() else None
    _of_student(walk, path, found, student, names)
    onnx, packed = (walk.root / file.format(**names) for file in (layout.ONNX, layout.PACKED))
    if packed.exists():
        record = walk.opened(packed, lambda: read_checkpoint(packed, "packed")[1])
        _of_student(walk, packed, record, student, names)
        if record is not None and found is not None:
            _shipped(walk, packed, file_sha256(packed), found.get("packed_sha256"))
    if found is not None and onnx.exists():
        _shipped(walk, onnx, walk.opened(onnx, lambda: file_sha256(onnx)), found.get("onnx_sha256"))


def _shipped(walk: Walk, path: Path, digest: str | None, wanted: object) -> None:
    if digest is not None and digest != wanted:
        walk.find("damaged", path, "is not the file that export.json beside it was written for")


def _of_student(
    walk: Walk,
    path: Path,
    record: Mapping[str, Any] | None,
    student: Path,
    names: Mapping[str, str],
) -> None:
    """Compare a record with the run's folder and with the student beside it."""
    if record is None:
        return
    _place(walk, path, record, names)
    if student.is_file() and record.get("student_sha256") != file_sha256(student):
        walk.find("stale", path, "is of another student than student.safetensors beside it")


def _left_over(results: Path) -> Iterator[Path]:
    for folder in layout.ARTIFACTS:
        for path in sorted((results / folder).rglob("*")):
            if ".tmp." in path.name or path.suffix == ".work":
                yield path
