"""One thread for each process of the tests.

Several processes with a pool of threads each wait for one another's cores far longer than they
compute. Set before torch is imported, and inherited by the commands that the tests start.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
