"""Disk images in files: what is stored, locked, punched, made (pread(2), fdatasync(2), fallocate(2), flock(2))."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from guest_node import images
from guest_node.files import DirectoryFiles
from guest_node.images import FileStore, ImageInUse

SIZE = 256 * 1024


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


def test_bytes_at_offsets(image: Path) -> None:
    """What was written is read, by this one and by whoever opens the file; the size is the file's."""
    before = image.read_bytes()
    with FileStore(image, writable=True) as store:
        assert store.size == SIZE
        assert store.pread(1000, 3000) == before[1000:4000]
        store.pwrite(4095, memoryview(b"abc"))
        store.pwrite(SIZE - 1, bytearray(b"z"))
        store.flush()
        assert store.pread(4094, 5) == before[4094:4095] + b"abc" + before[4098:4099]
    assert image.read_bytes() == before[:4095] + b"abc" + before[4098:-1] + b"z"


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1)])
def test_ranges_that_are_not_there(image: Path, offset: int, size: int) -> None:
    """EINVAL, and the file does not grow."""
    with FileStore(image, writable=True) as store:
        for attempt in (
            lambda: store.pread(offset, size),
            lambda: store.pwrite(offset, bytes(size)),
            lambda: store.zero(offset, size),
            lambda: store.punch(offset, size),
        ):
            with pytest.raises(OSError) as caught:
                attempt()
            assert caught.value.errno == errno.EINVAL
    assert image.stat().st_size == SIZE


def test_a_file_that_was_cut(image: Path) -> None:
    """A read beyond its new end is EIO, never short."""
    with FileStore(image) as store:
        os.truncate(image, 5000)
        with pytest.raises(OSError, match="cut") as caught:
            store.pread(4096, 1024)
        assert caught.value.errno == errno.EIO
        assert len(store.pread(0, 5000)) == 5000


def test_only_readable(image: Path) -> None:
    """Opened for reading it cannot be changed."""
    with FileStore(image) as store, pytest.raises(OSError) as caught:
        store.pwrite(0, b"x")
    assert caught.value.errno == errno.EBADF


def test_locks(image: Path) -> None:
    """One writer or any number of readers; closing lets go."""
    with FileStore(image), FileStore(image), pytest.raises(ImageInUse, match="somebody uses this image"):
        FileStore(image, writable=True)
    with FileStore(image, writable=True):
        for writable in (False, True):
            with pytest.raises(ImageInUse) as caught:
                FileStore(image, writable=writable)
            assert caught.value.errno == errno.EBUSY
    store = FileStore(image, writable=True)
    store.close()
    store.close()
    FileStore(image).close()


def test_flush_is_fdatasync(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It returns when fdatasync has, and raises what that raises."""
    asked: list[int] = []

    def refuse(fd: int) -> None:
        asked.append(fd)
        raise OSError(errno.EIO, "no such luck")

    monkeypatch.setattr(os, "fdatasync", refuse)
    with FileStore(image, writable=True) as store:
        with pytest.raises(OSError, match="no such luck"):
            store.flush()
        assert len(asked) == 1


@pytest.mark.parametrize("supported", [True, False])
def test_zeros_and_holes(image: Path, monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    """Zeroed ranges read as zeros on any file system; a hole does where it can be made, and else nothing changes."""
    if not supported:

        def refuse(*_arguments: int) -> None:
            raise images.Unsupported(errno.EOPNOTSUPP, "not here")

        monkeypatch.setattr(images, "_fallocate", refuse)
    before = image.read_bytes()
    with FileStore(image, writable=True) as store:
        store.zero(100, 100_000)
        store.zero(5, 0)
        after = before[:100] + bytes(100_000) + before[100_100:]
        assert store.pread(0, SIZE) == after
        store.punch(200_000, 4097)
        store.punch(200_000, 0)
        punched = bytes(4097) if supported else after[200_000:204_097]
        assert store.pread(0, SIZE) == after[:200_000] + punched + after[204_097:]
        assert store.size == image.stat().st_size == SIZE


def test_an_error_of_fallocate_is_raised(image: Path) -> None:
    """Only what the file system cannot do at all is done another way."""
    with FileStore(image) as store, pytest.raises(OSError) as caught:
        store.zero(0, 4096)
    assert caught.value.errno == errno.EBADF and not isinstance(caught.value, images.Unsupported)


def test_images_of_a_guest(image: Path, tmp_path: Path) -> None:
    """One of the topology's directory is used in place; one of the guest's own is made once, and found again."""
    files = DirectoryFiles(tmp_path, tmp_path / "run" / "nodes" / "disk")
    mine = tmp_path / "run" / "nodes" / "disk" / "mine.img"
    used = files.open_image("disk.img", writable=True)
    used.pwrite(0, b"in place")
    used.close()
    assert image.read_bytes()[:8] == b"in place"
    for life in range(2):
        own = files.own_image("mine.img", source="disk.img")
        assert own.pread(0, 8) == (b"in place", b"changed!")[life]
        assert own.pread(8, SIZE - 8) == image.read_bytes()[8:]
        own.pwrite(0, b"changed!")
        own.close()
    assert image.read_bytes()[:8] == b"in place"
    empty = files.own_image("empty.img", size=12345)
    assert (empty.size, empty.pread(0, 12345)) == (12345, bytes(12345))
    empty.close()
    assert sorted(path.name for path in mine.parent.iterdir()) == ["empty.img", "mine.img"]
    for name in ("../x", "a/b", ""):
        with pytest.raises(ValueError, match="output file"):
            files.own_image(name, size=1)
    with pytest.raises(FileNotFoundError):
        files.open_image("nowhere.img")
    with pytest.raises(FileNotFoundError):
        files.own_image("other.img", source="nowhere.img")


def test_a_copy_keeps_holes(tmp_path: Path) -> None:
    """An image of a mostly empty disk takes no more room than what is on it."""
    source = tmp_path / "sparse.img"
    with source.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"x")
    images.copy(source, tmp_path / "copy.img").close()
    found = (tmp_path / "copy.img").stat()
    assert found.st_size == 64 << 20
    assert found.st_blocks * 512 <= 2 << 20
    assert (tmp_path / "copy.img").read_bytes() == source.read_bytes()


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not complete has another name, and is removed."""

    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="no room"):
        images.copy(image, tmp_path / "out" / "copy.img")
    assert list((tmp_path / "out").iterdir()) == []
