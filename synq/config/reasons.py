"""Why jobs have failed, where the user can mend it: the lines of their logs that say so."""

from pathlib import Path

# How the command line begins what it says of a UserError.
ERROR = "synq: error: "


def reasons(logs: str, since: float) -> list[str]:
    """``LOG: synq: error: ...`` of each such line in the logs that were written ``since`` a time.

    The same line of several jobs is there once, with the first log and how many more have it.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(Path(logs).rglob("*.log")):
        if path.stat().st_mtime < since:
            continue
        for line in path.read_text("utf-8", "replace").splitlines():
            if line.startswith(ERROR):
                found.setdefault(line, []).append(path)
    return [_shown(line, list(dict.fromkeys(paths))) for line, paths in found.items()]


def _shown(line: str, paths: list[Path]) -> str:
    more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
    return f"{paths[0]}{more}: {line}"
