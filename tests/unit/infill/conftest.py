import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "serving"))  # its scripted port and virtual clock


@pytest.fixture(autouse=True)
def _one_thread():
    """Tensors of a few columns: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
