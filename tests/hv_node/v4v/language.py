"""The short language in which tests/golden/v4v.csv tells its cases.

A step is a verb, the domain that acts, and words: `register g1 port=5 partner=DM len=64`.  What a case expects is a
list of `question=answer`, each looked up after its step: `result=0; ring(g1:5/host)=64`.  Verbs are the methods
`do_VERB` of a World, questions `ask_WHAT`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from hmx.argo.abi import RING_HEADER_SIZE
from hmx.errno import describe
from hmx.memory import PAGE_SIZE, MappedMemory
from hmx.v4v.abi import (
    ADDR,
    IOV,
    PFN_LIST_MAGIC,
    RING_DATA,
    RING_DATA_ENT,
    RING_DATA_MAGIC,
    RING_HEADER,
    RING_ID,
    RING_MAGIC,
    NotifyFlag,
    Op,
)
from hmx.v4v.layout import pfn_list
from hv_node.v4v.model import V4vRing
from tests.hv_node.v4v.world import (
    ARGS,
    DATA,
    IOVS,
    LIST,
    NAMED,
    NAMES,
    NPAGES,
    QUERIES,
    RING_GFN,
    TOKEN,
    UNTOUCHED,
    WORDS,
    Hypervisor,
    number,
    token_of,
)


class World(Hypervisor):
    """A hypervisor that understands steps and questions."""

    def __init__(self) -> None:
        super().__init__()
        self.last_ring = 0  # where the ring last laid out starts
        self.answers = ""  # flags of the last notify, by name
        self.largest = 0  # max_message_size of its first entry
        self.mappings: dict[V4vRing, object] = {}  # pages of rings before the last registration
        self.swarm: list[int] = []

    def run(self, steps: str) -> None:
        """Steps separated by `;`."""
        for step in filter(None, (part.strip() for part in steps.split(";"))):
            if step == "-":
                continue
            verb, *rest = step.split()
            words = [word for word in rest if "=" not in word]
            options = dict(word.split("=", 1) for word in rest if "=" in word)
            do: Callable[[list[str], dict[str, str]], None] = getattr(self, f"do_{verb}")
            do(words, options)

    def do_op(self, words: list[str], options: dict[str, str]) -> None:
        """`op WHO CMD [system=0]`."""
        self.op(number(words[0]), number(words[1]), system=options.get("system", "1") == "1")

    def do_off(self, words: list[str], _options: dict[str, str]) -> None:
        """`off WHO`: v4v is off for it."""
        self.v4v.domain_kill(self.domain(number(words[0])))

    do_kill = do_off

    def do_roomy(self, words: list[str], _options: dict[str, str]) -> None:
        """`roomy WHO`: a domain with room for the largest ring."""
        domain = self.domain(number(words[0]))
        self.ram[domain.domid] = bytearray((4096 + NPAGES) * PAGE_SIZE)
        domain.memory = MappedMemory(self.ram[domain.domid])

    def do_uncontrolled(self, words: list[str], _options: dict[str, str]) -> None:
        """`uncontrolled WHO`: the host does not control it."""
        self.uncontrolled.add(number(words[0]))

    def do_suspend(self, words: list[str], _options: dict[str, str]) -> None:
        """`suspend WHO`."""
        self.v4v.suspend(self.domain(number(words[0])))

    def do_resume(self, words: list[str], _options: dict[str, str]) -> None:
        """`resume WHO`."""
        self.v4v.resume(self.domain(number(words[0])))

    def do_register(self, words: list[str], options: dict[str, str]) -> None:
        """`register WHO port= partner= len= [rx= tx= magic= gfn= pages= pfn_magic= token= fail_exist= va= keep=]`."""
        domid = number(words[0])
        given = {key: number(value) for key, value in options.items() if key not in ("token", "va")}
        ring_len, gfn = given["len"], given.get("gfn", RING_GFN)
        for port in range(given["port"], given["port"] + given.get("times", 1)):
            at = (gfn if gfn < NPAGES else RING_GFN) * PAGE_SIZE + int(options.get("va", "0"))
            if "keep" not in given:
                head = (given.get("magic", RING_MAGIC), port, 0x1234, given["partner"], ring_len)
                self.put(domid, at, RING_HEADER.pack(*head, given.get("rx", 0), given.get("tx", 0)))
            npages = given.get("pages", -(-(ring_len + RING_HEADER_SIZE) // PAGE_SIZE))
            pages = bytearray(pfn_list(range(gfn, gfn + min(npages, 4096))))
            pages[0:8] = given.get("pfn_magic", PFN_LIST_MAGIC).to_bytes(8, "little")
            pages[8:12] = npages.to_bytes(4, "little")
            # A list that leaves no room before the rings goes behind the largest ring.
            room = LIST if len(pages) <= RING_GFN * PAGE_SIZE - LIST else min(len(self.ram[domid]), 4130 * PAGE_SIZE)
            where = room if room + len(pages) <= len(self.ram[domid]) else LIST
            self.put(domid, where, bytes(pages[: len(self.ram[domid]) - where]))
            if "token" in options:
                owner = NAMED.get(options["token"], 999)
                self.put(domid, TOKEN, token_of(owner))
            self.ring_at[domid, port] = self.last_ring = at
            self.remember_mappings()
            for _ in range(given.get("again", 1)):
                self.op(domid, Op.REGISTER_RING, at, where, TOKEN, given.get("fail_exist", 0))

    def remember_mappings(self) -> None:
        """Note every ring's pages, so that a later question can tell whether they stayed."""
        for state in self.v4v.states.values():
            for ring in state.rings.values():
                self.mappings[ring] = ring.pages

    def do_unregister(self, words: list[str], options: dict[str, str]) -> None:
        """`unregister WHO port= partner= [magic=]`: by a header that has nothing else of the ring."""
        magic = number(options.get("magic", str(RING_MAGIC)))
        header = RING_HEADER.pack(magic, number(options["port"]), 0, number(options["partner"]), 0, 0, 0)
        domid = number(words[0])
        self.op(domid, Op.UNREGISTER_RING, self.put(domid, ARGS, header))

    def do_send(self, words: list[str], options: dict[str, str]) -> None:
        """`send WHO to=DOMAIN:PORT bytes= [from= as= type= len= va=end]`: the payload is ABC..."""
        self._send(number(words[0]), options, vector=False)

    def do_sendv(self, words: list[str], options: dict[str, str]) -> None:
        """`sendv WHO to=DOMAIN:PORT bytes=N+M`: each buffer is ABC...; those over 4 KiB lie nowhere."""
        self._send(number(words[0]), options, vector=True)

    def _send(self, domid: int, options: dict[str, str], *, vector: bool) -> None:
        target, port = options["to"].split(":")
        source = (number(options.get("from", "0x99")), number(options.get("as", "0x7777")))
        src = self.put(domid, ARGS, ADDR.pack(*source))
        dst = self.put(domid, ARGS + 8, ADDR.pack(number(port), number(target)))
        sizes = [number(size) for size in options["bytes"].split("+")] if options["bytes"] != "-" else []
        va, iovs = DATA, b""
        for size in sizes:
            self.put(domid, va, bytes(0x41 + index % 26 for index in range(min(size, 0x2000))))
            iovs += IOV.pack(va, size)
            va += min(size, 0x2000)
        message_type = number(options.get("type", "0"))
        if vector:
            self.op(domid, Op.SENDV, src, dst, self.put(domid, IOVS, iovs), len(sizes), message_type)
        else:
            buffer = len(self.ram[domid]) if options.get("va") == "end" else DATA
            size = number(options["len"]) if "len" in options else sizes[0]
            self.op(domid, Op.SEND, src, dst, buffer, size, message_type)

    def do_notify(self, words: list[str], options: dict[str, str]) -> None:
        """`notify WHO null`, or `notify WHO DOMAIN:PORT@WANTED... [magic= va=end times=]`."""
        domid = number(words[0])
        if words[1:] == ["null"]:
            self.op(domid, Op.NOTIFY)
            return
        entries = [re.fullmatch(r"(\w+):(\w+)@(\w+)", word) for word in words[1:]] * int(options.get("times", "1"))
        packed = b"".join(
            RING_DATA_ENT.pack(number(m[2]), number(m[1]), UNTOUCHED, number(m[3]), 0xAAAA) for m in entries if m
        )
        header = RING_DATA.pack(number(options.get("magic", str(RING_DATA_MAGIC))), len(entries), 0)
        at = len(self.ram[domid]) if options.get("va") == "end" else self.put(domid, QUERIES, header + packed)
        self.op(domid, Op.NOTIFY, at)
        data = bytes(self.ram[domid][QUERIES + RING_DATA.size :][: len(packed)])
        found = list(RING_DATA_ENT.iter_unpack(data))
        self.answers = "/".join(self.flags(entry[2]) for entry in found)
        self.largest = found[0][4] if found else 0

    @staticmethod
    def flags(value: int) -> str:
        """Flags by name, joined by `+`; `-` for none."""
        if value == UNTOUCHED:
            return "untouched"
        return "+".join(str(flag.name) for flag in NotifyFlag if value & flag) or "-"

    def do_create(self, words: list[str], options: dict[str, str]) -> None:
        """`create WHO OWNER:PORT [partner=]`: a placeholder, by default for the host itself."""
        domid = number(words[0])
        owner, port = words[1].split(":")
        ring_id = RING_ID.pack(number(port), number(owner), number(options.get("partner", "host")))
        self.op(domid, Op.CREATE_RING, self.put(domid, ARGS, ring_id))

    def do_signal(self, words: list[str], _options: dict[str, str]) -> None:
        """`signal WHO WHOM`."""
        self.op(number(words[0]), Op.SIGNAL, 0, 0, 0, number(words[1]))

    def do_store(self, words: list[str], options: dict[str, str]) -> None:
        """`store OWNER:PORT rx=`: the guest stores its rx_ptr."""
        owner, port = words[0].split(":")
        self.window(number(owner), number(port)).store32(20, number(options["rx"]))

    def do_drain(self, words: list[str], _options: dict[str, str]) -> None:
        """`drain OWNER:PORT`: the guest takes what is there, and makes no call."""
        owner, port = words[0].split(":")
        self.consumer(number(owner), number(port)).drain()

    def do_swarm(self, words: list[str], _options: dict[str, str]) -> None:
        """`swarm N`: so many more guests; `swarm waits DM:PORT@SIZE`: each waits there."""
        if words[0] == "waits":
            for domid in self.swarm:
                self.do_notify([str(domid), words[1].replace("host", "DM")], {})
            return
        self.swarm = list(range(100, 100 + int(words[0])))
        for domid in self.swarm:
            self.create(domid, 8)

    def do_fill(self, words: list[str], _options: dict[str, str]) -> None:
        """`fill host:PORT`: the first guest sends until there is no room, and withdraws its wait."""
        to = words[0].replace("host", "DM")
        while self.result != -11:
            self.run(f"send g1 to={to} bytes=16")
        self.run(f"notify g1 {to}@0")

    # The language: asking.

    def ask(self, question: str) -> str:
        """The answer to one question of the last column."""
        match = re.fullmatch(r"(\w+)\.(\w+)(?:\((.*)\))?|(\w+)(?:\((.*)\))?", question)
        assert match, question
        if match[1] == "header":
            return self.header(match[2])
        what, where = (match[2], match[3]) if match[1] else (match[4], match[5])
        if where is None:
            plain: Callable[[], str] = getattr(self, f"ask_{what}")
            return plain()
        owner, port, partner = re.split("[:/]", where)
        ring = self.ring(number(owner), number(port), number(partner))
        asked: Callable[[V4vRing | None], str] = getattr(self, f"ask_{what}")
        return asked(ring)

    def header(self, name: str) -> str:
        """A field of the header of the ring last laid out, in guest memory."""
        domid = next(domid for (domid, _), at in reversed(self.ring_at.items()) if at == self.last_ring)
        _, port, domain, partner, ring_len, rx, tx = RING_HEADER.unpack_from(self.ram[domid], self.last_ring)
        value = {"port": port, "domain": domain, "partner": partner, "len": ring_len, "rx": rx, "tx": tx}[name]
        if name in ("domain", "partner"):
            return next((word for word, domid in WORDS.items() if domid == value), hex(value))
        return str(value)

    def ask_result(self) -> str:
        """What the last call answered."""
        assert self.result is not None
        return describe(self.result)

    def ask_signalled(self) -> str:
        """Who was signalled by the last step, in order."""
        return "+".join(NAMES.get(domid, str(domid)) for domid in self.signals) or "none"

    def ask_flags(self) -> str:
        """The flags of the last notify, entry by entry."""
        return self.answers

    def ask_max(self) -> str:
        """The max_message_size of its first entry."""
        return str(self.largest)

    def ask_data(self) -> str:
        """The data area of the ring last laid out, as far as the case tells: see `expect`."""
        domid = next(domid for (domid, _), at in reversed(self.ring_at.items()) if at == self.last_ring)
        return bytes(self.ram[domid][self.last_ring + RING_HEADER_SIZE :][:256]).hex()

    def ask_ring(self, ring: V4vRing | None) -> str:
        """`none`, `placeholder`, or its length."""
        return "none" if ring is None else str(ring.len) if ring.len else "placeholder"

    def ask_tx(self, ring: V4vRing | None) -> str:
        """The hypervisor's tx."""
        assert ring is not None
        return str(ring.tx)

    def ask_waiters(self, ring: V4vRing | None) -> str:
        """Who waits for how much, oldest first."""
        waiters = {} if ring is None else ring.pending
        return "+".join(f"{NAMES.get(domid, domid)}@{size}" for domid, size in waiters.items()) or "none"

    def ask_count(self, ring: V4vRing | None) -> str:
        """How many wait."""
        assert ring is not None
        return str(len(ring.pending))

    def ask_mapping(self, ring: V4vRing | None) -> str:
        """`none`, `kept` since the last registration, or `new`."""
        assert ring is not None
        if ring.pages is None:
            return "none"
        return "kept" if self.mappings.get(ring) is ring.pages else "new"

    def expect(self, after: str) -> None:
        """Every `question=answer` of a case's last column holds; numbers in any notation."""
        for part in after.split("; "):
            question, _, answer = part.partition("=")
            found = self.ask(question)
            if question == "data":
                assert found.startswith(answer.replace(" ", "")), part
            else:
                assert found in (answer, str(int(answer, 0)) if answer.startswith("0x") else answer), part
