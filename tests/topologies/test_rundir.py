"""Where a lab's files lie, and who may hold them (contracts: base, run directory, sockets, lock)."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from topologies import basedir, rundir, sockdir
from topologies.basedir import RunDirError
from topologies.rundir import RunDirectory
from topologies.runlock import LabBusy


@pytest.fixture
def base(short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base of this test's own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_tmp_path))
    return short_tmp_path / "argosy"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# ---- the base ---------------------------------------------------------------------------------------------


def test_base_in_the_runtime_directory(base: Path) -> None:
    """$XDG_RUNTIME_DIR/argosy, made with mode 0700 whatever the umask says."""
    before = os.umask(0)
    try:
        assert basedir.base_directory() == base
    finally:
        os.umask(before)
    assert mode(base) == 0o700


@pytest.mark.parametrize("value", ["", "relative/path", "/nonexistent/runtime"])
def test_base_without_a_runtime_directory(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else /run/user/UID/argosy, else argosy-UID in the temporary directory."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", value)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    user = Path(f"/run/user/{os.geteuid()}")
    expected = user / "argosy" if user.is_dir() else tmp_path / f"argosy-{os.geteuid()}"
    assert basedir.base_path() == expected


def test_a_runtime_directory_of_somebody_else_does_not_count(
    short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """su and sudo leave the other user's XDG_RUNTIME_DIR in the environment."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert basedir.base_path({"XDG_RUNTIME_DIR": str(short_tmp_path)}) != short_tmp_path / "argosy"


def test_a_symbolic_link_is_refused(base: Path, tmp_path: Path) -> None:
    """Somebody could have planted it in a shared temporary directory."""
    base.symlink_to(tmp_path)
    with pytest.raises(RunDirError, match="symbolic link"):
        basedir.base_directory()


def test_a_mode_that_lets_others_in_is_refused(base: Path) -> None:
    """Mode beyond 0700, with the command that mends it."""
    base.mkdir(mode=0o700)
    base.chmod(0o750)
    with pytest.raises(RunDirError, match=f"chmod 700 {base}"):
        basedir.base_directory()


def test_another_owner_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory must be ours."""
    base.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(RunDirError, match="not to you"):
        basedir.private_directory(base)


def test_a_file_in_its_place_is_refused(base: Path) -> None:
    """In words, not as an errno."""
    base.write_text("")
    with pytest.raises(RunDirError, match="is no directory"):
        basedir.base_directory()


# ---- sockets ----------------------------------------------------------------------------------------------


def test_sockets_lie_below_the_base(base: Path) -> None:
    """<base>/s/<8 hex digits>, at most 40 bytes, 0700, whatever --run-dir says."""
    sockets = sockdir.new_socket_directory()
    assert sockets.parent == base / "s"
    assert len(sockets.name) == 8
    int(sockets.name, 16)
    assert len(os.fsencode(sockets)) <= sockdir.SOCKETS_LIMIT
    assert mode(sockets) == 0o700
    assert sockdir.socket_directories() == [sockets]


@pytest.mark.parametrize(("length", "short"), [(40, False), (41, True)])
def test_forty_bytes(length: int, short: bool, short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket directory of 40 bytes stays below the base; one of 41 goes to the temporary directory."""
    below = len("/argosy/s/01234567")
    runtime = short_tmp_path / ("x" * (length - below - len(os.fsencode(short_tmp_path)) - 1))
    runtime.mkdir()
    temporary = short_tmp_path / "t"
    temporary.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    sockets = sockdir.new_socket_directory()
    parent = temporary / f"argosy-{os.geteuid()}" if short else runtime / "argosy" / "s"
    assert sockets.parent == parent
    assert mode(parent) == 0o700
    assert sockdir.socket_directories() == [sockets]
    assert sockdir.is_socket_directory(sockets)


def test_a_temporary_directory_beyond_any_socket_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """107 bytes is all that AF_UNIX takes: said before anything is bound."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(RunDirError, match="TMPDIR"):
        sockdir.new_socket_directory()


def test_only_socket_directories_are_removed(base: Path, tmp_path: Path) -> None:
    """A link that leads elsewhere never makes us delete what is not ours."""
    sockets = sockdir.new_socket_directory()
    for path in (tmp_path, base, base / "s", tmp_path / "01234567"):
        path.mkdir(exist_ok=True)
        sockdir.remove_socket_directory(path)
        assert path.is_dir()
    sockdir.remove_socket_directory(sockets)
    assert not sockets.exists()


def test_a_lab_may_be_called_like_a_socket_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the base is in the temporary directory the two kinds lie side by side."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(basedir, "base_path", lambda _environ=None: tmp_path / f"argosy-{os.geteuid()}")
    taken = RunDirectory.take(basedir.run_path("0a1b2c3d"), None)
    assert not sockdir.is_socket_directory(taken.path)
    assert sockdir.socket_directories() == []
    sockdir.remove_socket_directory(taken.path)
    taken.write_state({"lab": "0a1b2c3d"})
    assert rundir.recorded_labs() == [taken.path]
    taken.release()


# ---- run directories --------------------------------------------------------------------------------------


def test_run_directory(base: Path) -> None:
    """<base>/<name>, 0700, with lock, nodes, and links both ways."""
    sockets = sockdir.new_socket_directory()
    taken = RunDirectory.take(basedir.run_path("lab"), sockets)
    path = base / "lab"
    assert taken.path == path
    assert mode(path) == 0o700
    assert os.readlink(path / "sockets") == str(sockets)
    assert sockdir.run_directory_of(sockets) == path
    assert taken.node_directory("hv0") == path / "nodes" / "hv0"
    assert mode(path / "nodes" / "hv0") == 0o700
    taken.write_state({"lab": "lab"})
    assert rundir.recorded_labs() == [path]
    taken.release()
    assert sorted(entry.name for entry in path.iterdir()) == ["nodes", "state.json"]
    taken.release()  # a second time is nothing


def test_a_lab_cannot_have_the_name_of_the_sockets(base: Path) -> None:
    """<base>/s is taken."""
    with pytest.raises(RunDirError, match="--name"):
        basedir.run_path("s")


def test_a_second_holder_is_refused_and_told_of_the_first(base: Path) -> None:
    """The refusal names the holder's pid and since when."""
    taken = RunDirectory.take(basedir.run_path("lab"), None)
    with pytest.raises(LabBusy, match=rf"agent pid {os.getpid()}, since 2\d\d\d-") as refusal:
        RunDirectory.take(basedir.run_path("lab"), None)
    assert refusal.value.holder.pid == os.getpid()
    assert abs(refusal.value.holder.since - taken.holder.since) < 0.001
    taken.release()
    RunDirectory.take(basedir.run_path("lab"), None).release()


def test_a_holder_that_has_not_written_yet(base: Path) -> None:
    """The lock decides, not the text in the file."""
    taken = RunDirectory.take(basedir.run_path("lab"), None)
    (taken.path / "lock").write_text("")
    with pytest.raises(LabBusy, match="just starting"):
        RunDirectory.take(taken.path, None)
    taken.release()


def test_the_lock_dies_with_its_holder(base: Path) -> None:
    """An agent that was killed leaves its file, not its lock; the next one clears up after it."""
    program = (
        "import os, signal\n"
        "from topologies import basedir, rundir, sockdir\n"
        "sockets = sockdir.new_socket_directory()\n"
        "taken = rundir.RunDirectory.take(basedir.run_path('lab'), sockets)\n"
        "taken.write_state({'lab': 'lab'})\n"
        "taken.node_directory('old')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert (base / "lab" / "lock").exists()
    left = sockdir.socket_directories()
    assert len(left) == 1
    taken = RunDirectory.take(basedir.run_path("lab"), None)
    assert sockdir.socket_directories() == []
    assert not (taken.path / "nodes" / "old").exists()
    assert not (taken.path / "sockets").is_symlink()
    assert rundir.read_state(taken.path) is None
    taken.release()


def test_many_take_turns_and_never_share(base: Path) -> None:
    """The file of a lock that is let go is removed; whoever waited on that file does not hold the lab."""
    inside: list[int] = []
    shared: list[int] = []
    turns = [0]

    def contend() -> None:
        while turns[0] < 100:
            try:
                taken = RunDirectory.take(basedir.run_path("lab"), None)
            except LabBusy:
                continue
            inside.append(1)
            if len(inside) > 1:
                shared.append(1)
            turns[0] += 1
            inside.pop()
            taken.release()

    threads = [threading.Thread(target=contend) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not shared


def test_another_s_files_are_not_taken_over(base: Path, tmp_path: Path) -> None:
    """--run-dir on a directory full of something else is a mistake, and nothing in it is touched."""
    path = tmp_path / "precious"
    path.mkdir(mode=0o700)
    (path / "thesis.tex").write_text("words")
    with pytest.raises(RunDirError, match=r"thesis\.tex"):
        RunDirectory.take(path, None)
    assert [entry.name for entry in path.iterdir()] == ["thesis.tex"]


def test_a_run_directory_whose_parent_is_missing(tmp_path: Path) -> None:
    """In words."""
    with pytest.raises(RunDirError, match="No such file or directory"):
        RunDirectory.take(tmp_path / "no" / "lab", None)


def test_a_name_that_is_too_long(base: Path) -> None:
    """In words: file names end at 255 bytes."""
    with pytest.raises(RunDirError, match="too long"):
        RunDirectory.take(basedir.run_path("x" * 300), None)


def test_long_run_directories_work(base: Path, tmp_path: Path) -> None:
    """200 bytes and more: sockets lie elsewhere."""
    path = tmp_path / ("r" * 200)
    sockets = sockdir.new_socket_directory()
    taken = RunDirectory.take(path, sockets)
    assert len(os.fsencode(path)) > 200
    assert (path / "sockets").resolve() == sockets.resolve()
    taken.release()


def test_state_is_replaced_as_a_whole(base: Path) -> None:
    """A reader sees the old state or the new one, never half of it."""
    taken = RunDirectory.take(basedir.run_path("lab"), None)
    taken.write_state({"n": 0, "fill": ""})
    stop = threading.Event()
    seen: list[dict[str, object]] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(json.loads((taken.path / "state.json").read_text()))

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(200):
        taken.write_state({"n": n, "fill": "x" * 20_000 * (n % 3)})
    stop.set()
    reader.join()
    assert all(len(str(state["fill"])) in (0, 20_000, 40_000) for state in seen)
    assert sorted(entry.name for entry in taken.path.iterdir()) == ["lock", "nodes", "state.json"]
    taken.release()


def test_the_lock_is_a_flock(base: Path) -> None:
    """Other programs can look whether a lab is held."""
    taken = RunDirectory.take(basedir.run_path("lab"), None)
    with open(taken.path / "lock") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    taken.release()
