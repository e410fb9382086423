"""Loading the digit sets, and what goes wrong with files and networks.

No test uses the network: `no_network` is in force for all of them.
"""

import gzip
import hashlib
import importlib
import io
import os
import socket
import struct
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from mnist import idx, mnist_root

from neurospike import data
from neurospike.data import Split, datasets, fetching
from neurospike.data import digits as bundled_digits
from neurospike.errors import DataError, MissingDependencyError

FILES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Fail as urllib does without a network; everything torchvision opens passes through it."""
    opened = []

    def urlopen(request, *args, **kwargs):
        opened.append(request)
        raise urllib.error.URLError(socket.gaierror(-3, "Temporary failure in name resolution"))

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return opened


def digits(count: int, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 28, 28), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(10, (count,), generator=generator))


def contents(train: Split, test: Split) -> dict[str, bytes]:
    arrays = [train.images, train.labels, test.images, test.labels]
    return {name: idx(array) for name, array in zip(FILES, arrays, strict=True)}


def write_set(root: Path, name: str = "MNIST") -> Path:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for file, content in contents(digits(30), digits(20, seed=1)).items():
        (raw / file).write_bytes(content)
    return raw


def serve_archives(monkeypatch, served: dict[str, bytes]) -> list[float | None]:
    """Let `urlopen` serve these .gz files and torchvision expect their checksums.

    Returns the socket timeouts that were in force, one a request.
    """
    timeouts = []
    checksums = [(name, hashlib.md5(content).hexdigest()) for name, content in served.items()]

    def urlopen(request, *args, **kwargs):
        timeouts.append(socket.getdefaulttimeout())
        url = request if isinstance(request, str) else request.full_url
        response = io.BytesIO(served[url.rsplit("/", 1)[1]])
        response.url, response.length = url, len(response.getvalue())
        return response

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", checksums)
    return timeouts


def archives() -> dict[str, bytes]:
    files = contents(digits(30), digits(20, seed=1))
    return {f"{name}.gz": gzip.compress(content) for name, content in files.items()}


def assert_same(split: Split, wanted: Split) -> None:
    assert torch.equal(split.images, wanted.images)
    assert torch.equal(split.labels, wanted.labels)


@pytest.fixture(scope="module")
def real_mnist() -> Path:
    root = mnist_root()
    if root is None:
        pytest.skip("MNIST is not on this machine: set NEUROSPIKE_MNIST to its torchvision root")
    return root


@pytest.mark.parametrize("name", ["mnist", "auto"])
def test_real_mnist(real_mnist, name):
    loaded = data.load(name, real_mnist)
    assert loaded.name == "mnist"
    assert "60,000 training and 10,000 test" in loaded.note
    # The first labels and the pixel mean (0.1307) that the literature reports.
    assert loaded.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert loaded.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert abs(loaded.train.images.float().mean() / 255 - 0.1307) < 1e-4


def test_truncated_real_mnist(real_mnist, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        (raw / name).symlink_to(real_mnist / "MNIST" / "raw" / name)
    content = (raw / FILES[2]).read_bytes()
    (raw / FILES[2]).unlink()
    (raw / FILES[2]).write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"t10k files .* are damaged"):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "folder"),
    [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")],
)
def test_files_in_torchvisions_layout(tmp_path, name, folder, no_network):
    write_set(tmp_path, folder)
    loaded = data.load(name, str(tmp_path))
    assert loaded.name == name
    assert loaded.note.startswith(f"{name} (30 training and 20 test pictures from {tmp_path}")
    assert_same(loaded.train, digits(30))
    assert_same(loaded.test, digits(20, seed=1))
    assert no_network == []


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["mnist", "auto"])
def test_files_as_kaggle_names_them(tmp_path, name, packed, no_network):
    raw = write_set(tmp_path)
    for file in FILES:
        dotted = raw / file.replace("-idx", ".idx")
        (raw / file).rename(dotted)
        if packed:  # by somebody else than the data set's authors: another archive's checksum
            dotted.with_name(f"{dotted.name}.gz").write_bytes(gzip.compress(dotted.read_bytes(), 1))
            dotted.unlink()
    loaded = data.load(name, tmp_path)
    assert loaded.name == "mnist"
    assert_same(loaded.train, digits(30))
    assert_same(loaded.test, digits(20, seed=1))
    assert no_network == []


def test_one_file_of_another_name_beside_the_usual_ones(tmp_path):
    raw = write_set(tmp_path)
    (raw / FILES[2]).rename(raw / "t10k-images.idx3-ubyte")
    assert_same(data.load("mnist", tmp_path).test, digits(20, seed=1))


def test_the_error_lists_the_files_that_are_wanted(tmp_path):
    with pytest.raises(DataError) as raised:
        data.load("mnist", tmp_path, download=False)
    assert all(file in str(raised.value) for file in FILES)
    assert "train-images.idx3-ubyte" in str(raised.value)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_set(tmp_path / "sets")
    assert len(data.load("mnist", "~/sets").train) == 30


def test_digits(tmp_path):
    loaded = data.load("digits", tmp_path / "is not used")
    assert loaded.name == "digits"
    assert (len(loaded.train), len(loaded.test)) == (1437, 360)
    again = data.load("digits", tmp_path)
    assert_same(again.train, loaded.train)
    assert_same(again.test, loaded.test)

    bundled = importlib.import_module("sklearn.datasets").load_digits()
    whole = torch.bincount(torch.from_numpy(bundled.target))
    test = torch.bincount(loaded.test.labels)
    assert torch.equal(torch.bincount(loaded.train.labels) + test, whole)
    assert bool(((test - 0.2 * whole).abs() < 1).all())
    # Bilinear enlargement as a product: each new pixel's weights on the old rows and columns.
    place = ((torch.arange(28) + 0.5) * 8 / 28 - 0.5).clamp(0, 7)
    weights = (1 - (place[:, None] - torch.arange(8)).abs()).clamp(min=0)
    wanted = weights @ (torch.from_numpy(bundled.images).float() * (255 / 16)) @ weights.T
    images = torch.cat([loaded.train.images, loaded.test.images]).float()
    nearest = torch.cdist(images.flatten(1), wanted.flatten(1)).argmin(1)
    assert (images - wanted[nearest]).abs().max() < 0.51
    labels = torch.cat([loaded.train.labels, loaded.test.labels])
    assert sorted(nearest.tolist()) == list(range(1797))
    assert torch.equal(torch.from_numpy(bundled.target)[nearest], labels)


def test_digits_are_split_as_scikit_learn_splits_them(tmp_path):
    bundled = importlib.import_module("sklearn.datasets").load_digits()
    split = importlib.import_module("sklearn.model_selection").train_test_split
    drawn = np.random.default_rng(0)
    for labels in (bundled.target, np.repeat(np.arange(7), 11), drawn.integers(10, size=403)):
        count = len(labels)
        for tested in (count // 5, count // 3):
            found = bundled_digits._stratified(labels, tested)
            wanted = split(range(count), test_size=tested, random_state=0, stratify=labels)
            assert [part.tolist() for part in found] == list(wanted)
    train, _ = split(bundled.target, test_size=360, random_state=0, stratify=bundled.target)
    assert data.load("digits", tmp_path).train.labels.tolist() == train.tolist()


def test_auto_without_mnist_and_network_takes_digits_and_says_so(tmp_path, capfd):
    before = socket.getdefaulttimeout()
    loaded = data.load("auto", tmp_path / "data")
    assert loaded.name == "digits"
    assert loaded.note.count("\n") == 0
    for words in ("auto took digits", str(tmp_path), "could not be downloaded", "name resolution"):
        assert words in loaded.note
    assert socket.getdefaulttimeout() == before
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_made_for_what_cannot_be_fetched(tmp_path, no_network):
    pytest.importorskip("torchvision")
    with pytest.raises(DataError, match="could not be downloaded"):
        data.load("mnist", tmp_path / "fresh" / "a")
    assert no_network != []
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="could not be downloaded"):
        data.load("mnist", tmp_path / "mine" / "a")
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_nothing_is_asked_of_the_network_without_permission(tmp_path, no_network):
    assert data.load("auto", tmp_path, download=False).name == "digits"
    with pytest.raises(DataError, match="downloading was not allowed"):
        data.load("mnist", tmp_path, download=False)
    assert no_network == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_an_explicit_name_never_falls_back(tmp_path, name):
    with pytest.raises(DataError, match=r"(?s)could not be downloaded.*choose 'digits'") as raised:
        data.load(name, tmp_path)
    assert str(raised.value).count("\n") == 1


@pytest.mark.parametrize("name", ["mnist", "auto"])
def test_download(tmp_path, monkeypatch, capfd, name):
    timeouts = serve_archives(monkeypatch, archives())
    before = socket.getdefaulttimeout()
    loaded = data.load(name, tmp_path / "new" / "data")
    assert loaded.name == "mnist"
    assert_same(loaded.train, digits(30))
    assert_same(loaded.test, digits(20, seed=1))
    assert capfd.readouterr() == ("", "")
    assert timeouts.count(fetching.DOWNLOAD_TIMEOUT) >= len(FILES)
    assert socket.getdefaulttimeout() == before
    assert [path.name for path in (tmp_path / "new" / "data").iterdir()] == ["MNIST"]
    assert len(data.load("mnist", tmp_path / "new" / "data", download=False).train) == 30


@pytest.mark.parametrize("broken", [TimeoutError("timed out"), ConnectionResetError("reset")])
def test_a_connection_that_breaks_off_leaves_nothing(tmp_path, monkeypatch, broken):
    served = archives()
    serve_archives(monkeypatch, served)
    retrieve = torchvision.datasets.utils._urlretrieve

    def break_off(url, filename, *args):
        if "t10k-images" not in url:
            return retrieve(url, filename, *args)
        Path(filename).write_bytes(served["t10k-images-idx3-ubyte.gz"][:100])
        raise broken

    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", break_off)
    with pytest.raises(DataError, match=str(broken)):
        data.load("mnist", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert data.load("auto", tmp_path).name == "digits"


def test_a_mirror_that_serves_other_contents(tmp_path, monkeypatch):
    served = archives()
    serve_archives(monkeypatch, served)
    served["train-images-idx3-ubyte.gz"] = b"<html>Log in to this network</html>"
    with pytest.raises(DataError, match="not found or corrupted"):
        data.load("mnist", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_silent_network_is_given_up_in_time(tmp_path, monkeypatch):
    # As behind a firewall that drops packets, where a look-up alone can hang for long.
    released = threading.Event()
    monkeypatch.setattr(fetching, "DOWNLOAD_TIMEOUT", 0.05)

    def hang(*args, **kwargs):
        released.wait(60)
        raise TimeoutError

    monkeypatch.setattr(urllib.request, "urlopen", hang)
    try:
        note = data.load("auto", tmp_path).note
    finally:
        released.set()
    assert "no answer within 0.05 s" in note


def test_archives_beside_no_plain_file_are_unpacked_without_network(tmp_path, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    served = archives()
    timeouts = serve_archives(monkeypatch, served)
    for name, content in served.items():
        (raw / name).write_bytes(content)
    assert_same(data.load("mnist", tmp_path, download=False).train, digits(30))
    assert timeouts == []


@pytest.mark.parametrize("name", ["mnist", "auto"])
def test_a_damaged_archive_is_fetched_anew_or_is_an_error(tmp_path, monkeypatch, name, no_network):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"half of it")
    with pytest.raises(DataError, match=f"incomplete, without a sound {FILES[0]}"):
        data.load(name, tmp_path)
    assert no_network != []
    serve_archives(monkeypatch, archives())
    assert_same(data.load(name, tmp_path).train, digits(30))


def cut(file, length):
    return lambda raw: (raw / file).write_bytes((raw / file).read_bytes()[:length])


def put(file, content):
    return lambda raw: (raw / file).write_bytes(content)


DAMAGES = {
    "images cut short": cut(FILES[0], -1),
    "labels cut short": cut(FILES[1], -1),
    "header cut short": cut(FILES[0], 7),
    "header only": cut(FILES[0], 16),
    "empty file": cut(FILES[1], 0),
    "a web page": put(FILES[0], b"<!DOCTYPE html><html>404</html>"),
    "still compressed": put(FILES[0], gzip.compress(b"data")),
    "unknown number type": put(FILES[0], b"\0\0\x0a\x03" + bytes(40)),
    "float images": put(FILES[0], struct.pack(">4B3I", 0, 0, 13, 3, 1, 28, 28) + bytes(4 * 784)),
    "absurd size": put(FILES[0], struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3) + bytes(9)),
    "images of 8 x 8": put(FILES[0], idx(torch.zeros(30, 8, 8))),
    "fewer labels": put(FILES[1], idx(torch.zeros(29))),
    "more labels": put(FILES[1], idx(torch.zeros(31))),
    "a label of 10": put(FILES[1], idx(torch.full((30,), 10))),
    "labels for images": put(FILES[0], idx(torch.zeros(30))),
}


@pytest.mark.parametrize("name", ["mnist", "auto"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_files(tmp_path, name, damage, no_network):
    damage(write_set(tmp_path))
    with pytest.raises(DataError, match=r"the train files .* are damaged \(.+\)") as raised:
        data.load(name, tmp_path)
    message = str(raised.value)
    assert str(tmp_path / "MNIST" / "raw") in message
    assert message.count("\n") == 1
    assert no_network == []


@pytest.mark.parametrize("name", ["mnist", "auto"])
@pytest.mark.parametrize("file", FILES)
def test_one_file_missing(tmp_path, name, file):
    (write_set(tmp_path) / file).unlink()
    with pytest.raises(DataError, match=f"incomplete, without a sound {file}"):
        data.load(name, tmp_path)


@pytest.mark.parametrize("name", ["mnist", "auto"])
def test_data_path_is_a_file(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file: give the folder"):
        data.load(name, tmp_path / "file")


def test_data_path_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Not a directory"):
        data.load("mnist", tmp_path / "file" / "data")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_data_path_cannot_be_written(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(DataError, match="Permission denied"):
        data.load("mnist", tmp_path)


def refuse(*args, **kwargs):
    raise PermissionError(13, "Permission denied")


def test_archives_in_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    served = archives()
    serve_archives(monkeypatch, served)
    for name, content in served.items():
        (raw / name).write_bytes(content)
    monkeypatch.setattr(datasets.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(DataError, match=r"cannot unpack .* writable"):
        data.load("auto", tmp_path)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    write_set(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"cannot read .* permissions"):
        data.load("auto", tmp_path)


@pytest.mark.parametrize(
    ("wrong", "near"), [("minst", "mnist"), ("MNIST", "mnist"), ("fashion", "fashion_mnist")]
)
def test_unknown_name(tmp_path, wrong, near):
    with pytest.raises(DataError, match=f"unknown data set '{wrong}': did you mean '{near}'"):
        data.load(wrong, tmp_path)


def test_unknown_name_like_no_other(tmp_path):
    with pytest.raises(DataError, match=r"'xyz': the names are mnist, .*, auto"):
        data.load("xyz", tmp_path)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("mnist", "torchvision.datasets", "torchvision"),
        ("digits", "sklearn", "scikit-learn"),
    ],
)
def test_missing_packages(tmp_path, monkeypatch, name, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=f"pip install {package}"):
        data.load(name, tmp_path)


def test_auto_without_torchvision_takes_digits_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    loaded = data.load("auto", tmp_path)
    assert loaded.name == "digits"
    assert "not MNIST, because torchvision is needed" in loaded.note
    assert loaded.note.endswith("pip install torchvision")


def test_scikit_learn_without_its_digits(tmp_path, monkeypatch):
    monkeypatch.setattr(bundled_digits, "FILE", "datasets/data/none.csv.gz")
    with pytest.raises(MissingDependencyError, match=r"has no datasets/data/none.*pip install"):
        data.load("digits", tmp_path)


def test_torchvision_that_does_not_fit_torch(tmp_path, monkeypatch):
    def import_module(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(datasets.importlib, "import_module", import_module)
    with pytest.raises(MissingDependencyError, match=r"nms does not exist.*pip install"):
        data.load("mnist", tmp_path)
