"""The guest as a program sees it: exit codes, results, closing, time.

Source: docstring of guest_node.guest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from guest_node.files import DirectoryFiles, safe_name
from guest_node.guest import RESULTS_MOST, Guest
from tests.doubles.argo_rig import simulate
from tests.doubles.guests import Lab


def run(program: Callable[[Guest], Any], **arguments: Any) -> tuple[int, Guest, Lab]:
    lab = Lab("one", "two")
    codes = simulate(lambda: lab.run(one=(program, arguments, 0.0)))
    return codes["one"], lab.guests["one"], lab


@pytest.mark.parametrize(("value", "code"), [(None, 0), (0, 0), (3, 3), (True, 1)])
def test_exit_codes(value: Any, code: int) -> None:
    """What the program returns is its guest's exit code, None meaning 0."""

    async def main(guest: Guest) -> Any:
        return value

    assert run(main)[0] == code


def test_a_wrong_return_value() -> None:
    """Anything else is a mistake of the program, and is called one."""

    async def main(guest: Guest) -> Any:
        return "fine"

    with pytest.raises(ExceptionGroup) as caught:
        run(main)
    assert caught.group_contains(TypeError, match="'fine'")


def test_what_a_program_raises_is_raised() -> None:
    """And its sockets are closed all the same: no ring is left."""

    async def main(guest: Guest) -> int:
        await guest.argo.listen(5)
        raise KeyError("mine")

    lab = Lab("one")
    with pytest.raises(ExceptionGroup) as caught:
        simulate(lambda: lab.run(one=(main, {}, 0.0)))
    assert caught.group_contains(KeyError)
    assert list(lab.guests["one"].driver.rings) == []
    argo = lab.rig.guests[1].domain.argo
    assert argo is not None
    assert argo.rings == {}


def test_sockets_left_open_are_closed_in_order() -> None:
    """A program that ends without closing tells its peers, as a process's exit closes its descriptors."""
    seen: list[bytes] = []

    async def server(guest: Guest) -> None:
        async with await guest.argo.listen(5) as listener, await listener.accept() as connection:
            while data := await connection.receive():
                seen.append(data)
            seen.append(b"")

    async def client(guest: Guest) -> None:
        connection = await guest.argo.connect(guest.peers["two"], 5)
        await connection.send(b"bye")

    lab = Lab("one", "two")
    codes = simulate(lambda: lab.run(two=(server, {}, 0.0), one=(client, {}, 0.1)), limit=10)
    assert codes == {"one": 0, "two": 0}
    assert seen == [b"bye", b""]


def test_results_are_merged_and_checked() -> None:
    """Later fields replace earlier ones; what JSON does not know is refused at the call."""

    async def main(guest: Guest) -> None:
        guest.result(a=1, b="x")
        guest.result(b=[1, 2], c=None)
        with pytest.raises(TypeError):
            guest.result(d=b"bytes")
        with pytest.raises(ValueError):
            guest.result(e=float("nan"))

    assert run(main)[1].results == {"a": 1, "b": [1, 2], "c": None}


def test_a_report_that_is_too_large() -> None:
    """It is refused at the call that would make it so, with the limit and the way out; what was reported stays."""

    async def main(guest: Guest) -> None:
        guest.result(a="x" * (RESULTS_MOST // 2))
        with pytest.raises(ValueError, match=rf"may be {RESULTS_MOST}: write a file \(guest\.files\.create_output\)"):
            guest.result(b="x" * (RESULTS_MOST // 2))
        guest.result(a="x" * (RESULTS_MOST - len('{"a": ""}')))
        with pytest.raises(ValueError):
            guest.result(a="\N{SNOWMAN}" * (RESULTS_MOST // 6))

    assert len(run(main)[1].results["a"]) == RESULTS_MOST - 9


def test_what_a_guest_offers() -> None:
    """Arguments and peers cannot be changed; time is the loop's and starts at 0; the log is the shell's."""

    async def main(guest: Guest) -> None:
        assert guest.name == "one"
        assert guest.domid == 1
        assert dict(guest.arguments) == {"x": 1}
        assert dict(guest.peers) == {"two": 2}
        with pytest.raises(TypeError):
            guest.arguments["x"] = 2  # type: ignore[index]
        assert guest.time() == pytest.approx(0.0)
        await asyncio.sleep(2.5)
        assert guest.time() == pytest.approx(2.5)
        guest.log("hello")
        assert 0 <= guest.random.random() < 1

    assert run(main, x=1)[2].logs["one"] == ["hello"]


def test_the_end_of_the_pump_reaches_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the driver's task fails (the hypervisor is gone), whoever waits is told, and nothing hangs."""

    async def main(guest: Guest) -> None:
        listener = await guest.argo.listen(5)
        socket = await guest.argo.datagram(6)
        await asyncio.sleep(0.1)

        async def gone(*_: Any) -> Any:
            raise ConnectionAbortedError("the hypervisor is gone")

        monkeypatch.setattr(guest.driver.calls, "notify", gone)
        guest.driver.consumed(next(iter(guest.driver.rings)))
        with pytest.raises(ConnectionAbortedError):
            await listener.accept()
        with pytest.raises(ConnectionAbortedError):
            await socket.receive()

    with pytest.raises(ExceptionGroup) as caught:
        run(main)
    assert caught.group_contains(ConnectionAbortedError)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("plain.txt", "plain.txt"),
        ("a/b/c", "c"),
        ("c:\\x\\y", "y"),
        ("../..", "received"),
        ("...x", "x"),
        ("", "received"),
        ("a\x00b\x1b[31m", "ab[31m"),
        ("\u202eexe.txt", "exe.txt"),
        ("\udce4x", "x"),
        ("n" * 300, "n" * 200),
        ("\u20ac" * 100, "\u20ac" * 66),
    ],
)
def test_safe_names(name: str, safe: str) -> None:
    """A stranger's file name stays in its directory, is printable and not hidden, and fits a file system."""
    assert safe_name(name) == safe
    assert safe_name(safe) == safe


def test_directory_files(tmp_path: Any) -> None:
    """An output appears under its name when it is committed, never before; discarded, it leaves nothing."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "in").write_bytes(b"data")
    files = DirectoryFiles(tmp_path / "base", tmp_path / "out")
    with files.open_input("in") as file:
        assert file.read() == b"data"
    with pytest.raises(FileNotFoundError):
        files.open_input("absent")
    output = files.create_output("x")
    output.write(b"12")
    output.write(memoryview(b"34"))
    assert not (tmp_path / "out" / "x").exists()
    output.commit()
    output.discard()
    assert (tmp_path / "out" / "x").read_bytes() == b"1234"
    output = files.create_output("y")
    output.write(b"12")
    output.discard()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x"]
    for name in ("../y", "/etc/y", "", ".y"):
        with pytest.raises(ValueError, match="cannot name an output"):
            files.create_output(name)
