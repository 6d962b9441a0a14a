"""Who may say what across hosts: the plan's binding of names and labels to hosts, and the judge that applies it.

A host is trusted with what it runs and with nothing else.  So a node joins only from the host that the plan
gave it, and what its hypervisor sends must come from an endpoint below that hypervisor, under the label that
the plan gave the endpoint, in an epoch that does not go back; and it may announce deaths of such endpoints
only.  Without a binding paths are still judged by their form, because the sender's name is always known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker import codec
from broker.envelope import Envelope, EnvelopeKind
from broker.refusals import Refusal

Path = tuple[str | int, ...]

MAX_EPOCHS: Final = 4096
"""Hypervisors whose epoch is remembered; a plan has fewer."""


@dataclass(frozen=True, slots=True)
class Binding:
    """What the plan fixed.  Paths are absolute, from the fabric down: ("hv0", "hv1", "app").

    Attributes:
        hosts: (node's name at the broker, host that runs it).
        hypervisors: paths of all hypervisors; those of length 1 are joined by the fabric.
        guests: (path, label) of every guest, with label "" where it has none.  A guest's later incarnations,
            "app#2" and so on, are judged as "app".
    """

    hosts: tuple[tuple[str, str], ...] = ()
    hypervisors: tuple[tuple[str, ...], ...] = ()
    guests: tuple[tuple[tuple[str, ...], str], ...] = ()


_ANSWERS: Final = frozenset({EnvelopeKind.RESULT, EnvelopeKind.CANCEL})

Verdict = tuple[Refusal, str]


class Judge:
    """Applies a binding; None: there is none, and only form and epochs are judged."""

    def __init__(self, binding: Binding | None) -> None:
        self.bound = binding is not None
        binding = binding or Binding()
        self.hosts = dict(binding.hosts)
        self._top = {path[0] for path in binding.hypervisors if len(path) == 1}
        self._labels: dict[Path, str] = {path[::-1]: "" for path in binding.hypervisors if len(path) > 1}
        self._labels |= {("", *path[::-1]): "" for path in binding.hypervisors}
        self._guests = [path[::-1] for path, _ in binding.guests]
        self._labels |= {path[::-1]: label for path, label in binding.guests}
        self.former: dict[Path, str] = {}
        self._round = 0
        self._epochs: dict[Path, int] = {}

    def joined_by_fabric(self, name: str, kind: str) -> bool:
        """Whether a node is a hypervisor right below the fabric: only those exchange envelopes."""
        return kind == "hypervisor" and (not self.bound or name in self._top)

    def planned(self, name: str) -> bool:
        """Whether the plan has a hypervisor below the fabric, a guest, or a host of that name."""
        return name in self._top or name in self.hosts.values() or any(path[0] == name for path in self._guests)

    def hello(self, name: str, host: str) -> Verdict | None:
        """Why a node called `name` may not join from `host` ("": not known, not judged); None: it may."""
        if not self.bound or not host:
            return None
        home = self.hosts.get(name)
        if home == host:
            return None
        where = "is not in the plan" if home is None else f"runs on {home}"
        return Refusal.WRONG_HOST, f"{name!r} {where}; this connection is from {host}"

    def envelope(self, sender: str, envelope: Envelope) -> Verdict | None:
        """Why what `sender` sent is not believed; None: it is.  Remembers the epoch of what is believed."""
        source = envelope.src_path
        dying = envelope.kind == EnvelopeKind.ENDPOINT_DIED
        wrong = Refusal.FORGED_DEATH if dying else Refusal.FORGED_SOURCE
        if len(source) < 2 or source[-1] != sender:
            return wrong, f"{codec.show(source)} from {sender}"
        if envelope.kind in _ANSWERS:
            return None  # it repeats the epoch of what it answers; its source may be an endpoint that never was
        if self.bound:
            label = self.label(source)
            if label is None:
                return wrong, f"{codec.show(source)} from {sender}: no such endpoint in the plan"
            if label != envelope.label and envelope.label != self._former(source):
                detail = f"{codec.show(envelope.label)} on what {codec.show(source)} sent, the plan says {label!r}"
                return Refusal.FORGED_LABEL, detail
        return self._epoch(source[1:], envelope.origin_epoch)

    def label(self, source: Path) -> str | None:
        """The label of an endpoint, by its climbing path; None: it is not in the plan."""
        label = self._labels.get(source)
        if label is None and source and isinstance(source[0], str):
            label = self._labels.get((source[0].partition("#")[0], *source[1:]) if source[0] else source)
        return label

    def _former(self, source: Path) -> str | None:
        """The label that an endpoint had before the last round, as frames under way still may have it."""
        if not self.former or not source or not source[0]:
            return None
        return self.former.get((str(source[0]).partition("#")[0], *source[1:]))

    def relabel(self, number: int, labels: dict[str, str]) -> None:
        """Round `number`, which may come in parts, gives the guests that it names these labels, and all others none.

        One that is behind the last changes nothing.  Until the next round a guest's former label is believed too, but
        never passed on (`corrected`): its hypervisor hears of the change later than we do.
        """
        if number < self._round:
            return
        if number > self._round:
            self._round = number
            self.former = {path: self._labels[path] for path in self._guests}
            self._labels |= dict.fromkeys(self._guests, "")
        for path in self._guests:
            if str(path[0]) in labels:
                self._labels[path] = labels[str(path[0])]

    def corrected(self, envelope: Envelope) -> Envelope:
        """What is believed, under the label that counts now."""
        if envelope.kind in _ANSWERS:
            return envelope
        label = self.label(envelope.src_path)
        return envelope if label in (None, envelope.label) else envelope._replace(label=label)

    def _epoch(self, origin: Path, epoch: int) -> Verdict | None:
        last = self._epochs.get(origin)
        if last == epoch:
            return None
        if last is not None and epoch < last:
            return Refusal.FORGED_EPOCH, f"epoch {epoch} from {codec.show(origin)}, which has spoken in {last}"
        if last is None and len(self._epochs) >= MAX_EPOCHS:
            self._epochs.clear()
        self._epochs[origin] = epoch
        return None
