"""OpenXT's viptables as text: positions, wildcards, flush, and errors that name line and column."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hv_node.levels.rules import FRONT_END_OF, MAX_RULES, Rule, Stranger, Table
from hv_node.levels.viptables import MAX_TEXT, ViptablesError, lines, parse_viptables

ONE = Rule(1, 2, ((5001, 5001),), True, ((9, 9),))
ONE_TEXT = "-A -s (1,9) -d (2,5001) -j ACCEPT"


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("", ()),
        ("\n  # nothing\n\n", ()),
        (ONE_TEXT, (ONE,)),
        ("viptables " + ONE_TEXT, (ONE,)),
        ("-A -s ( 1 , 0x9 ) -d (2,0x1389) -j ACCEPT # spaces", (ONE,)),
        ("-A -s (*,any) -d (any,*) -j REJECT", (Rule("*", "*", (), False),)),
        ("-A -s (0x7ff4,0xFFFFFFFF) -d (32756,4294967295) -j REJECT", (Rule("*", "*", (), False),)),
        ("-A -s (0,0) -d (0x7FEF,0xFFFFFFFE) -j ACCEPT", (Rule(0, 0x7FEF, ((0xFFFFFFFE,) * 2,), True, ((0, 0),)),)),
        (f"{ONE_TEXT}\n-A -s (3,*) -d (4,*) -j REJECT", (ONE, Rule(3, 4, (), False))),
        (f"{ONE_TEXT}\n-I 1 -s (3,*) -d (4,*) -j REJECT", (Rule(3, 4, (), False), ONE)),
        (f"{ONE_TEXT}\n-I 2 -s (3,*) -d (4,*) -j REJECT", (ONE, Rule(3, 4, (), False))),
        (f"{ONE_TEXT}\n{ONE_TEXT}\n-D 2", (ONE,)),
        (f"-A -s (3,*) -d (4,*) -j REJECT\n{ONE_TEXT}\n-D 1", (ONE,)),
        (f"{ONE_TEXT}\n-A -s (3,*) -d (4,*) -j REJECT\n-D -s (3,*) -d (4,*) -j REJECT", (ONE,)),
        (f"{ONE_TEXT}\n{ONE_TEXT}\n-D{ONE_TEXT[2:]}", (ONE,)),
        (f"{ONE_TEXT}\n-F\n", ()),
    ],
)
def test_commands(text: str, rules: tuple[Rule, ...]) -> None:
    """Append, insert before a position from 1, delete by position or by rule, flush; both spellings of wildcards."""
    assert parse_viptables(text) == rules


@pytest.mark.parametrize(
    ("text", "line", "column", "what"),
    [
        ("\n  -X", 2, 3, "'-X' is no command; there are -A, -I, -D, -F"),
        ("-A", 1, 3, "-s is missing"),
        ("-A -d (1,2)", 1, 4, "'-d' where -s belongs"),
        ("-A -s 1,2 -d (1,2) -j ACCEPT", 1, 7, "'1' where '(' belongs"),
        ("-A -s (1 2) -d (1,2) -j ACCEPT", 1, 10, "'2' where ',' belongs"),
        ("-A -s (1,2 -d (1,2) -j ACCEPT", 1, 12, "'-d' where ')' belongs"),
        ("-A -s (x,2) -d (1,2) -j ACCEPT", 1, 8, "'x' is no domain id: a number, or * for any"),
        ("-A -s (-1,2) -d (1,2) -j ACCEPT", 1, 8, "-1 is no domain id: 0 to 0x7ff4, or * for any"),
        ("-A -s (0x7FF5,2) -d (1,2) -j ACCEPT", 1, 8, "0x7FF5 is no domain id: 0 to 0x7ff4, or * for any"),
        ("-A -s (0x7FF0,2) -d (1,2) -j ACCEPT", 1, 8, "0x7FF0 is reserved: no domain has it"),
        ("-A -s (1,0x100000000) -d (1,2) -j ACCEPT", 1, 10, "0x100000000 is no port: 0 to 0xffffffff, or * for any"),
        ("-A -s (1,2) -d (1,2)", 1, 21, "-j is missing"),
        ("-A -s (1,2) -d (1,2) -j", 1, 24, "ACCEPT or REJECT is missing"),
        ("-A -s (1,2) -d (1,2) -j DROP", 1, 25, "'DROP' is no verdict: ACCEPT or REJECT"),
        ("-A -s (1,2) -d (1,2) -j ACCEPT now", 1, 32, "'now' is too much"),
        ("-I -s (1,2) -d (1,2) -j ACCEPT", 1, 4, "'-s' is no position"),
        ("-I 2 -s (1,2) -d (1,2) -j ACCEPT", 1, 4, "2 is no position here: 1 to 1"),
        ("-I 0 -s (1,2) -d (1,2) -j ACCEPT", 1, 4, "0 is no position here: 1 to 1"),
        (f"{ONE_TEXT}\n-D 2", 2, 4, "2 is no position here: 1 to 1"),
        ("-D 1", 1, 4, "1 is no position here: there are no rules"),
        ("-D", 1, 3, "a position is missing"),
        (f"{ONE_TEXT}\n  -D -s (1,9) -d (2,5001) -j REJECT", 2, 3, "there is no such rule"),
        ("-F all", 1, 4, "'all' is too much"),
    ],
)
def test_errors_name_line_and_column(text: str, line: int, column: int, what: str) -> None:
    """Each mistake at the place where it stands."""
    with pytest.raises(ViptablesError) as caught:
        parse_viptables(text)
    assert (caught.value.line, caught.value.column, caught.value.what) == (line, column, what)
    assert str(caught.value) == f"viptables:{line}:{column}: {what}"


def test_a_text_is_bounded() -> None:
    """Neither a huge text nor too many rules take the reader's time."""
    with pytest.raises(ViptablesError, match="more than 1048576 characters"):
        parse_viptables(" " * (MAX_TEXT + 1))
    with pytest.raises(ViptablesError, match=f"viptables:{MAX_RULES + 1}:1: more than {MAX_RULES} rules"):
        parse_viptables("-A -s (1,2) -d (1,2) -j ACCEPT\n" * (MAX_RULES + 1))


def test_lines_refuses_what_viptables_cannot_say() -> None:
    """Labels and ranges are the firewall's."""
    with pytest.raises(ValueError, match="no label 'a'"):
        list(lines((Rule("a", 1),)))
    with pytest.raises(ValueError, match="no ranges"):
        list(lines((Rule(1, 1, ((1, 2),)),)))
    with pytest.raises(ValueError, match="no ranges"):
        list(lines((Rule(1, 1, ((1, 1), (3, 3))),)))


domids = st.one_of(st.just("*"), st.integers(0, 3))
ports = st.one_of(st.just(()), st.integers(0, 3).map(lambda port: ((port, port),)))
rules = st.lists(st.builds(Rule, domids, domids, ports, st.booleans(), ports), max_size=8).map(tuple)


@given(rules)
def test_written_and_read_again(table: tuple[Rule, ...]) -> None:
    """`lines` writes what `parse_viptables` reads."""
    assert parse_viptables("\n".join(lines(table))) == table


@given(st.text(alphabet="-ADIFsdj(),*x 12#\nACEPTRJ", max_size=80))
def test_any_text_is_a_table_or_an_error(text: str) -> None:
    """Whatever stands there, nothing else is raised, and the place lies inside the text."""
    found: ViptablesError | None = None
    try:
        parse_viptables(text)
    except ViptablesError as error:
        found = error
    if found is not None:
        words = text.splitlines()
        assert 1 <= found.line <= len(words)
        assert 1 <= found.column <= len(words[found.line - 1]) + 1


@given(rules, st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
def test_first_match(table: tuple[Rule, ...], source: int, source_port: int, target: int, port: int) -> None:
    """OpenXT: the first rule whose two addresses match decides; without one a message is accepted."""
    expected = True
    for rule in table:
        fits = (
            rule.source in ("*", source)
            and rule.target in ("*", target)
            and (not rule.source_ports or rule.source_ports[0][0] == source_port)
            and (not rule.ports or rule.ports[0][0] == port)
        )
        if fits:
            expected = rule.allow
            break
    judge = Table(FRONT_END_OF["viptables"], table).judge
    one, other = Stranger("one", "", source), Stranger("other", "", target)
    assert judge(one, source_port, other, port).accept == expected
    # Without a source port: accepted if a send from some port would be.
    anywhere = any(judge(one, candidate, other, port).accept for candidate in range(5))
    assert judge(one, None, other, port).accept == anywhere
