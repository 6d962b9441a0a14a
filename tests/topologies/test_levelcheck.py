"""Rules about levels in a topology (topology.md, "A topology"; keys of destinations and policy are experimental)."""

from __future__ import annotations

import pytest

from tests.topologies.test_crosscheck import tree
from topologies.crosscheck import peers
from topologies.levelcheck import levels

LAB = """
hypervisors: {hv0: {}, hv1: {parent: hv0}, hv2: {}}
guests:
  app: {on: hv1, program: builtin:ping-pong, with: {to: disk}}
  disk: {on: hv2, program: builtin:echo, serves: [storage]}
"""

# What a file says beside the lab above, and what is said of it: nothing where it is right.
SAYINGS = (
    ("destinations: [{from: app, service: storage, to: disk}]", ""),
    ("destinations: [{from: app, source-port: 77, to: up}]", ""),
    ("destinations: [{from: hv1, service: storage, to: disk}]", ""),
    ("destinations: [{from: zz9, service: storage, to: disk}]", "'zz9' is no guest here"),
    ("destinations: [{from: app, service: storage, to: zz9}]", "'zz9' is no guest here"),
    ("destinations: [{from: app, service: storge, to: disk}]", "'storge' is no well-known service"),
    ("destinations: [{from: app, to: disk}]", "either `service` or `source-port` says what is asked for"),
    (
        "destinations: [{from: app, service: storage, source-port: 7, to: disk}]",
        "either `service` or `source-port` says what is asked for",
    ),
    ("destinations: [{from: app, service: vsock, instance: 1, to: app}]", "vsock has 1 instance, counted from 0"),
    ("destinations: [{from: disk, service: storage, to: up}]", "nothing lies above 'hv2'"),
    ("destinations: [{from: app, service: console, to: disk}]", "'disk' does not serve 'console'"),
    (
        "destinations: [{from: app, service: storage, to: disk}, {from: app, service: storage, to: disk}]",
        "that leads elsewhere already, at 6:37",
    ),
    ("policy: {module: firewall, labels: {app: a_t}, allow: [{from: a_t, to: '*', ports: [storage, 7, 16-31]}]}", ""),
    ("policy: {module: firewall, labels: {zz9: a_t}}", "'zz9' is no guest here"),
    ("policy: {module: firewall, allow: [{from: b_t, to: '*'}]}", "no guest has the label 'b_t'"),
    (
        "policy: {module: firewall, allow: [{from: '*', to: '*', ports: [31-16]}]}",
        "'31-16' is no range of ports from 0 to 4294967295",
    ),
    (
        "policy: {module: firewall, allow: [{from: '*', to: '*', ports: [storge]}]}",
        "'storge' is no well-known service; there are echo, file, clipboard, guest-agent, discovery, virtio-msg, "
        "console, rng, vsock, net, storage, display, hid",
    ),
    (
        "policy: {module: firewall, allow: [], viptables: ''}",
        "`allow` and `viptables` are two ways to write one table: use one of them",
    ),
    ("policy: {module: firewall, viptables: '-A -s (1,*) -d (2,7) -j ACCEPT'}", ""),
    (
        "policy: {module: firewall, viptables: '-A -s (1,*) -d (2,7) -j DROP'}",
        "line 1, column 25 of it: 'DROP' is no verdict: ACCEPT or REJECT",
    ),
    ("links: [{between: [hv0, hv2]}]", ""),
    ("links: [{between: [hv1, hv2]}]", "'hv1' is nested: its only link is to its parent"),
    ("links: [{between: [hv2, hv2]}]", "a link from 'hv2' to itself"),
    ("links: [{between: [hv0, disk]}]", "a link of guest 'disk' leads to its hypervisor, 'hv2'"),
    ("links: [{between: [hv2, disk]}]", "guest 'disk' is beside its hypervisor: there is no link between them"),
)


@pytest.mark.parametrize(("text", "said"), SAYINGS)
def test_what_is_said_of_the_parts_that_speak_of_levels(text: str, said: str) -> None:
    """Every rule has a text that breaks it alone, and its words."""
    assert [found.message for _, found in levels(tree(LAB + text))] == ([said] if said else [])


# Hypervisors, and what is said of them.
PARENTS = (
    ("{a: {}, b: {parent: a}, c: {parent: b}}", ()),
    ("{a: {parent: a}}", ("'a' is inside itself: a in a",)),
    ("{a: {parent: b}, b: {parent: a}}", ("'a' is inside itself: a in b in a", "'b' is inside itself: b in a in b")),
    ("{a: {arch: aarch64}, b: {parent: a}}", ("x86_64 cannot run on 'a', which is aarch64",)),
    ("{a: {}, b: {parent: a, cpu: amd}}", ("a nested hypervisor has the cpu of its outermost one",)),
    ("{a: {}, b: {parent: a, host: h}}", ("a nested hypervisor has the host of its outermost one",)),
    ("{a: {argo: {mode: steal}}}", ("'steal' needs a parent that serves Argo",)),
    (
        "{" + ", ".join(f"h{n}: {{parent: h{n - 1}}}" for n in range(1, 9)) + ", h0: {}}",
        ("'h8' has 8 hypervisors around it: at most 7",),
    ),
)


NEVER_SERVED = "not for a guest of 'b', which does not serve Argo itself"
MODES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("hypervisors: {a: {}, b: {parent: a, argo: {mode: forward}}}", ()),
    (
        "hypervisors: {a: {}, b: {parent: a, argo: {mode: steal}}, c: {parent: b}}",
        ("'b' does not serve Argo itself: nothing can be nested in it",),
    ),
    (
        "{hypervisors: {a: {}, b: {parent: a, argo: {mode: steal}}}, guests: {g: {on: b, control: true}}}",
        (NEVER_SERVED,),
    ),
    (
        "{hypervisors: {a: {}, b: {parent: a, argo: {mode: forward}}}, guests: {g: {on: b, implicit-only: true}}}",
        (NEVER_SERVED,),
    ),
    (
        "{hypervisors: {a: {}, b: {parent: a, argo: {mode: forward}}},"
        " guests: {g: {on: b, notification: vector-per-ring}, h: {on: a, notification: vector-per-ring}}}",
        (NEVER_SERVED,),
    ),
    (
        "{hypervisors: {a: {}, b: {parent: a, argo: {mode: forward}}}, guests: {g: {on: b}, h: {on: a}},"
        " destinations: [{from: g, service: net, to: h}, {from: h, service: net, to: g}]}",
        ("'g' acts as the hypervisor that it is on, and has no destinations of its own",),
    ),
)


@pytest.mark.parametrize(("text", "said"), MODES)
def test_what_is_said_of_modes(text: str, said: tuple[str, ...]) -> None:
    """A hypervisor that does not serve Argo itself has no hypervisors in it, and its guests less to choose from."""
    assert tuple(found.message for _, found in levels(tree(text))) == said


AWAY = """
hosts: {near: {provider: local}, far: {provider: local}}
hypervisors: {hv0: {}, hv1: {host: far}, hv2: {parent: hv0}}
guests: {a: {on: hv0, host: far}, b: {on: hv0, host: near}, c: {on: hv1}, d: {on: hv1, host: near},
  e: {on: hv2, host: far}}
"""


@pytest.mark.parametrize(
    ("between", "said"),
    [
        ("hv0, a", ""),
        ("d, hv1", ""),
        ("e, hv2", ""),
        ("hv0, b", "guest 'b' is beside its hypervisor: there is no link between them"),
        ("hv1, c", "guest 'c' is beside its hypervisor: there is no link between them"),
        ("hv1, a", "a link of guest 'a' leads to its hypervisor, 'hv0'"),
    ],
)
def test_a_guest_away_has_a_link(between: str, said: str) -> None:
    """To its hypervisor; the leader's host is a host by name as well.  It can be impaired, not posted."""
    link = f"links: [{{between: [{between}], impair: {{delay: 1ms}}, posted: @}}]"
    found = [one.message for _, one in levels(tree(AWAY + link.replace("@", "false")))]
    assert found == ([said] if said else [])
    if not said:
        (one,) = (one.message for _, one in levels(tree(AWAY + link.replace("@", "true"))))
        assert one.endswith("cannot be posted")


@pytest.mark.parametrize(("text", "said"), PARENTS)
def test_what_is_said_of_parents(text: str, said: tuple[str, ...]) -> None:
    """A parent is another hypervisor on the same machine, and there are at most seven around one."""
    assert tuple(found.message for _, found in levels(tree(f"hypervisors: {text}"))) == said


@pytest.mark.parametrize(
    ("more", "reached"),
    [
        ("", False),
        ("links: [{between: [hv0, hv2]}]", True),
        ("links: [{between: [hv2, disk]}]", False),
        ("destinations: [{from: app, service: storage, to: disk}]", True),
        ("destinations: [{from: app, service: storage, to: app}]", False),
    ],
)
def test_programs_reach_guests_of_other_hypervisors_in_a_connected_lab(more: str, reached: bool) -> None:
    """Proxies exist where something leads from one hypervisor to another."""
    text = LAB.replace("hv1: {parent: hv0}", "hv1: {}")
    said = [found.message for _, found in peers(tree(text + more))]
    assert said == ([] if reached else ["'disk' is out of reach, on another hypervisor"])
