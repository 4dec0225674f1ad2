"""What to think of the results, from the verdict that the tables' stage wrote."""

from pathlib import Path

from synq.config import layout
from synq.errors import ArtifactError
from synq.io.artifacts import read_json
from synq.reporting.verdict import accepted, markdown


def tell(*, results: Path) -> int:
    """Print the verdict; 1 where something is not accepted, else 0.

    ArtifactError where there is none, or where a run was measured again since.
    """
    path = results / layout.VERDICT
    found = read_json(path, "verdict")
    for metrics, students in found["measured"].items():
        if read_json(results / metrics, "metrics")["students_checksum"] != students:
            raise ArtifactError(
                f"{path} is of other students than {metrics}; run snakemake --cores all again"
            )
    print(markdown(found["verdicts"]), end="")
    return int(not accepted(found["verdicts"]))
