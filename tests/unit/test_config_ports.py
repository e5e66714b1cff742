"""Port specifiers and the rules made of them.

Where nothing else is said, rules and messages are those of pesto 2026_10_02, given the same
specifiers and capabilities.
"""

from __future__ import annotations

import builtins

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passt.userspace import log
from passt.userspace.config import ports
from passt.userspace.config.errors import UsageError
from passt.userspace.config.ports import PORT_OPTIONS, add_rules, delete_rules, ephemeral_ports
from passt.userspace.flow.rules import (
    AUTO,
    BEST_EFFORT,
    CAP_AUTO,
    CAP_IFNAME,
    CAP_IPV4,
    CAP_IPV6,
    CAP_TCP,
    CAP_UDP,
    HOST,
    IPPROTO_UDP,
    SPLICE,
    RuleTable,
)

PASTA = 0x3F
PASST = PASTA & ~CAP_AUTO
BY_LETTER = {option.spelling: option for option in PORT_OPTIONS}

LOW, HIGH = "1-32767", "61000-65535"


@pytest.fixture(autouse=True)
def usual_ephemeral_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "ephemeral_ports", lambda: (32768, 60999))


def tables(*words: str, caps: int = PASTA) -> dict[int, RuleTable]:
    made = {HOST: RuleTable(HOST, caps), SPLICE: RuleTable(SPLICE, caps)}
    for letter, text in zip(words[::2], words[1::2], strict=True):
        option = BY_LETTER[letter]
        add_rules(made[option.pif], option, text)
    return made


def rules(*words: str, caps: int = PASTA) -> list[str]:
    return [str(rule) for table in tables(*words, caps=caps).values() for rule in table]


def refused(*words: str, caps: int = PASTA) -> list[str]:
    with pytest.raises(UsageError) as caught:
        tables(*words, caps=caps)
    return caught.value.message.split("\n")


def simple(*pairs: str) -> list[str]:
    """Rules ``[*]:LISTEN  =>  TARGET``, from ``LISTEN:TARGET`` or ``BOTH``."""
    made = []
    for pair in pairs:
        listen, _, target = pair.partition(":")
        made.append(f"TCP [*]:{listen}  =>  {target or listen} ")
    return made


def best_effort(
    *ranges: str, where: str = "TCP [*]", target: str = "", more: str = ""
) -> list[str]:
    return [f"{where}:{r}  =>  {target}{r}  (best effort){more}" for r in ranges]


@pytest.mark.parametrize(
    ("spec", "pairs"),
    [
        ("none", ()),
        ("22", ("22",)),
        ("22:2222,80", ("22:2222", "80")),
        ("22-25", ("22-25",)),
        ("22-25:32-35", ("22-25:32-35",)),
        ("22-22:23-23", ("22:23",)),
        ("00022", ("22",)),
        ("65535:65535", ("65535",)),
        ("60000-65535", ("60000-65535",)),
        ("1-65535", ("1-65535",)),
        ("2-65535:1-65534", ("2-65535:1-65534",)),
        ("3000,3001:3000", ("3000", "3001:3000")),
        ("8000-8003,~8001", ("8000", "8002-8003")),
        ("8000-8003:9000-9003,~8001", ("8000:9000", "8002-8003:9002-9003")),
        ("8000-8003,~8000", ("8001-8003",)),
        ("8000-8003,~8003", ("8000-8002",)),
        ("8000-8003,~8000-8003", ()),
        ("~8000,8000", ()),
        ("8001-8002,~9000", ("8001-8002",)),
        ("33000,~33000", ()),
        ("~0,22", ("22",)),
        ("~0-10,5-12", ("11-12",)),
        ("*/22", ("22",)),
        ("/22", ("22",)),
        ("22:0.0.0.0", ("22",)),
        ("22:::", ("22",)),
        ("22:[::]/23", ("22:23",)),
    ],
)
def test_ranges(spec: str, pairs: tuple[str, ...]) -> None:
    assert rules("-t", spec) == simple(*pairs)


@pytest.mark.parametrize(
    ("spec", "ranges"),
    [
        ("all", (LOW, HIGH)),
        ("all,all", (LOW, HIGH)),
        ("~22", ("1-21", "23-32767", HIGH)),
        ("~10-20,~30", ("1-9", "21-29", "31-32767", HIGH)),
        ("~10-20,~15", ("1-9", "21-32767", HIGH)),
        ("~15000,~15001,~15006", ("1-14999", "15002-15005", "15007-32767", HIGH)),
        ("~65535", (LOW, "61000-65534")),
        ("~1", ("2-32767", HIGH)),
        ("~0", (LOW, HIGH)),
        ("~0-10", ("11-32767", HIGH)),
        ("~1-65535", ()),
        ("~1-32766", ("32767", HIGH)),
        ("~1-32767,~61000-65535", ()),
        ("~1-32767,~61000-65534", ("65535",)),
        ("all,~33000", (LOW, HIGH)),
        ("all,~1-100,~50-200,~300", ("201-299", "301-32767", HIGH)),
    ],
)
def test_all_ports(spec: str, ranges: tuple[str, ...]) -> None:
    assert rules("-t", spec) == best_effort(*ranges)


@pytest.mark.parametrize(
    ("spec", "listens", "target"),
    [
        ("127.0.0.1/all", "127.0.0.1", ""),
        ("0.0.0.0/all:1.2.3.4", "0.0.0.0", "1.2.3.4:"),
        ("::/all:[2001:db8::1]", "::", "2001:db8::1:"),
        ("0.0.0.0/all:1.2.3.4,all:5.6.7.8", "0.0.0.0", "5.6.7.8:"),
        ("0.0.0.0/all:1.2.3.4,all", "0.0.0.0", ""),
        ("0.0.0.0/all,all:1.2.3.4", "0.0.0.0", "1.2.3.4:"),
    ],
)
def test_all_ports_with_addresses(spec: str, listens: str, target: str) -> None:
    assert rules("-t", spec) == best_effort(LOW, HIGH, where=f"TCP [{listens}]", target=target)


def test_automatic_rules() -> None:
    more = " (auto-scan)"
    assert rules("-t", "auto") == best_effort(LOW, HIGH, more=more)
    assert rules("-t", "all,auto,auto") == best_effort(LOW, HIGH, more=more)
    assert rules("-t", "auto,~22") == best_effort("1-21", "23-32767", HIGH, more=more)
    assert rules("-t", "8000-8010,auto") == ["TCP [*]:8000-8010  =>  8000-8010  (auto-scan)"]
    assert rules("-t", "0.0.0.0/all:1.2.3.4,auto") == best_effort(
        LOW, HIGH, where="TCP [0.0.0.0]", target="1.2.3.4:", more=more
    )


def test_all_beside_ranges_is_the_union() -> None:
    # Upstream documents this, but drops "all".
    assert rules("-t", "all,22:2222") == simple("22:2222") + best_effort("1-21", "23-32767", HIGH)
    assert rules("-t", "33000,all") == simple("33000") + best_effort(LOW, HIGH)
    assert rules("-t", "all,22-30,~25,~80") == simple("22-24", "26-30") + best_effort(
        "1-21", "31-79", "81-32767", HIGH
    )


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ("*%lo/22", "[*]%lo:22  =>  22 "),
        ("%lo/22", "[*]%lo:22  =>  22 "),
        ("%abcdefghijklmno/22", "[*]%abcdefghijklmno:22  =>  22 "),
        ("%ééééééé/22", "[*]%ééééééé:22  =>  22 "),
        ("%a,b/22", "[*]%a,b:22  =>  22 "),
        ("%lo%eth0/22", "[*]%lo%eth0:22  =>  22 "),
        ("127.0.0.1/22", "[127.0.0.1]:22  =>  22 "),
        ("[127.0.0.1]/22", "[127.0.0.1]:22  =>  22 "),
        ("::1/22", "[::1]:22  =>  22 "),
        ("[::1]/22", "[::1]:22  =>  22 "),
        ("::/22", "[::]:22  =>  22 "),
        ("0.0.0.0/22", "[0.0.0.0]:22  =>  22 "),
        ("::ffff:192.0.2.1/22", "[192.0.2.1]:22  =>  22 "),
        ("[::ffff:192.0.2.1]/22", "[192.0.2.1]:22  =>  22 "),
        ("::ffff:0.0.0.0/22", "[0.0.0.0]:22  =>  22 "),
        ("127.0.0.1%lo/22", "[127.0.0.1]%lo:22  =>  22 "),
        ("[::1]%lo/22", "[::1]%lo:22  =>  22 "),
        ("fe80::1%lo/22", "[fe80::1]%lo:22  =>  22 "),
        ("22::1/80", "[22::1]:80  =>  80 "),
        ("22:1::2/80", "[22:1::2]:80  =>  80 "),
        ("1::2/22:3::4/80", "[1::2]:22  =>  3::4:80 "),
        ("127.0.0.1/22:127.0.0.1/80", "[127.0.0.1]:22  =>  127.0.0.1:80 "),
        ("127.0.0.1/22:[127.0.0.1]/80", "[127.0.0.1]:22  =>  127.0.0.1:80 "),
        ("::/22:[::1]/80", "[::]:22  =>  ::1:80 "),
        ("::/3000:2001:db8::1/81", "[::]:3000  =>  2001:db8::1:81 "),
        ("127.0.0.1/22:192.0.2.1", "[127.0.0.1]:22  =>  192.0.2.1:22 "),
        ("127.0.0.1/22-23:1.2.3.4/80-81", "[127.0.0.1]:22-23  =>  1.2.3.4:80-81 "),
        ("127.0.0.1/22:::ffff:1.2.3.4/80", "[127.0.0.1]:22  =>  1.2.3.4:80 "),
        ("::/22:1", "[::]:22  =>  1 "),
        ("::/22-23:1-2", "[::]:22-23  =>  1-2 "),
        ("::/22:1::", "[::]:22  =>  1:::22 "),
        ("::1/22:0.0.0.0", "[::1]:22  =>  22 "),
        ("224.0.0.1/22", "[224.0.0.1]:22  =>  22 "),
    ],
)
def test_addresses(spec: str, rule: str) -> None:
    assert rules("-u", spec) == [f"UDP {rule}"]


def test_several_targets() -> None:
    assert rules("-t", "127.0.0.1/22:80,23:1.2.3.4/81,24") == [
        "TCP [127.0.0.1]:22  =>  80 ",
        "TCP [127.0.0.1]:23  =>  1.2.3.4:81 ",
        "TCP [127.0.0.1]:24  =>  24 ",
    ]


@pytest.mark.parametrize(
    "spec",
    [
        *("", ",", "22,", ",22", "22,,23", "22,none", "none,22", "none ", "foo", "22:", ":22", ":"),
        *("22:80:81", "70000", "65536", "22:65536", "9" * 30, "4294967318", "22:4294967318", "-22"),
        *("25-22", "22-", "22--23", "-", "22-25:32-36", "22:23-24", "22-24:23", "1-2:65535-65536"),
        *(
            "~",
            "~22:23",
            "~none",
            "~auto",
            "~all",
            "~~22",
            "22~",
            "22~23",
            "~22-",
            "~-22",
            "~30-22",
        ),
        *("~65536", "~22, ~23", "ALL", "None", "auto ", "allx", "all:", "all:22", "all:1.2.3.4/22"),
        *("auto:192.0.2.1", "22 23", "22/", "22/22", "1/22", "lo/22", "foo/22", "foo/bar/22"),
        *("%lo", "%/22", "*%/22", "% /22", "%a b/22", "%abcdefghijklmnop/22", "%éééééééé/22"),
        *("[*]/22", "[fe80::1%lo]/22", "127.1/22", "256.0.0.1/22", "[::1/22", "::1]/22", " ::1/22"),
        *("1.2.3.4", "::1", "[::1]", "1.2.3.4:22", "22:*/80", "22:/80", "22:1.2.3.4/", "22:foo/80"),
        *("22:1.2.3.4%lo/80", "22:1.2.3.4:80", "22:1.2.3.4/23/24"),
        # Upstream takes these, or reads 0 and garbage.
        *("0x10", " 22", "+22", "22- 23", "22-+23", "٢٢", "0.0.0.0%/22"),
    ],
)
def test_other_forms_are_refused(spec: str) -> None:
    assert refused("-t", spec) == [f"Invalid port specifier '{spec}'"]


@pytest.mark.parametrize(
    ("spec", "rest"),
    [
        ("127.0.0.1/none", "none"),
        ("/none", "none"),
        ("%lo/", ""),
        ("/", ""),
        ("%lo/lo/22", "lo/22"),
        ("1.2.3.4/22/23", "22/23"),
        ("127.0.0.1/22,::1/23", "22,::1/23"),
        ("127.0.0.1/22-23:1.2.3.4/80", "22-23:1.2.3.4/80"),
    ],
)
def test_the_rest_is_quoted_after_a_good_listening_part(spec: str, rest: str) -> None:
    assert refused("-t", spec) == [f"Invalid port specifier '{rest}'"]


@pytest.mark.parametrize("name", [".", "..", "a:b"])
def test_impossible_interface_names(name: str) -> None:
    assert refused("-t", f"%{name}/22") == [f"Invalid interface name: {name}"]


@pytest.mark.parametrize(
    ("spec", "lines"),
    [
        ("0", ["Forwarding rule attempts to map from port 0", "TCP [*]:0  =>  0 "]),
        ("0-10", ["Forwarding rule attempts to map from port 0", "TCP [*]:0-10  =>  0-10 "]),
        ("22:0", ["Forwarding rule attempts to map to port 0", "TCP [*]:22  =>  0 "]),
        (
            "3000-3005,3004",
            [
                (
                    "Forwarding configuration conflict: TCP [*]:3004  =>  3004  versus "
                    "TCP [*]:3000-3005  =>  3000-3005 "
                ),
                "TCP [*]:3004  =>  3004 ",
            ],
        ),
        (
            "22:1.2.3.4",
            [
                "Dual stack forward to IPv4 address 1.2.3.4 unsupported",
                "Did you mean 0.0.0.0/... instead?",
                "TCP [*]:22  =>  1.2.3.4:22 ",
            ],
        ),
        (
            "all:[::1],~22",
            [
                "Dual stack forward to IPv6 address ::1 unsupported",
                "Did you mean [::]/... instead?",
                "TCP [*]:1-21  =>  ::1:1-21  (best effort)",
            ],
        ),
        (
            "::1/22:::ffff:1.2.3.4/80",
            [
                "Forward from IPv6 (::1) to IPv4 (1.2.3.4) unsupported",
                "TCP [::1]:22  =>  1.2.3.4:80 ",
            ],
        ),
        (
            "127.0.0.1/22:224.0.0.1",
            [
                "Multicast target address 224.0.0.1 for forwarding rule",
                "TCP [127.0.0.1]:22  =>  224.0.0.1:22 ",
            ],
        ),
    ],
)
def test_refused_rules_are_named(spec: str, lines: list[str]) -> None:
    *text, rule = lines
    assert refused("-t", spec) == [*text, f"Unable to add rule {rule}"]


def test_form_is_checked_before_rules() -> None:
    assert refused("-t", "0,foo") == ["Invalid port specifier '0,foo'"]
    assert refused("-t", "22:1.2.3.4,foo") == ["Invalid port specifier '22:1.2.3.4,foo'"]


def test_conflicts_between_options() -> None:
    assert refused("-t", "all", "-t", "22")[-1] == "Unable to add rule TCP [*]:22  =>  22 "
    assert refused("-t", "22", "-t", "all")[-1].startswith("Unable to add rule TCP [*]:1-32767")
    assert refused("-t", "%lo/22", "-t", "%eth0/22")[0].startswith("Forwarding configuration conf")
    assert len(rules("-t", "all", "-t", "33000")) == 3
    assert len(rules("-t", "22", "-u", "22", "-T", "22", "-U", "22")) == 4
    assert len(rules("-t", "8000-8003,~8001", "-t", "8001")) == 3
    assert len(rules("-t", "127.0.0.1/22", "-t", "::1/22", "-t", "127.0.0.2/22")) == 3
    assert len(rules("-t", "0.0.0.0/22", "-t", "::/22")) == 2


def test_none_before_and_after() -> None:
    assert rules("-t", "none", "-t", "none", "-t", "22") == simple("22")
    assert rules("-T", "22", "-t", "none", "-u", "none") == ["TCP [*]%lo:22  =>  22 "]
    assert rules("-t", "8000,~8000", "-t", "none") == []
    for letter in BY_LETTER:
        assert refused(letter, "22", letter, "none") == [
            f"{letter} none conflicts with previous options"
        ]


@pytest.mark.parametrize(
    ("caps", "wildcard"),
    [(PASTA, "*"), (PASTA & ~CAP_IPV6, "0.0.0.0"), (PASTA & ~CAP_IPV4, "::")],
)
def test_wildcards_by_enabled_versions(caps: int, wildcard: str) -> None:
    assert rules("-t", "22", caps=caps) == [f"TCP [{wildcard}]:22  =>  22 "]
    assert rules("-t", "%lo/22", caps=caps) == [f"TCP [{wildcard}]%lo:22  =>  22 "]
    assert rules("-T", "22", caps=caps) == [f"TCP [{wildcard}]%lo:22  =>  22 "]


def test_disabled_versions_and_protocols() -> None:
    assert refused("-u", "::1/22", caps=PASTA & ~CAP_IPV6) == [
        "IPv6 forward, but IPv6 not enabled",
        "Unable to add rule UDP [::1]:22  =>  22 ",
    ]
    for letter, where in (("-u", "[*]"), ("-U", "[*]%lo")):
        assert refused(letter, "22", caps=PASTA & ~CAP_UDP) == [
            "Can't add UDP forwarding rule, UDP not enabled",
            f"Unable to add rule UDP {where}:22  =>  22 ",
        ]
        assert rules(letter, "none", caps=PASTA & ~CAP_UDP) == []


def test_auto_is_for_pasta() -> None:
    for spec in ("auto", "8000,auto", "~22,auto"):
        assert refused("-t", spec, caps=PASST) == [
            "'auto' port forwarding is only allowed for pasta"
        ]


def test_outbound_rules() -> None:
    assert rules("-T", "22-30:32-40") == ["TCP [*]%lo:22-30  =>  32-40 "]
    assert rules("-U", "auto") == best_effort(LOW, HIGH, where="UDP [*]%lo", more=" (auto-scan)")
    for spec in ("127.0.0.1/22", "*/22", "%lo/22", "/22", "[::1]/22", "127.0.0.1/foo"):
        assert refused("-T", spec) == [f"Listening address not allowed for -T {spec}"]
    assert refused("-U", "lo/22") == ["Invalid port specifier 'lo/22'"]


def test_without_binding_to_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(log, "warn", warnings.append)
    caps = PASTA & ~CAP_IFNAME
    assert refused("-u", "%lo/22", caps=caps) == [
        "Device binding for '-u %lo/22' unsupported (requires kernel 5.7+)"
    ]
    assert warnings == []
    assert rules("-T", "22,23", caps=caps) == [
        "TCP [127.0.0.1]:22  =>  22 ",
        "TCP [127.0.0.1]:23  =>  23 ",
        "TCP [::1]:22  =>  22 ",
        "TCP [::1]:23  =>  23 ",
    ]
    text = "SO_BINDTODEVICE unavailable, forwarding only 127.0.0.1 and ::1 for '-T 22,23'"
    assert warnings == [text]
    assert rules("-U", "22", caps=caps & ~CAP_IPV4) == ["UDP [::1]:22  =>  22 "]
    assert rules("-U", "22", caps=caps & ~CAP_IPV6) == ["UDP [127.0.0.1]:22  =>  22 "]


def test_room() -> None:
    full = ",".join(str(port) for port in range(1, 256))
    assert len(rules("-t", full)) == 255
    assert refused("-t", full, "-u", "7") == [
        "Too many rules (maximum 255)",
        "Unable to add rule UDP [*]:7  =>  7 ",
    ]


def test_deletion() -> None:
    made = tables("-t", "8000-8003,~8001", "-t", "4000-4010")[HOST]
    option = BY_LETTER["-t"]
    with pytest.raises(UsageError) as caught:
        delete_rules(made, option, "4000")
    assert caught.value.message.split("\n") == [
        (
            "Specifier TCP [*]:4000  =>  4000  conflicts with rule "
            "TCP [*]:4000-4010  =>  4000-4010 , but doesn't match it, can't delete"
        ),
        "Unable to delete rule TCP [*]:4000  =>  4000 ",
    ]
    delete_rules(made, option, "8000-8003,~8001")
    assert [str(rule) for rule in made] == simple("4000-4010")
    with pytest.raises(UsageError, match="none conflicts with previous options"):
        delete_rules(made, option, "none")
    with pytest.raises(UsageError, match="Unable to delete rule UDP"):
        delete_rules(made, BY_LETTER["-u"], "4000-4010")


@pytest.mark.parametrize(
    ("given", "rules_of_host", "rules_of_splice"),
    [
        ([], "TTUU", "TTUU"),
        (["-t", "none"], "UU", "TTUU"),
        (["-u", "22"], "UTT", "TTUU"),
        (["-T", "22", "-U", "none"], "TTUU", "T"),
        (["-t", "8000,~8000", "-u", "none"], "", "TTUU"),
    ],
)
def test_defaults(given: list[str], rules_of_host: str, rules_of_splice: str) -> None:
    made = [RuleTable(HOST, PASTA), RuleTable(SPLICE, PASTA)]
    pairs = zip(given[::2], given[1::2], strict=True)
    ports.fill_tables(made, [(BY_LETTER[letter], text) for letter, text in pairs], "pasta")
    letters = ["".join("U" if r.protocol == IPPROTO_UDP else "T" for r in table) for table in made]
    assert letters == [rules_of_host, rules_of_splice]
    defaults = [r for table in made for r in table if r.sockets > 1]
    assert all(r.flags & (AUTO | BEST_EFFORT) == AUTO | BEST_EFFORT for r in defaults)


def test_no_defaults_for_disabled_protocols() -> None:
    made = RuleTable(HOST, PASTA & ~CAP_TCP)
    ports.fill_tables([made], [], "pasta")
    assert {rule.protocol for rule in made} == {IPPROTO_UDP}


def test_passt_has_no_defaults() -> None:
    made = RuleTable(HOST, PASST)
    ports.fill_tables([made], [], "passt")
    assert len(made) == 0


@given(st.text("0123456789,:none-~allutoX*/%[].", max_size=16))
def test_any_text_is_refused_or_makes_sound_rules(text: str) -> None:
    try:
        made = tables("-t", text)[HOST]
    except UsageError as error:
        assert error.message
        return
    for index, rule in enumerate(made):
        assert 1 <= rule.first <= rule.last <= 65535
        assert not any(rule.overlaps(other) for other in made.rules()[:index])


@given(
    st.lists(st.tuples(st.integers(1, 65535), st.integers(0, 300)), max_size=8),
    st.integers(1, 65535),
    st.integers(0, 2000),
)
def test_exclusions(holes: list[tuple[int, int]], first: int, width: int) -> None:
    last = min(first + width, 65535)
    text = ",".join([f"{first}-{last}", *(f"~{a}-{min(a + w, 65535)}" for a, w in holes)])
    made = tables("-t", text)[HOST]
    left = {port for rule in made for port in range(rule.first, rule.last + 1)}
    assert left == {
        port
        for port in range(first, last + 1)
        if not any(a <= port <= min(a + w, 65535) for a, w in holes)
    }
    assert all(rule.to == rule.first for rule in made)


def test_ephemeral_range(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{tmp_path}/range"
    with builtins.open(path, "w") as file:
        file.write("10000\t20000\n")
    monkeypatch.setattr(ports, "_EPHEMERAL", path)
    assert ephemeral_ports() == (10000, 20000)


@pytest.mark.parametrize("content", [None, "", "1\n", "a b\n"])
def test_ephemeral_range_unknown(
    content: str | None, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{tmp_path}/range"
    if content is not None:
        with builtins.open(path, "w") as file:
            file.write(content)
    warnings: list[str] = []
    monkeypatch.setattr(log, "warn", warnings.append)
    monkeypatch.setattr(ports, "_EPHEMERAL", path)
    assert ephemeral_ports() == (49152, 65535)
    assert len(warnings) == 1
    assert path in warnings[0]


def test_ephemeral_ports_are_left_out_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "ephemeral_ports", lambda: (1024, 65535))
    assert rules("-t", "all") == best_effort("1-1023")
    assert rules("-t", "2000") == simple("2000")
