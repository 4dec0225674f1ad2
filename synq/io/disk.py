"""A file for a library that does not survive a disk that is full."""

from pathlib import Path


class Disk:
    """A file for HDF5 to write that never fails; its first error is raised at the end.

    The HDF5 library does not survive a full disk: it tries again when the process ends, and takes
    it down with a segmentation fault.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115
        self._error: OSError | None = None

    def __enter__(self) -> "Disk":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        # Instead of whatever HDF5 says of content that is not there.
        if self._error is not None:
            raise self._error

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        try:
            while rest and self._error is None:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._error = error
        return len(data)

    def truncate(self, size: int) -> int:
        try:
            self._file.truncate(size)
        except OSError as error:
            self._error = self._error or error
        return size

    def readinto(self, target: memoryview) -> int:
        count = self._file.readinto(target) or 0
        target[count:] = bytes(len(target) - count)
        return len(target)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size) or b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        """Nothing is held back."""
