"""What tests share: the workflow of the tiny overlay, run once a session, and copies of it."""

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

# One thread for each process. Several processes with a pool of threads each wait for one another's
# cores far longer than they compute. Set before torch is imported, and inherited by the commands
# that the tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from running import FOLDERS, ROOT, Workflow, copied


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """The clone as git has it, nothing run."""
    root = tmp_path_factory.mktemp("clone")
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    for name in ("Snakefile", "config.yaml"):
        shutil.copy(ROOT / name, root)
    return Workflow(root)


@pytest.fixture(scope="session")
def finished(clone: Workflow, tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """The tiny workflow, run once for all processes of the tests; nobody changes this one."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    root, printed = shared / "finished" / "clone", shared / "finished" / "printed"
    with FileLock(shared / "finished.lock"):
        if not printed.is_file():
            shutil.rmtree(root, ignore_errors=True)
            ran = copied(clone, root, "").run("--printshellcmds")
            assert ran.returncode == 0, ran.stdout
            printed.write_text(ran.stdout, "utf-8")
    return Workflow(root, printed.read_text("utf-8"))


@pytest.fixture
def workflow(finished: Workflow, tmp_path: Path) -> Workflow:
    """A finished workflow of the test's own: it may change and break what it likes."""
    return copied(finished, tmp_path / "clone", finished.first)
