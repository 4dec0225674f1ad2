"""``python -m synq``."""

import sys

from synq.cli import main

if __name__ == "__main__":
    sys.exit(main())
