"""What several test files need."""

import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from core import weights

SHARED = Path(__file__).resolve().parents[2] / "shared"

# A busy machine may take its time over an example; what it may not do is give a wrong answer.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Photographs, paintings and trained weights beside the repository; tests that need them are skipped elsewhere."""
    if not SHARED.is_dir():
        pytest.skip("there is no folder of test data beside the repository")
    return SHARED


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread for the small tensors of most tests: two would spend their time waiting for each other."""
    before = torch.get_num_threads()
    if request.node.get_closest_marker("slow") is None:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither this machine's weights nor its measured speeds, and none of the tests' for its user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(weights.CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """A shell starts background jobs with SIGINT ignored; the tests of Ctrl-C mean a program that hears it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
