"""A few machines: network namespaces that share this one's files, on one bridge, each with an sshd of its own.

What a namespace does not separate is told apart by the environment: every host has a base directory of its own, which
its sshd gives to whoever logs in.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.e2e.rig import ROOT, Rig, wait_until

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin")
PORT = 2222
LEADER = "lead"


def missing() -> str:
    """Why there can be no such network here; "" when there can."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    for command in ("ip", "ssh", "ssh-keygen"):
        if shutil.which(command) is None:
            return f"there is no {command}"
    if SSHD is None:
        return "there is no sshd"
    name = f"av{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return "network namespaces cannot be made here"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return ""


def ip(*words: str) -> str:
    """`ip`, which must succeed."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout


class Machine:
    """One namespace."""

    def __init__(self, network: Network, name: str, number: int) -> None:
        self.network = network
        self.name = name
        self.namespace = f"{network.prefix}-{name}"
        self.address = f"10.77.0.{number}"
        self.outer = f"{network.prefix}v{number}"
        self.base = network.directory / name
        self.base.mkdir(mode=0o700)
        self.sshd: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        """The namespace, and its cable to the switch."""
        ip("netns", "add", self.namespace)
        ip("link", "add", self.outer, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        ip("link", "set", self.outer, "netns", self.network.switch)
        ip("-n", self.network.switch, "link", "set", self.outer, "master", "br0", "up")
        ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", self.namespace, "link", "set", device, "up")

    def inside(self, *words: str) -> list[str]:
        """The command that runs `words` here."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def environment(self) -> dict[str, str]:
        """What makes this machine's processes its own."""
        return {"XDG_RUNTIME_DIR": str(self.base), "TMPDIR": str(self.base), "PYTHONPATH": str(ROOT)}

    def start_sshd(self) -> None:
        """A server that lets the lab's user in, and nobody else."""
        keys = self.network.directory
        given = " ".join(f"{key}={value}" for key, value in self.environment().items())
        config = self.base / "sshd_config"
        config.write_text(
            f"Port {PORT}\nListenAddress {self.address}\nHostKey {keys}/host_key\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {keys}/user_key.pub\nStrictModes no\nPermitRootLogin prohibit-password\n"
            f"PasswordAuthentication no\nSetEnv {given}\nLogLevel VERBOSE\n"
        )
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        assert SSHD is not None
        with open(self.base / "sshd.log", "ab") as log:
            words = self.inside(SSHD, "-D", "-e", "-f", str(config))
            self.sshd = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def listens(self) -> bool:
        """Whether its sshd does."""
        return "Server listening" in (self.base / "sshd.log").read_text()

    def cut(self) -> None:
        """Pull the cable."""
        ip("-n", self.network.switch, "link", "set", self.outer, "down")

    def heal(self) -> None:
        """Put it back."""
        ip("-n", self.network.switch, "link", "set", self.outer, "up")

    def pids(self) -> list[int]:
        """Every process here."""
        return [int(pid) for pid in ip("netns", "pids", self.namespace).split()]

    def processes(self) -> dict[int, str]:
        """Every process here but the sshd itself: pid and command line."""
        found = {}
        for pid in self.pids():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if self.sshd is None or pid != self.sshd.pid:
                    found[pid] = words.strip()
        return {pid: words for pid, words in found.items() if words}

    def nodes(self) -> list[str]:
        """What of a lab runs here."""
        return [words for words in self.processes().values() if "topologies" in words or "multiprocess" in words]

    def signal(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process here, and to none elsewhere."""
        assert pid in self.pids()
        os.kill(pid, number)

    def kill(self) -> None:
        """The machine dies: every process of it at once, the sshd too, and its cable is pulled."""
        self.cut()
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def leftovers(self) -> list[str]:
        """What should not be there when no lab runs."""
        left = [f"{self.name}: process {pid}: {words}" for pid, words in self.processes().items()]
        base = self.base / "argosy"
        for pattern in ("s/*", "*/lock", "*/sockets", "*/keys"):
            left += [f"{self.name}: {path}" for path in base.glob(pattern)]
        return left + [f"{self.name}: {path}" for path in self.base.glob("argosy-*/*")]

    def remove(self) -> None:
        """Kill what is left and take the namespace away."""
        with contextlib.suppress(AssertionError):
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self.sshd is not None:
            self.sshd.wait(5)
        subprocess.run(["ip", "netns", "del", self.namespace], capture_output=True, check=False)


class Network:
    """Machines on one switch; the first, `lead`, is where the command is run, and needs no sshd."""

    def __init__(self, directory: Path, names: Iterable[str]) -> None:
        self.directory = directory
        # Interface names end at 15 characters.
        self.prefix = f"av{os.getpid() % 100000}{os.urandom(1).hex()}"
        self.switch = f"{self.prefix}-switch"
        self.machines = {name: Machine(self, name, number) for number, name in enumerate([LEADER, *names], 1)}

    def make(self) -> None:
        """Everything, up and listening."""
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        ip("-n", self.switch, "link", "set", "br0", "up")
        for key in ("host_key", "user_key"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.directory / key)]
            subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
        public = " ".join((self.directory / "host_key.pub").read_text().split()[:2])
        hosts, known = [], []
        for machine in self.machines.values():
            machine.make()
            if machine.name != LEADER:
                machine.start_sshd()
            known.append(f"[{machine.address}]:{PORT} {public}\n")
            hosts.append(
                f"Host {machine.name}\n HostName {machine.address}\n Port {PORT}\n User root\n"
                f" IdentityFile {self.directory}/user_key\n IdentitiesOnly yes\n StrictHostKeyChecking yes\n"
                f" UserKnownHostsFile {self.directory}/known_hosts\n GlobalKnownHostsFile /dev/null\n"
            )
        (self.directory / "known_hosts").write_text("".join(known))
        self.ssh_config.write_text("".join(hosts))
        wait_until(lambda: all(each.listens() for each in self.hosts()), 10)

    @property
    def ssh_config(self) -> Path:
        """For the command."""
        return self.directory / "ssh_config"

    def hosts(self) -> list[Machine]:
        """All but the leader's."""
        return [machine for machine in self.machines.values() if machine.name != LEADER]

    def __getitem__(self, name: str) -> Machine:
        return self.machines[name]

    def leftovers(self) -> list[str]:
        """What should not be there when no lab runs."""
        return [line for machine in self.machines.values() for line in machine.leftovers()]

    def wait_for_nothing(self, seconds: float = 3.0) -> None:
        """Nothing is left on any machine, now or within `seconds`."""
        end = time.monotonic() + seconds
        while (left := self.leftovers()) and time.monotonic() < end:
            time.sleep(0.05)
        assert not left

    def remove(self) -> None:
        """Take everything away."""
        for machine in self.machines.values():
            machine.remove()
        subprocess.run(["ip", "netns", "del", self.switch], capture_output=True, check=False)


class HostsRig(Rig):
    """The command, on the leader's machine of a network."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.leader = network[LEADER]
        super().__init__(self.leader.base)
        self.environment["ARGOSY_SSH_CONFIG"] = str(network.ssh_config)

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        """The command, running."""
        return subprocess.Popen(
            self.leader.inside(sys.executable, "-m", "topologies.cli", *arguments),
            cwd=self.topologies,
            env={**self.environment, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def hosts(self) -> dict[str, dict[str, object]]:
        """How each host stands, as the leader says."""
        return {host["name"]: host for answer in self.states() for host in answer.get("hosts", [])}

    def host_states(self) -> dict[str, object]:
        """The same in a word."""
        return {name: host["state"] for name, host in self.hosts().items()}


@contextlib.contextmanager
def network(directory: Path, *names: str) -> Iterator[Network]:
    """A network of the leader's machine and these."""
    made = Network(directory, names)
    try:
        made.make()
        yield made
    finally:
        made.remove()


def topology(nodes: str, *names: str, name: str = "lab", more: str = "") -> str:
    """A topology of this machine and the hosts `names`; `nodes` are its `hypervisors` and `guests`."""
    python = sys.executable
    hosts = "".join(f"  {each}: {{provider: ssh, address: {each}, python: {python}}}\n" for each in names)
    return f"name: {name}\nhosts:\n  here: {{provider: local}}\n{hosts}{more}{nodes}"
