"""What must be known before PyTorch and Triton are imported."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # one process a core; also for the processes of tests

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("gradood", deadline=None)  # other work on the machine is no failure
settings.load_profile("gradood")
if not torch.cuda.is_available():
    # Without a GPU, Triton kernels run in Triton's interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def one_thread():
    """One thread of PyTorch's, and afterwards as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
