"""OpenXT's viptables as text: another way to write the table of hv_node/levels/rules.py.

One command a line, in the manner of iptables; `#` begins a comment, a leading `viptables` may stand:

    -A -s (DOMID,PORT) -d (DOMID,PORT) -j ACCEPT|REJECT      append a rule
    -I N -s ... -d ... -j ...                                insert it before position N, from 1
    -D N   or   -D -s ... -d ... -j ...                      delete by position, or the first that is equal
    -F                                                       delete all

DOMID and PORT are decimal or hexadecimal; `*` or `any`, as well as domain 0x7FF4 and port 0xFFFFFFFF, match all.  The
first rule that matches decides; without one a message is accepted.  The hypercalls that OpenXT's patch queue had for
this (add, delete, list) are not offered: upstream answers -EOPNOTSUPP to them.  Domain ids are those of the hypervisor
that evaluates the table, a proxy's included.

Source: OpenXT's viptables patch and tool; positions, wildcards and defaults are its own, the text is ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from hmx.argo.abi import DOMID_ANY, DOMID_FIRST_RESERVED, U32_MAX
from hv_node.levels.rules import ANYBODY, MAX_RULES, Rule

PORT_ANY: Final = U32_MAX
WILDCARDS: Final = ("*", "any")
VERDICTS: Final = {"ACCEPT": True, "REJECT": False}
MAX_TEXT: Final = 1 << 20  # characters

_TOKEN: Final = re.compile(r"[(),]|[^\s(),#]+|#.*")


class ViptablesError(ValueError):
    """A text that is no table.  `line` and `column` count from 1."""

    def __init__(self, line: int, column: int, what: str) -> None:
        super().__init__(f"viptables:{line}:{column}: {what}")
        self.line = line
        self.column = column
        self.what = what


class _Token(NamedTuple):
    text: str
    column: int


class _Line:
    """The tokens of one line, taken one after the other."""

    def __init__(self, number: int, text: str) -> None:
        self.number = number
        self.end = len(text.rstrip()) + 1
        self._tokens = [
            _Token(found[0], found.start() + 1) for found in _TOKEN.finditer(text) if not found[0].startswith("#")
        ]
        if self._tokens and self._tokens[0].text == "viptables":
            del self._tokens[0]
        self._at = 0

    def peek(self) -> _Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def take(self, wanted: str) -> _Token:
        token = self.peek()
        if token is None:
            raise ViptablesError(self.number, self.end, f"{wanted} is missing")
        self._at += 1
        return token

    def wrong(self, token: _Token, what: str) -> ViptablesError:
        return ViptablesError(self.number, token.column, what)

    def expect(self, text: str, wanted: str = "") -> None:
        token = self.take(wanted or repr(text))
        if token.text != text:
            raise self.wrong(token, f"{token.text!r} where {wanted or repr(text)} belongs")

    def finish(self) -> None:
        token = self.peek()
        if token is not None:
            raise self.wrong(token, f"{token.text!r} is too much")

    def number_up_to(self, last: int, what: str) -> tuple[int | None, _Token]:
        """A number, None for a wildcard."""
        token = self.take(what)
        if token.text in WILDCARDS:
            return None, token
        try:
            value = int(token.text, 0)
        except ValueError:
            raise self.wrong(token, f"{token.text!r} is no {what}: a number, or * for any") from None
        if not 0 <= value <= last:
            raise self.wrong(token, f"{token.text} is no {what}: 0 to {last:#x}, or * for any")
        return value, token


def parse_viptables(text: str) -> tuple[Rule, ...]:
    """The rules that a text leaves behind.  Raises ViptablesError."""
    rules: list[Rule] = []
    if len(text) > MAX_TEXT:
        raise ViptablesError(1, 1, f"more than {MAX_TEXT} characters")
    for number, words in enumerate(text.splitlines(), 1):
        line = _Line(number, words)
        token = line.peek()
        if token is None:
            continue
        command = _COMMANDS.get(token.text)
        if command is None:
            raise line.wrong(token, f"{token.text!r} is no command; there are {', '.join(_COMMANDS)}")
        line.take("a command")
        command(line, rules, token)
        line.finish()
    return tuple(rules)


def _append(line: _Line, rules: list[Rule], token: _Token) -> None:
    _insert_at(line, rules, token, len(rules), _rule(line))


def _insert(line: _Line, rules: list[Rule], token: _Token) -> None:
    position = _position(line, len(rules) + 1)
    _insert_at(line, rules, token, position - 1, _rule(line))


def _insert_at(line: _Line, rules: list[Rule], token: _Token, index: int, rule: Rule) -> None:
    if len(rules) >= MAX_RULES:
        raise line.wrong(token, f"more than {MAX_RULES} rules")
    rules.insert(index, rule)


def _delete(line: _Line, rules: list[Rule], token: _Token) -> None:
    following = line.peek()
    if following is not None and following.text == "-s":
        rule = _rule(line)
        if rule not in rules:
            raise line.wrong(token, "there is no such rule")
        rules.remove(rule)
    else:
        del rules[_position(line, len(rules)) - 1]


def _flush(_: _Line, rules: list[Rule], __: _Token) -> None:
    rules.clear()


_COMMANDS: Final[dict[str, Callable[[_Line, list[Rule], _Token], None]]] = {
    "-A": _append,
    "-I": _insert,
    "-D": _delete,
    "-F": _flush,
}


def _position(line: _Line, last: int) -> int:
    token = line.take("a position")
    try:
        value = int(token.text, 0)
    except ValueError:
        raise line.wrong(token, f"{token.text!r} is no position") from None
    if not 1 <= value <= last:
        places = f"1 to {last}" if last else "there are no rules"
        raise line.wrong(token, f"{token.text} is no position here: {places}")
    return value


def _rule(line: _Line) -> Rule:
    line.expect("-s", "-s")
    source, source_ports = _address(line)
    line.expect("-d", "-d")
    target, ports = _address(line)
    line.expect("-j", "-j")
    token = line.take("ACCEPT or REJECT")
    if token.text not in VERDICTS:
        raise line.wrong(token, f"{token.text!r} is no verdict: {' or '.join(VERDICTS)}")
    return Rule(source, target, ports, VERDICTS[token.text], source_ports)


def _address(line: _Line) -> tuple[str | int, tuple[tuple[int, int], ...]]:
    """`(DOMID,PORT)`: who, and which ports."""
    line.expect("(")
    domid, token = line.number_up_to(DOMID_ANY, "domain id")
    if domid is not None and DOMID_FIRST_RESERVED <= domid < DOMID_ANY:
        raise line.wrong(token, f"{token.text} is reserved: no domain has it")
    line.expect(",")
    port, _ = line.number_up_to(PORT_ANY, "port")
    line.expect(")")
    return (
        ANYBODY if domid is None or domid == DOMID_ANY else domid,
        () if port is None or port == PORT_ANY else ((port, port),),
    )


def lines(rules: tuple[Rule, ...]) -> Iterator[str]:
    """A table as commands, for rules that viptables can express: one port or any on each side, no labels."""
    for rule in rules:
        ends = ((rule.source, rule.source_ports), (rule.target, rule.ports))
        source, target = (f"({_who(who)},{_port(ports)})" for who, ports in ends)
        yield f"-A -s {source} -d {target} -j {'ACCEPT' if rule.allow else 'REJECT'}"


def _who(who: str | int) -> str:
    if isinstance(who, str) and who != ANYBODY:
        raise ValueError(f"viptables knows no label {who!r}")
    return str(who)


def _port(ports: tuple[tuple[int, int], ...]) -> str:
    if not ports:
        return "*"
    if len(ports) > 1 or ports[0][0] != ports[0][1]:
        raise ValueError("viptables knows no ranges of ports")
    return f"{ports[0][0]:#x}"
