"""What the tests of the stages share."""

import pytest
from small_results import everything


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "results"
    everything(root)
    return root
