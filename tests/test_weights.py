"""Weights are found, verified, read without running anything, and fetched so that nothing half-made is ever used."""

import hashlib
import io
import os
import pickle
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
from torch import Tensor

from core import weights
from core.errors import WeightsError

ROOT = Path(__file__).resolve().parents[1]
OXFORD = ROOT.parent / "shared" / "weights" / "vgg19_oxford_conv1_1_to_conv3_4.safetensors"

# The sixteen convolutions of torchvision's `vgg19().features`, counted out by hand from configuration E of the paper:
# two, two, four, four and four convolutions, each followed by a ReLU, each group by a pooling layer.
CONVOLUTIONS = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]


def vgg(depth: int = 16, *, width: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Random weights with VGG-19's topology, `width` channels wide."""
    draw = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    channels = 3
    for index in CONVOLUTIONS[:depth]:
        state[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3, generator=draw)
        state[f"features.{index}.bias"] = torch.randn(width, generator=draw)
        channels = width
    return state


def with_classifier(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"classifier.0.weight": torch.randn(512, 512), "classifier.0.bias": torch.randn(512)}


def pth(state: Any, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def assert_same(found: weights.Weights, expected: dict[str, Tensor]) -> None:
    assert found.tensors.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found.tensors[key], tensor, rtol=0, atol=0)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(WeightsError) as caught:
        call()
    assert caught.value.remedy, "an error should say what to do"
    return str(caught.value)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory, and none of this machine's own weights or proxies."""
    monkeypatch.setenv(weights.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv(weights.URL_VARIABLE, raising=False)
    return tmp_path / "cache"


# Files on this machine ------------------------------------------------------------------------------------------------


def test_the_convolutions_are_those_of_torchvision() -> None:
    from torchvision.models import vgg19

    with torch.device("meta"):
        layers = vgg19().features
    assert list(weights.conv_indices) == [n for n, layer in enumerate(layers) if isinstance(layer, torch.nn.Conv2d)]


def test_safetensors_are_read_with_hash_and_metadata(tmp_path: Path) -> None:
    file = tmp_path / "some.safetensors"
    safetensors.torch.save_file(vgg(), file, {"origin": "a test"})
    found = weights.load("vgg19-oxford", file)
    assert_same(found, vgg())
    assert found.network == "vgg19-oxford"
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert found.metadata == {"origin": "a test"}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before zip"])
@pytest.mark.filterwarnings("error")
def test_state_dicts_are_read_without_their_classifier(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "some.pth"
    file.write_bytes(pth(with_classifier(vgg()), zipped=zipped))
    found = weights.load("vgg19-oxford", file)
    assert_same(found, vgg())
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_stays_as_stored(tmp_path: Path, dtype: torch.dtype) -> None:
    file = tmp_path / "some.safetensors"
    state = {key: tensor.to(dtype) for key, tensor in vgg(2).items()}
    safetensors.torch.save_file(state, file)
    assert_same(weights.load("vgg19-oxford", file), state)


def test_a_file_may_hold_the_first_layers_only(tmp_path: Path) -> None:
    file = tmp_path / "first.safetensors"
    safetensors.torch.save_file(vgg(5), file)
    assert_same(weights.load("vgg19-oxford", file), vgg(5))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("network", ["vgg19", "vgg19-oxford"])
def test_weights_in_the_cache_directory_are_found(cache: Path, network: str, suffix: str) -> None:
    assert weights.find(network) is None
    cache.mkdir()
    file = cache / f"{network}.{suffix}"
    file.write_bytes(safetensors.torch.save(vgg()) if suffix == "safetensors" else pth(vgg()))
    assert weights.find(network) == file
    assert_same(weights.load(network), vgg())


def test_torchvisions_file_put_by_hand_is_accepted_and_verified(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = pth(with_classifier(vgg()))
    name = f"vgg19-{hashlib.sha256(body).hexdigest()[:8]}.pth"
    monkeypatch.setenv(weights.URL_VARIABLE, f"http://localhost/{name}")
    cache.mkdir()
    (cache / name).write_bytes(body)
    assert_same(weights.load("vgg19"), vgg())
    (cache / name).write_bytes(body[:-1])
    assert "damaged" in refusal(lambda: weights.load("vgg19"))


def test_another_networks_file_in_the_cache_directory_is_not_taken_for_torchvisions(cache: Path) -> None:
    cache.mkdir()
    for name in ("vgg19-oxford.pth", "vgg19-d01eb7cb.pth"):
        (cache / name).write_bytes(pth(vgg()))
    assert weights.find("vgg19") is None


def test_a_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "some.safetensors"
    safetensors.torch.save_file(vgg(2), file)
    first = weights.load("vgg19-oxford", file)
    assert weights.load("vgg19-oxford", file) is first
    safetensors.torch.save_file(vgg(2, seed=1), file)
    os.utime(file, ns=(0, 0))
    assert_same(weights.load("vgg19-oxford", file), vgg(2, seed=1))


def test_loaded_weights_outlive_their_file(tmp_path: Path) -> None:
    file = tmp_path / "some.pth"
    file.write_bytes(pth(vgg()))
    found = weights.load("vgg19-oxford", file)
    with file.open("r+b") as opened:  # in place, as a careless copy over it would do
        opened.write(b"\0" * file.stat().st_size)
    assert_same(found, vgg())


def test_absent_weights_say_how_to_get_them(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "python -m core fetch vgg19" in refusal(lambda: weights.load("vgg19"))
    assert str(cache) in refusal(lambda: weights.load("vgg19-oxford"))
    monkeypatch.setattr(weights, "__file__", str(tmp_path / "elsewhere" / "weights.py"))
    assert "compact" in refusal(lambda: weights.load("compact"))
    assert "gone.pth" in refusal(lambda: weights.load("vgg19", tmp_path / "gone.pth"))
    assert "There is no file" in refusal(lambda: weights.load("vgg19", tmp_path))
    assert "vgg19, vgg19-oxford, compact" in refusal(lambda: weights.load("vgg16"))


def test_the_compact_network_lies_beside_the_code_with_its_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "__file__", str(tmp_path / "weights.py"))
    state = vgg(8) | {"metric.relu1_1.weight": torch.randn(8, 4), "metric.relu1_1.bias": torch.randn(8)}
    (tmp_path / "data").mkdir()
    safetensors.torch.save_file(state, tmp_path / "data" / "compact.safetensors")
    assert_same(weights.load("compact"), state)


def without(*keys: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in vgg().items() if key not in keys}


def spoilt(value: float) -> Tensor:
    tensor = vgg()["features.5.weight"]
    tensor[1, 2, 0, 1] = value
    return tensor


UNFIT = {
    "no convolution": ({"classifier.0.weight": torch.ones(2, 2)}, "features.0.weight is missing"),
    "caffe's names": ({"conv1_1.weight": torch.ones(4, 3, 3, 3)}, "features.0.weight is missing"),
    "a layer missing": (without("features.7.weight", "features.7.bias"), "features.7.weight is missing"),
    "the first missing": (without("features.0.weight", "features.0.bias"), "features.0.weight is missing"),
    "a bias missing": (without("features.34.bias"), "features.34.bias is missing"),
    "a last kernel missing": (without("features.34.weight"), "features.34.weight is missing"),
    "not a number": (vgg() | {"features.5.weight": spoilt(float("nan"))}, "features.5.weight holds numbers"),
    "minus infinity": (vgg() | {"features.5.weight": spoilt(float("-inf"))}, "features.5.weight holds numbers"),
    "infinite": (vgg() | {"features.5.weight": spoilt(float("inf"))}, "features.5.weight holds numbers"),
    "whole numbers": (vgg() | {"features.2.bias": torch.ones(4, dtype=torch.int64)}, "features.2.bias is not"),
    "five by five": (vgg() | {"features.5.weight": torch.ones(4, 4, 5, 5)}, "features.5.weight is [4, 4, 5, 5]"),
    "shapes that do not chain": (vgg() | {"features.5.weight": torch.ones(4, 7, 3, 3)}, "[out, 4, 3, 3] is needed"),
    "a matrix": (vgg() | {"features.5.weight": torch.ones(4, 4)}, "features.5.weight is [4, 4]"),
    "no channels": (vgg(1) | {"features.0.weight": torch.ones(0, 3, 3, 3)}, "features.0.weight is [0, 3, 3, 3]"),
    "a long bias": (vgg() | {"features.5.bias": torch.ones(5)}, "features.5.bias is [5]"),
    "batch normalisation": (vgg(1) | {"features.1.weight": torch.ones(4)}, "features.1.weight is no convolution"),
    "VGG-16": (vgg(7) | {"features.17.weight": torch.ones(4, 4, 3, 3)}, "features.17.weight is no convolution"),
}


@pytest.mark.parametrize(("state", "fault"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, state: dict[str, Tensor], fault: str) -> None:
    for file, body in (("x.safetensors", safetensors.torch.save(state)), ("x.pth", pth(state))):
        (tmp_path / file).write_bytes(body)
        message = refusal(lambda file=file: weights.load("vgg19-oxford", tmp_path / file))  # type: ignore[misc]
        assert fault in message
        assert file in message


GARBAGE = {
    "empty.safetensors": b"",
    "noise.safetensors": bytes(range(256)) * 40,
    "truncated.safetensors": safetensors.torch.save(vgg())[:-1],
    "a state dict.safetensors": pth(vgg()),
    "empty.pth": b"",
    "noise.pth": bytes(range(256)) * 40,
    "truncated.pth": pth(vgg())[:-1000],
    "truncated before zip.pth": pth(vgg(), zipped=False)[:-1000],
    "safetensors.pth": safetensors.torch.save(vgg()),
    "a tensor.pth": pth(torch.ones(3)),
    "a page.pth": b"<!DOCTYPE html><html><body>Please log in</body></html>",
    "a list.pth": pth([1, 2, 3]),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(GARBAGE[name])
    assert name in refusal(lambda: weights.load("vgg19-oxford", tmp_path / name))


class Malicious:
    """A pickle that makes a directory as it is opened."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("form", ["zip", "before zip", "bare"])
def test_a_pickle_with_code_in_it_is_refused_unrun(tmp_path: Path, form: str) -> None:
    trace, file = tmp_path / "trace", tmp_path / "malicious.pth"
    state = vgg() | {"features.0.weight": Malicious(trace)}
    file.write_bytes(pickle.dumps(state, protocol=2) if form == "bare" else pth(state, zipped=form == "zip"))
    assert "malicious.pth" in refusal(lambda: weights.load("vgg19-oxford", file))
    assert not trace.exists()


@pytest.mark.skipif(not OXFORD.is_file(), reason="the original Oxford weights are not on this machine")
def test_the_original_oxford_weights_are_read_in_either_channel_order(tmp_path: Path) -> None:
    found = weights.load("vgg19-oxford", OXFORD)
    widths = [64, 64, 128, 128, 256, 256, 256, 256]  # configuration E of the paper
    assert [found.tensors[f"features.{index}.bias"].numel() for index in CONVOLUTIONS[:8]] == widths
    assert len(found.tensors) == 16
    red, green, blue = found.tensors["features.0.weight"][0, :, 0, 0].tolist()
    assert (red, green, blue) == pytest.approx(
        (0.39416704, 0.46418372, 0.34119523), abs=1e-6
    )  # as in MatConvNet's file

    caffe = dict(found.tensors) | {"features.0.weight": found.tensors["features.0.weight"].flip(1)}
    (tmp_path / "caffe.pth").write_bytes(pth(caffe))
    assert_same(weights.load("vgg19-oxford", tmp_path / "caffe.pth"), dict(found.tensors))


def test_status_tells_what_is_where(cache: Path) -> None:
    cache.mkdir()
    file = cache / "vgg19-oxford.safetensors"
    safetensors.torch.save_file(vgg(3), file)
    vgg19, oxford, compact = weights.status()
    assert (vgg19.network, vgg19.present, vgg19.path, vgg19.sha256, vgg19.size_bytes) == ("vgg19", False, *[None] * 3)
    assert "fetch vgg19" in vgg19.how
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (oxford.present, oxford.path, oxford.sha256, oxford.size_bytes) == (True, file, digest, file.stat().st_size)
    assert compact.network == "compact"
    assert compact.present is (ROOT / "core" / "data" / "compact.safetensors").is_file()


def test_looking_for_weights_does_not_import_torchvision(cache: Path) -> None:
    look = "import sys; from core import weights; weights.find('vgg19'); weights.status(); "
    ran = subprocess.run(
        [sys.executable, "-c", look + "print('torchvision' in sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "False\n"


# Fetching -------------------------------------------------------------------------------------------------------------


class Mirror(ThreadingHTTPServer):
    """A server of one file on the loopback, whose answers a test can bend.

    Attributes:
        answer: What to do with a request.
        ranges: The Range header of every request so far.
        asked: Set by the first request.
        go_on: What an answer that has paused waits for.
    """

    daemon_threads = True

    def __init__(self, body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.body = body
        self.answer: Callable[[Answer], None] = Answer.whole
        self.ranges: list[str | None] = []
        self.asked = threading.Event()
        self.go_on = threading.Event()

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/models/vgg19-{self.digest[:8]}.pth"


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Mirror

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range"))
        self.server.asked.set()
        self.server.answer(self)

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def whole(self) -> None:
        """The file, or as much of it as the Range header asks for."""
        body, asked = self.server.body, self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if start >= len(body):
            self.head(416, Content_Length=0)
            return
        self.head(206 if asked else 200, Content_Length=len(body) - start)
        self.wfile.write(body[start:])

    def without_ranges(self) -> None:
        self.head(200, Content_Length=len(self.server.body))
        self.wfile.write(self.server.body)

    def without_length(self) -> None:
        self.head(200, Connection="close")
        self.wfile.write(self.server.body)

    def kept_open(self) -> None:
        self.whole()
        self.wfile.flush()
        self.pause()

    def half(self) -> None:
        self.head(200, Content_Length=len(self.server.body))
        self.wfile.write(self.server.body[: len(self.server.body) // 2])
        self.wfile.flush()
        self.close_connection = True

    def pause(self) -> None:
        self.server.go_on.wait()

    def half_then_pause(self) -> None:
        self.half()
        self.pause()

    def other(self) -> None:
        page = b"<html>Please log in</html>"
        self.head(200, Content_Length=len(page))
        self.wfile.write(page)

    def not_found(self) -> None:
        self.send_error(404)


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A server of a small VGG-19 with a classifier, in place of torchvision's."""
    with Mirror(pth(with_classifier(vgg()), zipped=False)) as server:
        monkeypatch.setenv(weights.URL_VARIABLE, server.url)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.go_on.set()
        server.shutdown()
        thread.join()


def files_in(folder: Path) -> set[str]:
    """What lies in a cache directory, but for the lock, which is empty and stays."""
    return {file.name for file in folder.iterdir()} - {"vgg19.lock"}


def assert_fetched(cache: Path) -> None:
    assert files_in(cache) == {"vgg19.safetensors"}
    assert_same(weights.load("vgg19"), vgg())


def test_the_source_is_torchvisions_own() -> None:
    from torchvision.models import VGG19_Weights

    known = weights.source("vgg19")
    assert known.url == VGG19_Weights.IMAGENET1K_V1.url
    assert known.sha256_prefix == "dcbb9e9d"
    assert known.size_bytes == pytest.approx(VGG19_Weights.IMAGENET1K_V1.meta["_file_size"] * 2**20, rel=1e-5)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before zip"])
def test_fetching_keeps_the_convolutions_only(
    cache: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    mirror.body = pth(with_classifier(vgg()), zipped=zipped)
    monkeypatch.setenv(weights.URL_VARIABLE, mirror.url)
    told: list[tuple[int, int | None]] = []
    file = weights.fetch("vgg19", progress=lambda done, total: told.append((done, total)))
    assert file == weights.find("vgg19") == cache / "vgg19.safetensors"
    assert_fetched(cache)
    assert file.stat().st_size < len(mirror.body) / 10
    found = weights.load("vgg19")
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert mirror.digest in found.metadata["source"]
    assert f"vgg19-{mirror.digest[:8]}.pth" in found.metadata["source"]
    assert told == sorted(told)
    assert told[-1] == (len(mirror.body), len(mirror.body))


def test_equal_sources_give_equal_files(cache: Path, mirror: Mirror) -> None:
    first = weights.fetch("vgg19").read_bytes()
    shutil.rmtree(cache)
    assert weights.fetch("vgg19").read_bytes() == first


def test_what_is_here_is_not_fetched_again(cache: Path, mirror: Mirror) -> None:
    weights.fetch("vgg19")
    (cache / "vgg19.pth.part").write_bytes(b"left by a process that was killed at the very end")
    weights.fetch("vgg19")
    assert len(mirror.ranges) == 1
    assert_fetched(cache)


def test_a_damaged_file_is_fetched_again(cache: Path, mirror: Mirror) -> None:
    cache.mkdir()
    (cache / "vgg19.safetensors").write_bytes(b"damaged")
    assert "fetch vgg19" in refusal(lambda: weights.load("vgg19"))
    weights.fetch("vgg19")
    assert_fetched(cache)


@pytest.mark.parametrize("place", ["cache", "torch/hub/checkpoints"])
def test_torchvisions_file_on_this_machine_spares_the_download(tmp_path: Path, mirror: Mirror, place: str) -> None:
    file = tmp_path / place / Path(mirror.url).name
    file.parent.mkdir(parents=True)
    file.write_bytes(mirror.body)
    assert weights.fetch("vgg19") == tmp_path / "cache" / "vgg19.safetensors"
    assert mirror.ranges == []
    assert file.read_bytes() == mirror.body
    assert_same(weights.load("vgg19"), vgg())


@pytest.mark.parametrize("answer", [Answer.without_length, Answer.without_ranges, Answer.kept_open])
def test_servers_differ(cache: Path, mirror: Mirror, answer: Callable[[Answer], None]) -> None:
    mirror.answer = answer
    weights.fetch("vgg19", timeout=5)
    assert_fetched(cache)


class Failing(NamedTuple):
    answer: Callable[[Answer], None]
    message: str


FAILING = {
    "truncated": Failing(Answer.half, "broke off after"),
    "stalled": Failing(Answer.half_then_pause, "silent for 0.3 s"),
    "never answering": Failing(Answer.pause, "silent for 0.3 s"),
    "another file": Failing(Answer.other, "its SHA-256 is"),
    "not found": Failing(Answer.not_found, "answered 404"),
    "hanging up": Failing(lambda answer: answer.connection.close(), "failed"),
}


@pytest.mark.parametrize("failing", FAILING.values(), ids=FAILING)
def test_a_failed_download_says_so_and_can_be_tried_again(cache: Path, mirror: Mirror, failing: Failing) -> None:
    mirror.answer = failing.answer
    message = refusal(lambda: weights.fetch("vgg19", timeout=0.3))
    assert failing.message in message
    assert mirror.url in message
    assert str(cache) in message
    assert weights.find("vgg19") is None
    assert files_in(cache) <= {"vgg19.pth.part"}
    mirror.answer = Answer.whole
    weights.fetch("vgg19")
    assert_fetched(cache)


def test_a_download_that_broke_off_is_continued(cache: Path, mirror: Mirror) -> None:
    mirror.answer = Answer.half
    refusal(lambda: weights.fetch("vgg19"))
    mirror.answer = Answer.whole
    told: list[tuple[int, int | None]] = []
    weights.fetch("vgg19", progress=lambda done, total: told.append((done, total)))
    size = len(mirror.body)
    assert mirror.ranges == [None, f"bytes={size // 2}-"]
    assert told[0][0] > size // 2
    assert told[-1] == (size, size)
    assert_fetched(cache)


def test_a_server_that_cannot_continue_sends_the_whole_once(cache: Path, mirror: Mirror) -> None:
    mirror.answer = Answer.half
    refusal(lambda: weights.fetch("vgg19"))
    mirror.answer = Answer.without_ranges
    told: list[tuple[int, int | None]] = []
    weights.fetch("vgg19", progress=lambda done, total: told.append((done, total)))
    assert len(mirror.ranges) == 2
    assert told[-1] == (len(mirror.body), len(mirror.body))
    assert_fetched(cache)


@pytest.mark.parametrize("length", ["shorter", "as long", "longer"])
@pytest.mark.parametrize("answer", [Answer.whole, Answer.without_ranges])
def test_the_beginning_of_another_file_is_not_continued(
    cache: Path, mirror: Mirror, answer: Callable[[Answer], None], length: str
) -> None:
    mirror.answer = answer
    cache.mkdir()
    left = {"shorter": 1000, "as long": len(mirror.body), "longer": len(mirror.body) + 1}[length]
    (cache / "vgg19.pth.part").write_bytes(b"x" * left)
    weights.fetch("vgg19")
    assert_fetched(cache)


def test_a_whole_download_that_was_not_stripped_is_not_repeated(cache: Path, mirror: Mirror) -> None:
    cache.mkdir()
    (cache / "vgg19.pth.part").write_bytes(mirror.body)
    (cache / "vgg19.safetensors.part").write_bytes(b"half written")
    weights.fetch("vgg19")
    assert mirror.ranges == []
    assert_fetched(cache)


def test_offline_is_an_error_with_a_remedy(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setenv(weights.URL_VARIABLE, f"http://127.0.0.1:{port}/vgg19-0123abcd.pth")
    message = refusal(lambda: weights.fetch("vgg19"))
    assert "refused" in message
    assert "put it into" in message


@pytest.mark.parametrize("url", ["nonsense/vgg19-0123abcd.pth", "http://[/vgg19-0123abcd.pth", "http://a b/-01234567."])
def test_an_impossible_address_is_an_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.URL_VARIABLE, url)
    refusal(lambda: weights.fetch("vgg19"))


def test_an_address_without_a_hash_is_refused(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.URL_VARIABLE, mirror.url.replace(mirror.digest[:8], "latest"))
    assert "hash" in refusal(lambda: weights.fetch("vgg19"))
    assert mirror.ranges == []


@pytest.mark.parametrize("network", ["vgg19-oxford", "compact", "vgg16"])
def test_other_networks_are_not_fetched(network: str) -> None:
    assert network in refusal(lambda: weights.fetch(network))


def test_a_verified_download_that_is_no_vgg_is_not_kept(
    cache: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.body = pth({"features.0.weight": torch.ones(4, 1, 3, 3), "features.0.bias": torch.ones(4)})
    monkeypatch.setenv(weights.URL_VARIABLE, mirror.url)
    assert "features.0.weight is [4, 1, 3, 3]" in refusal(lambda: weights.fetch("vgg19"))
    assert files_in(cache) == set()


FETCH_AND_TELL = """
from core import weights
weights.fetch("vgg19", progress=lambda done, total: print(done, flush=True))
"""


def fetch_elsewhere() -> subprocess.Popen[str]:
    """A process that fetches, with this one's environment, and writes a line for every piece that it has."""
    return subprocess.Popen([sys.executable, "-c", FETCH_AND_TELL], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_killed_download_leaves_nothing_half_made(cache: Path, mirror: Mirror) -> None:
    mirror.answer = Answer.half_then_pause
    with fetch_elsewhere() as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert weights.find("vgg19") is None
    assert files_in(cache) == {"vgg19.pth.part"}
    left = (cache / "vgg19.pth.part").stat().st_size
    mirror.answer = Answer.whole
    weights.fetch("vgg19")
    assert mirror.ranges == [None, f"bytes={left}-"]
    assert_fetched(cache)


def test_two_at_once_fetch_once(cache: Path, mirror: Mirror) -> None:
    second_asked = threading.Event()

    def hold_the_first(answer: Answer) -> None:
        if len(mirror.ranges) > 1:
            second_asked.set()
        else:
            second_asked.wait(timeout=0.5)  # time enough for a second request, which should not come
        answer.whole()

    mirror.answer = hold_the_first
    with fetch_elsewhere() as process:
        assert mirror.asked.wait(timeout=60)
        weights.fetch("vgg19")
    assert process.returncode == 0
    assert mirror.ranges == [None]
    assert_fetched(cache)


def test_whoever_watches_may_stop_the_download(cache: Path, mirror: Mirror) -> None:
    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        weights.fetch("vgg19", progress=stop)
    weights.fetch("vgg19")
    assert_fetched(cache)


def test_a_cache_that_cannot_be_a_directory_is_an_error(cache: Path, mirror: Mirror) -> None:
    cache.write_bytes(b"a file in its place")
    message = refusal(lambda: weights.fetch("vgg19"))
    assert str(cache) in message
    assert weights.CACHE_VARIABLE in message


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_cache_is_an_error(cache: Path, mirror: Mirror) -> None:
    cache.mkdir(mode=0o500)
    assert weights.CACHE_VARIABLE in refusal(lambda: weights.fetch("vgg19"))


def test_too_little_room_is_said_before_the_download(
    cache: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(cache.parent)._replace(free=len(mirror.body))  # enough for it, not for what is kept
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "no room" in refusal(lambda: weights.fetch("vgg19"))
    assert all((cache / name).stat().st_size == 0 for name in files_in(cache))


def test_a_disk_that_fills_up_is_cleared_again(cache: Path, mirror: Mirror) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(mirror.body) // 2, hard))
    try:
        message = refusal(lambda: weights.fetch("vgg19"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written" in message
    assert files_in(cache) == set()
