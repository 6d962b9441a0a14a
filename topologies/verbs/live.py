"""The verbs of the `argosy` command that change a running lab: what guests are led by, policy, faults of links."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from topologies.formats import Format
from topologies.verbs.base import Complaint, FormatOption, app, finish

LabOption = Annotated[str | None, typer.Option("--lab", help="The lab, where several run.")]
From = Annotated[str, typer.Argument(metavar="FROM", help="The guest that asks, or a hypervisor for its guests.")]
What = Annotated[
    str, typer.Argument(metavar="WHAT", help="A service, a service:instance, or the port that is sent from.")
]


@app.command()
def connect(
    from_: From,
    what: What,
    to: Annotated[str, typer.Argument(metavar="TO", help="The guest that serves it, or `up`.")],
    port: Annotated[int | None, typer.Option("--port", help="Its port, if not the one that was asked for.")] = None,
    types: Annotated[list[int] | None, typer.Option("--type", help="A message type that passes; repeat it.")] = None,
    rate: Annotated[float, typer.Option("--rate", min=0.0, help="Messages a second that pass; 0: no limit.")] = 0.0,
    delegable: Annotated[bool, typer.Option("--delegable", help="The guest may pass it on.")] = False,
    lab: LabOption = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Lead what a guest of a running lab asks for to another guest; what served the same is revoked first."""

    def act() -> int:
        from topologies.commands import patch

        row = {"from": from_, **_asked(what), "to": to, "types": types or [], "rate": rate, "delegable": delegable}
        return patch.connect(row if port is None else {**row, "port": port}, lab, format)

    finish(act)


@app.command()
def disconnect(from_: From, what: What, lab: LabOption = None, format: FormatOption = Format.TABLE) -> None:
    """Revoke what a guest of a running lab is led by, with all that was passed on; it holds when this returns."""

    def act() -> int:
        from topologies.commands import patch

        return patch.disconnect({"from": from_, **_asked(what)}, lab, format)

    finish(act)


@app.command()
def policy(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A topology; its policy is taken.")],
    lab: LabOption = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Have every hypervisor of a running lab judge by the policy of FILE; guests keep their labels."""

    def act() -> int:
        from topologies.commands import patch

        return patch.reload_policy(file, lab, format)

    finish(act)


@app.command()
def impair(
    a: Annotated[str, typer.Argument(metavar="A", help="A hypervisor.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one, or a guest of it on another host.")],
    delay: Annotated[str | None, typer.Option("--delay", metavar="DURATION", help="Added to every message.")] = None,
    jitter: Annotated[str | None, typer.Option("--jitter", metavar="DURATION", help="Varies the delay.")] = None,
    loss: Annotated[str | None, typer.Option("--loss", metavar="SHARE", help="Messages lost, such as 1%.")] = None,
    rate: Annotated[str | None, typer.Option("--rate", metavar="RATE", help="Most bits a second, as 10Mbit.")] = None,
    duplicate: Annotated[
        str | None, typer.Option("--duplicate", metavar="SHARE", help="Messages delivered twice.")
    ] = None,
    reorder: Annotated[
        str | None, typer.Option("--reorder", metavar="SHARE", help="Messages that overtake others.")
    ] = None,
    partition: Annotated[bool, typer.Option("--partition", help="Nothing passes.")] = False,
    lab: LabOption = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Make a link of a running lab slow or lossy, cut it, or (without a flag) mend it."""
    given: dict[str, Any] = {
        "delay": delay, "jitter": jitter, "loss": loss, "rate": rate, "duplicate": duplicate, "reorder": reorder,
        "partition": partition or None,
    }  # fmt: skip

    def act() -> int:
        from topologies.commands import patch

        return patch.impair((a, b), {key: value for key, value in given.items() if value is not None}, lab, format)

    finish(act)


def _asked(what: str) -> dict[str, Any]:
    """What a guest asks for, as a row of `destinations` says it.  Raises Complaint."""
    name, _, instance = what.partition(":")
    try:
        if name[:1].isdigit():
            return {"source-port": int(what, 0)}
        return {"service": name, "instance": int(instance, 0) if instance else 0}
    except ValueError:
        raise Complaint(f"{what!r} is no service, service:instance or port") from None
