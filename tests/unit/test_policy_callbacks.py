import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeorch import config
from edgeorch.errors import ConfigError, PolicyError
from edgeorch.model import Caller
from edgeorch.policy import Policy
from edgeorch.policy.callback_targets import CallbackTargets

CLOSED = [
    "169.254.169.254",
    "169.254.0.1",
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "::a9fe:a9fe",
    "::ffff:0:a9fe:a9fe",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "2001:0:a9fe:a9fe::1",
    "fe80::1",
    "fe80::1%eth0",
    "febf::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fd00:c1::a9fe:a9fe",
    "100.100.100.200",
    "::ffff:100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "224.0.0.1",
    "255.255.255.255",
    "240.0.0.1",
    "ff02::fb",
    "0.0.0.0",
    "0.1.2.3",
    "::",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "::7f00:1",
]
LOOPBACK = ["127.0.0.1", "127.5.5.5", "::1", "::ffff:127.0.0.1"]
OPEN = [
    "10.0.0.1",
    "192.168.1.5",
    "100.64.0.1",
    "8.8.8.8",
    "2001:db8::1",
    "fd12::1",
    "64:ff9b::808:808",
    "fec0::1",
]


@pytest.mark.parametrize("entries", [("*",), ("*.example",), ("10.0.0.0/8", "*.example")])
def test_closed_addresses_are_closed_to_names(entries):
    targets = CallbackTargets(entries)
    for address in CLOSED:
        for loopback in (True, False):
            assert "no address for callbacks" in targets.refusal("a.example", address, loopback=loopback), (
                address
            )
    for address in LOOPBACK:
        assert "a loopback address" in targets.refusal("a.example", address, loopback=False)
        assert targets.refusal("a.example", address, loopback=True) == ""
    for address in OPEN:
        assert targets.refusal("a.example", address, loopback=False) == "", address


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        ("169.254.0.0/16", "169.254.7.7"),
        ("169.254.0.0/16", "::ffff:169.254.7.7"),
        ("fe80::/10", "fe80::1%eth0"),
        ("127.0.0.1", "127.0.0.1"),
        ("fd00:ec2::254", "fd00:ec2::254"),
    ],
)
def test_a_network_in_the_list_opens_it(entry, address):
    targets = CallbackTargets((entry,))
    assert targets.refusal("any.name", address, loopback=False) == ""
    assert targets.refusal_at_the_door(address, loopback=False) == ""


def test_what_is_not_listed():
    targets = CallbackTargets(("hooks.example", "*.acme.example", "192.168.0.0/16"))
    for host, address, yes in (
        ("hooks.example", "8.8.8.8", True),
        ("HOOKS.example.", "8.8.8.8", True),
        ("a.acme.example", "10.0.0.1", True),
        ("acme.example", "10.0.0.1", False),
        ("hooks.example.evil", "10.0.0.1", False),
        ("xhooks.example", "10.0.0.1", False),
        ("evil.example", "192.168.3.4", True),
        ("192.168.3.4", "192.168.3.4", True),
        ("8.8.8.8", "8.8.8.8", False),
    ):
        said = targets.refusal(host, address, loopback=True)
        assert (said == "") is yes, host
        assert yes or said.startswith("policy.callbacks does not list ")
    assert targets.refusal("localhost", "127.0.0.1", loopback=True)
    assert CallbackTargets(()).refusal("a", "8.8.8.8", loopback=True)
    # Patterns of names are for names.
    assert CallbackTargets(("fd*",)).refusal("fd12::1", "fd12::1", loopback=True)
    assert CallbackTargets(("fd*",)).refusal("fd.example", "fd12::1", loopback=True) == ""


@pytest.mark.parametrize(
    ("host", "open_"),
    [
        ("a.example", True),
        ("10.0.0.1", True),
        ("169.254.169.254", False),
        ("2852039166", False),
        ("0xa9fea9fe", False),
        ("0251.0376.0251.0376", False),
        ("169.254.43518", False),
        ("127.1", False),
        ("0", False),
        ("localhost", False),
        ("a.LOCALHOST.", False),
        ("::1", False),
        ("fe80::1%25eth0", True),  # no address in this form; looked up at delivery, and refused there
        ("\u0661.0.0.1", True),
        ("a" * 300, True),
    ],
)
def test_at_the_door_what_the_url_alone_says(host, open_):
    policy = Policy(config.Policy(), node="kitchen")
    caller = Caller(token="t", role="submit", loopback=False)
    if open_:
        policy.check_callback(host, caller)
        return
    with pytest.raises(PolicyError, match=r"policy\.callbacks") as caught:
        policy.check_callback(host, caller)
    assert caught.value.extra == {"key": "policy.callbacks"}
    assert "kitchen" in caught.value.hint


def test_a_name_that_may_be_in_a_listed_network_passes_the_door():
    caller = Caller(token="t", role="submit", loopback=False)
    Policy(config.Policy(callbacks=("10.0.0.0/8",))).check_callback("a.example", caller)
    with pytest.raises(PolicyError, match=r"does not list a\.example"):
        Policy(config.Policy(callbacks=("b.example",))).check_callback("a.example", caller)


@pytest.mark.parametrize(
    "entry", ["", "10.0.0.0/33", "10.0.*", "a.example:80", "http://a", "1.2.3", "fe80::/200"]
)
def test_an_entry_that_is_none(entry):
    with pytest.raises(ConfigError, match=r"policy\.callbacks"):
        Policy(config.Policy(callbacks=(entry,)))


@given(st.ip_addresses(v=6))
def test_nothing_in_ipv6_leads_to_a_closed_ipv4_address(address):
    mapped = address.ipv4_mapped or address.sixtofour
    if mapped and mapped.is_link_local:
        assert CallbackTargets(("*",)).refusal("a", str(address), loopback=True)


@given(st.ip_addresses(v=4), st.sampled_from(["::ffff:", "64:ff9b::", "::", "::ffff:0:"]))
def test_an_ipv4_address_is_as_open_in_every_form(address, prefix):
    targets = CallbackTargets(("*",))
    plain = targets.refusal("a", str(address), loopback=False)
    assert bool(plain) == bool(targets.refusal("a", f"{prefix}{address}", loopback=False))
