"""Network weights: find them on this machine, fetch them, verify them, and keep only what style transfer uses.

Every network here has the topology of VGG-19's convolutions (Simonyan & Zisserman 2014, arXiv:1409.1556): 3×3 kernels
named `features.N.weight` and `features.N.bias`, with N as in torchvision's `vgg19().features`. A file may stop early,
without gaps. Input channels are in RGB order.

torchvision's file is 548 MB, of which 468 are fully connected layers: they are dropped, and the rest is kept as
safetensors. A download that is killed leaves one partial file, which the next one continues.
"""

import hashlib
import os
import re
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import platformdirs
import safetensors
import safetensors.torch
import torch
from filelock import FileLock
from torch import Tensor

from core.errors import WeightsError

CACHE_VARIABLE = "PYRAMID_STYLE_CACHE"
URL_VARIABLE = "PYRAMID_STYLE_VGG19_URL"

#: Positions of the sixteen convolutions in `vgg19().features`, conv1_1 … conv5_4.
conv_indices: tuple[int, ...] = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)

Progress = Callable[[int, int | None], None]
"""Told the bytes so far, and how many there will be (None: the server did not say)."""


@dataclass(frozen=True)
class Source:
    """What is known of a network before its weights are read.

    Attributes:
        network: The name that settings use.
        title: What it is, for people.
        how: How to get it, in one line.
        url: Where it is fetched from; None for networks that are not fetched.
        sha256_prefix: The first hexadecimal digits of the hash of what lies at `url`.
        size_bytes: How much is downloaded from `url`.
    """

    network: str
    title: str
    how: str
    url: str | None = None
    sha256_prefix: str | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of one network, verified and in memory.

    Attributes:
        network: `vgg19`, `vgg19-oxford` or `compact`.
        tensors: `features.N.weight` `[out, in, 3, 3]` and `features.N.bias` `[out]` from the first convolution on
            without a gap, in the precision of the file, on the CPU; `compact` also has `metric.*`. All finite.
        sha256: Hexadecimal digest of the file that was read.
        metadata: What the file says of itself (safetensors only).
    """

    network: str
    tensors: Mapping[str, Tensor]
    sha256: str
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class NetworkStatus:
    """Whether a network is on this machine; `path`, `sha256` and `size_bytes` are None where it is not."""

    network: str
    present: bool
    path: Path | None
    sha256: str | None
    size_bytes: int | None
    how: str


_SOURCES: Mapping[str, Source] = {
    known.network: known
    for known in (
        Source(
            "vgg19",
            "VGG-19, torchvision's weights",
            "python -m core fetch vgg19 (548 MB, 80 are kept), or put torchvision's .pth into the cache directory",
            size_bytes=574_673_361,
        ),
        Source(
            "vgg19-oxford",
            "VGG-19, the original Oxford weights",
            "give its file with --weights, or put it into the cache directory as vgg19-oxford.safetensors or .pth",
        ),
        Source("compact", "The compact network", "install this program again, of which it is a part"),
    )
}

NETWORKS: tuple[str, ...] = tuple(_SOURCES)


def source(network: str) -> Source:
    """Returns what is known of `network`.

    Raises:
        WeightsError: There is no such network, or the address set in the environment names no hash.
    """
    known = _known(network)
    if network != "vgg19":
        return known
    url = _vgg19_url()
    prefix = _hash_in_name(_file_name(url))
    if prefix is None:
        raise WeightsError(
            f"The address {url} names no hash to verify its file with",
            f"Let {URL_VARIABLE} end in the original file's name, which carries its hash",
        )
    return replace(known, url=url, sha256_prefix=prefix)


def _known(network: str) -> Source:
    if network not in _SOURCES:
        raise WeightsError(f"There is no network called {network!r}", f"Choose one of {', '.join(NETWORKS)}")
    return _SOURCES[network]


def _vgg19_url() -> str:
    # torchvision takes more than a second to import, which nobody should pay who has the weights already.
    from torchvision.models import VGG19_Weights  # noqa: PLC0415

    return os.environ.get(URL_VARIABLE) or str(VGG19_Weights.IMAGENET1K_V1.url)


def _file_name(url: str) -> str:
    return PurePosixPath(url.partition("?")[0]).name


def _hash_in_name(name: str) -> str | None:
    """The hash prefix that torchvision's file names carry, as in `vgg19-dcbb9e9d.pth`."""
    found = re.search(r"-([0-9a-f]{8,64})\.", name)
    return found[1] if found else None


# Finding --------------------------------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """Returns where fetched weights are kept: the user's cache directory, or what `PYRAMID_STYLE_CACHE` names."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("pyramid-style") / "weights"


def find(network: str, file: Path | None = None) -> Path | None:
    """Returns where the weights of `network` lie on this machine, or None. Neither opens nor fetches anything.

    Args:
        network: One of `NETWORKS`.
        file: Look here, and only here.

    Raises:
        WeightsError: There is no such network.
    """
    _known(network)
    places = [file] if file else _places(network)
    return next((place for place in places if place.is_file()), None)


def choose(network: str) -> str:
    """Which network `auto` stands for: VGG-19 where its weights are on this machine, else the compact one."""
    if network != "auto":
        return network
    return "vgg19" if find("vgg19") is not None else "compact"


def _places(network: str) -> Iterator[Path]:
    if network == "compact":
        yield Path(__file__).parent / "data" / "compact.safetensors"
        return
    yield cache_dir() / f"{network}.safetensors"
    yield cache_dir() / f"{network}.pth"
    if network == "vgg19":
        # Only torchvision's own name: a file like vgg19-d01eb7cb.pth holds the Oxford weights, in another convention.
        yield from (file for file in cache_dir().glob("vgg19-*.pth") if file.name == _file_name(_vgg19_url()))


def status() -> list[NetworkStatus]:
    """Returns, for every network, whether it is on this machine, where, and how to get it."""
    return [_status(network) for network in NETWORKS]


def _status(network: str) -> NetworkStatus:
    path, how = find(network), _SOURCES[network].how
    if path is None:
        return NetworkStatus(network, False, None, None, None, how)
    with _readable(path):
        return NetworkStatus(network, True, path, _sha256(path), path.stat().st_size, how)


# Loading --------------------------------------------------------------------------------------------------------------


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads tensors and metadata, running nothing that the file may contain."""
    try:
        return _read_safetensors(path) if path.suffix == ".safetensors" else (_read_state_dict(path), {})
    except (OSError, MemoryError):
        raise
    except Exception as error:  # both readers raise whatever a broken file drives them to
        raise WeightsError(
            f"{path.name} is damaged, or is not a plain file of tensors",
            "Give a safetensors file, or a state dict that torch.load opens with weights_only=True",
        ) from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safetensors.safe_open(path, framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    # torchvision's file of 2017 is in the format before zip archives, which cannot be mapped into memory.
    mapped = zipfile.is_zipfile(path)
    return dict(torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped))


def _unfit(name: str, fault: str) -> WeightsError:
    return WeightsError(
        f"{name} does not fit VGG-19: {fault}",
        "Give a file with the keys of torchvision's vgg19, features.N.weight and features.N.bias, from the first "
        "convolution on without a gap",
    )


def _verify_convolution(tensors: Mapping[str, Tensor], index: int, channels: int, name: str) -> int:
    """Returns how many channels the convolution gives to the next, after holding its shapes against the last's."""
    key = f"features.{index}"
    kernel, bias = list(tensors[f"{key}.weight"].shape), list(tensors[f"{key}.bias"].shape)
    if kernel[1:] != [channels, 3, 3] or kernel[0] == 0:
        raise _unfit(name, f"{key}.weight is {kernel} where [out, {channels}, 3, 3] is needed")
    if bias != kernel[:1]:
        raise _unfit(name, f"{key}.bias is {bias} where {kernel[:1]} is needed")
    return kernel[0]


def _verify_convolutions(tensors: Mapping[str, Tensor], name: str) -> None:
    names = {index: (f"features.{index}.weight", f"features.{index}.bias") for index in conv_indices}
    last = max((index for index in names if any(key in tensors for key in names[index])), default=0)
    run = [index for index in conv_indices if index <= last]
    expected = [key for index in run for key in names[index]]
    if absent := [key for key in expected if key not in tensors]:
        raise _unfit(name, f"{absent[0]} is missing")
    if strange := [key for key in tensors if key.startswith("features.") and key not in expected]:
        raise _unfit(name, f"{strange[0]} is no convolution of it")
    channels = 3
    for index in run:
        channels = _verify_convolution(tensors, index, channels, name)


def _is_finite(tensor: Tensor) -> bool:
    # The extremes carry every NaN and infinity, and take a thirtieth of the time of looking at each number.
    return tensor.numel() == 0 or bool(torch.stack(tensor.float().aminmax()).isfinite().all())


def _verified(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Returns what the extractor needs of a state dict, in memory of its own, or says which tensor is at fault."""
    kept = {key: state[key] for key in state if str(key).startswith(("features.", "metric."))}
    for key, tensor in kept.items():
        if not (isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.is_floating_point()):
            raise _unfit(name, f"{key} is not a tensor of floating-point numbers")
    _verify_convolutions(kept, name)
    for key, tensor in kept.items():
        if not _is_finite(tensor):
            raise _unfit(name, f"{key} holds numbers that are not finite")
    return {key: tensor.detach().clone(memory_format=torch.contiguous_format) for key, tensor in kept.items()}


# Red and blue of the first weight of the Oxford network in RGB order, as published for MatConvNet.
_OXFORD_RED_BLUE = (0.39417, 0.34120)


def _in_rgb_order(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turns the Oxford network round where its file keeps Caffe's BGR order, as the best-known `.pth` of it does.

    Nothing in such a file says so, and pictures made with red and blue exchanged look only slightly wrong.
    """
    first = tensors["features.0.weight"]
    if torch.allclose(first[0, [2, 0], 0, 0].float(), torch.tensor(_OXFORD_RED_BLUE), rtol=0, atol=2e-3):
        return tensors | {"features.0.weight": first.flip(1)}
    return tensors


@lru_cache(maxsize=4)
def _load(network: str, path: Path, modified_ns: int) -> Weights:  # a changed file has another key in the cache
    digest = _sha256(path)
    promised = _hash_in_name(path.name)
    if promised and not digest.startswith(promised):
        raise WeightsError(
            f"{path} is damaged: its SHA-256 is {digest[:12]}… and its name promises {promised}…",
            "Download it again, or rename it if that part of its name is no hash",
        )
    state, metadata = _read(path)
    tensors = _verified(state, path.name)
    return Weights(network, MappingProxyType(_in_rgb_order(tensors)), digest, MappingProxyType(metadata))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}", "Check its permissions") from error


def _absent(network: str, file: Path | None) -> WeightsError:
    if file:
        return WeightsError(f"There is no file {file}", "Give --weights the path of a .safetensors or .pth file")
    where = "" if network == "compact" else f". The cache directory is {cache_dir()}"
    return WeightsError(f"The network {network} is not on this machine", f"To get it: {_SOURCES[network].how}{where}")


_one_reader = threading.Lock()


def load(network: str, file: Path | None = None) -> Weights:
    """Returns the verified weights of `network`; a file that has not changed is read once per process.

    Args:
        network: One of `NETWORKS`.
        file: A safetensors file, or a state dict written by `torch.save`, instead of the one on this machine.

    Raises:
        WeightsError: The weights are not here, damaged, not what their name promises, or not of VGG-19's topology.
    """
    path = find(network, file)
    if path is None:
        raise _absent(network, file)
    try:
        with _readable(path), _one_reader:
            return _load(network, path.resolve(), path.stat().st_mtime_ns)
    except WeightsError as error:
        if file:
            raise
        raise WeightsError(error.cause, f"To get it anew: {_SOURCES[network].how}") from error


# Fetching -------------------------------------------------------------------------------------------------------------


_MAKE_ROOM = f"Make room there or allow writing, or name another directory in {CACHE_VARIABLE}"


@dataclass(frozen=True)
class _Download:
    """One file to bring from a server, known by the beginning of its hash."""

    url: str
    sha256_prefix: str
    progress: Progress | None
    timeout: float

    @property
    def name(self) -> str:
        return _file_name(self.url)

    def at_hand(self) -> tuple[Path, str] | None:
        """The file and its hash, where it has been put on this machine already."""
        for folder in (cache_dir(), Path(torch.hub.get_dir()) / "checkpoints"):
            file = folder / self.name
            if os.access(file, os.R_OK) and self._is_wanted(digest := _sha256(file)):
                return file, digest
        return None

    def to(self, part: Path) -> tuple[Path, str]:
        """Downloads to `part`, continuing what lies there, and returns it with its verified hash."""
        continued = part.exists()
        try:
            digest = self._receive(part)
        except OSError:  # a disk that is full should not stay so because of us
            part.unlink(missing_ok=True)
            raise
        if self._is_wanted(digest):
            return part, digest
        part.unlink()
        if continued:  # what lay there was not the beginning of this file
            return self.to(part)
        raise self._failure(f"its SHA-256 is {digest[:12]}… and not {self.sha256_prefix}…")

    def _is_wanted(self, digest: str) -> bool:
        return digest.startswith(self.sha256_prefix)

    def _receive(self, part: Path) -> str:
        """Appends to `part` what it lacks, and returns the hash of the whole."""
        with part.open("a+b") as file:
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256")
            if self._is_wanted(digest.hexdigest()):
                return digest.hexdigest()
            with self._request(file.tell()) as response:
                if response.status != HTTPStatus.PARTIAL_CONTENT:  # the server sends it from the beginning
                    file.truncate(0)
                    file.seek(0)
                    digest = hashlib.sha256()
                received, total = file.tell(), self._total(response, file.tell(), part)
                for chunk in self._chunks(response):
                    file.write(chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    if self.progress:
                        self.progress(received, total)
                    if received == total:  # early releases of Python 3.11 wait for more if the connection stays open
                        break
        if total is not None and received != total:
            raise self._failure(f"it broke off after {received} of {total} bytes")
        return digest.hexdigest()

    def _request(self, offset: int) -> HTTPResponse:
        headers = {"User-Agent": "pyramid-style"} | ({"Range": f"bytes={offset}-"} if offset else {})
        with self._faults():
            try:
                response: HTTPResponse = urlopen(Request(self.url, headers=headers), timeout=self.timeout)
                return response
            except HTTPError as error:
                if offset and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    return self._request(0)
                raise

    def _total(self, response: HTTPResponse, offset: int, part: Path) -> int | None:
        """The size of the whole file, if the server says it and there is room for the rest and for what is kept."""
        length = response.headers.get("Content-Length", "")
        if not length.isdigit():
            return None
        total = offset + int(length)
        if shutil.disk_usage(part.parent).free < int(length) + total // 5:
            raise WeightsError(f"{part.parent} has no room for the {total >> 20} MB of {self.url}", _MAKE_ROOM)
        return total

    def _chunks(self, response: HTTPResponse) -> Iterator[bytes]:
        with self._faults():
            while chunk := response.read1(1 << 16):
                yield chunk

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except HTTPError as error:
            raise self._failure(f"the server answered {error.code} {error.reason}") from error
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                reason = f"the server was silent for {self.timeout:g} s"
            raise self._failure(getattr(reason, "strerror", None) or str(reason)) from error

    def _failure(self, reason: str) -> WeightsError:
        return WeightsError(
            f"The download of {self.url} failed: {reason}",
            f"Try again, it goes on where it stopped; or bring that file by other means and put it into {cache_dir()}",
        )


def _is_sound(target: Path) -> bool:
    try:
        load("vgg19", target)
    except WeightsError:
        return False
    return True


def _strip(original: Path, digest: str, target: Path, name: str) -> None:
    """Writes the convolutions of `original` to `target`, which is either absent or whole at any moment."""
    tensors = _verified(_read(original)[0], name)
    # One entry only: safetensors writes several in random order, and equal weights should have equal hashes.
    blob = safetensors.torch.save(tensors, {"source": f"{name}, sha256 {digest}"})
    part = target.with_suffix(".safetensors.part")
    try:
        with part.open("wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _bring(download: _Download, target: Path) -> None:
    """Leaves the stripped file at `target`; beside it a partial one only where the next download can continue it."""
    part = target.with_suffix(".pth.part")
    found = None if _is_sound(target) else download.at_hand() or download.to(part)
    try:
        if found:
            _strip(*found, target, download.name)
    finally:
        part.unlink(missing_ok=True)


def fetch(network: str, *, progress: Progress | None = None, timeout: float = 30.0) -> Path:
    """Brings a network to this machine, verified and stripped to its convolutions, unless it is here already.

    torchvision's own file is used instead of a download where it lies in the cache directory or in torch.hub's. Of
    several processes that fetch at once, one downloads and the others wait for it.

    Args:
        network: Only `vgg19` is fetched.
        progress: Called as the download goes on, from this thread; what it raises ends the download and comes out here.
        timeout: Seconds of silence from the server after which the download is given up.

    Returns:
        The path of the safetensors file.

    Raises:
        WeightsError: The network is not one that is fetched, the server cannot be reached or sends something else, or
            the cache directory cannot take the file.
    """
    wanted = source(network)
    if wanted.url is None or wanted.sha256_prefix is None:
        raise WeightsError(f"The network {network} is not one to download", f"To get it: {wanted.how}")
    download = _Download(wanted.url, wanted.sha256_prefix, progress, timeout)
    target = cache_dir() / f"{network}.safetensors"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            _bring(download, target)
    except OSError as error:
        raise WeightsError(
            f"The weights cannot be written to {target.parent}: {error.strerror or error}", _MAKE_ROOM
        ) from error
    return target
