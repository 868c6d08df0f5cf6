"""What every test process has in common.

The Hugging Face libraries are kept off the network and out of the user's cache; they read this on import.
"""

import os
import shutil
import tempfile

import torch
from hypothesis import settings

_CACHE = tempfile.mkdtemp(prefix="fedistill-tests-")
os.environ.update(
    HF_HOME=_CACHE,
    HF_DATASETS_CACHE=os.path.join(_CACHE, "datasets"),
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    # Tests run side by side: threads of one that wait for each other by spinning take the time of another.
    OMP_NUM_THREADS="1",
)
torch.set_num_threads(1)
# What a machine needs for an example says nothing about the code.
settings.register_profile("quick", deadline=None, max_examples=20)
settings.register_profile("thorough", deadline=None, max_examples=300)
settings.load_profile("quick")


def pytest_unconfigure() -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)
