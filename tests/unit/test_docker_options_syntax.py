import pytest

from edgeorch.docker_options import mounts, ports, syntax

SENTENCE = r"(^| )(must|has|is|divides) "


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64m", 64 << 20),
        ("1g", 1 << 30),
        ("1.5k", 1536),
        ("10", 10),
        ("10b", 10),
        ("64MiB", 64 << 20),
        ("64 mb", 64 << 20),
        ("1e3", 1000),
        ("2T", 2 << 40),
        ("1p", 1 << 50),
        (".5k", 512),
        ("0", 0),
    ],
)
def test_size(text, value):
    assert syntax.size(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "m",
        "-1",
        "1q",
        "1mib2",
        "1 m m",
        "1bb",
        "1kbb",
        "0x10",
        "1_0",
        " 1",
        "nan",
        "inf",
        "9e30",
        "1e999999999",
        "٣",
    ],
)
def test_bad_size(text):
    with pytest.raises(ValueError, match=SENTENCE):
        syntax.size(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("30s", 30 * 10**9),
        ("1m30s", 90 * 10**9),
        ("500ms", 5 * 10**8),
        ("1.5s", 15 * 10**8),
        ("0", 0),
        ("-2us", -2000),
        ("1h1ns", 3600 * 10**9 + 1),
    ],
)
def test_duration(text, value):
    assert syntax.duration(text) == value


@pytest.mark.parametrize("text", ["", "-", "5", "1d", "s", "1s x", "9999999999h", "--1s"])
def test_bad_duration(text):
    with pytest.raises(ValueError, match=SENTENCE):
        syntax.duration(text)


@pytest.mark.parametrize(
    ("text", "value"), [("0.5", 5 * 10**8), ("2", 2 * 10**9), ("1/4", 25 * 10**7), ("1e-1", 10**8), ("0", 0)]
)
def test_cpus(text, value):
    assert syntax.nano_cpus(text) == value


@pytest.mark.parametrize("text", ["", "x", "1/0", "0.0000000001", "1e999", "1/3", "99999999999999999999"])
def test_bad_cpus(text):
    with pytest.raises(ValueError, match=SENTENCE):
        syntax.nano_cpus(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10),
        ("0x10", 16),
        ("010", 8),
        ("0b11", 3),
        ("0o7", 7),
        ("-5", -5),
        ("+5", 5),
        ("0", 0),
        ("0_1", 1),
    ],
)
def test_integer(text, value):
    assert syntax.integer(text) == value


@pytest.mark.parametrize("text", ["", "x", "1.0", "08", "1_0", "9223372036854775808", " 1", "1" * 100])
def test_bad_integer(text):
    with pytest.raises(ValueError, match=SENTENCE):
        syntax.integer(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.2.3.4", "1.2.3.4"),
        (" ::1 ", "::1"),
        ("2001:db8:0:0::1", "2001:db8::1"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
    ],
)
def test_ip_address(text, value):
    assert syntax.ip_address(text) == value


@pytest.mark.parametrize("text", ["", "1.2.3", "01.2.3.4", "fe80::1%eth0", "[::1]"])
def test_bad_ip_address(text):
    with pytest.raises(ValueError, match=SENTENCE):
        syntax.ip_address(text)


@pytest.mark.parametrize(
    "text", ["92:d0:c6:0a:29:33", "92-D0-C6-0A-29-33", "92d0.c60a.2933", "00:00:00:00:fe:80:00:00"]
)
def test_mac_address(text):
    assert syntax.mac_address(text) == text


@pytest.mark.parametrize("text", ["", "zz", "92:d0:c6:0a:29", "92:d0-c6:0a:29:33", "92d0c60a2933"])
def test_bad_mac_address(text):
    with pytest.raises(ValueError, match=SENTENCE):
        syntax.mac_address(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a,b", ["a", "b"]),
        ("a", ["a"]),
        ('"a,b",c', ["a,b", "c"]),
        ('"say ""hi"""', ['say "hi"']),
        ("a,", ["a", ""]),
        (",", ["", ""]),
    ],
)
def test_fields(text, value):
    assert syntax.fields(text) == value


@pytest.mark.parametrize("text", ["", 'a"b', '"a', '"a"b', "a\nb", "a\n"])
def test_bad_fields(text):
    with pytest.raises(ValueError, match=SENTENCE):
        syntax.fields(text)


def test_publish():
    assert list(ports.publish("127.0.0.1:8000-8001:80-81/UDP").bindings()) == [
        ("80/udp", {"HostIp": "127.0.0.1", "HostPort": "8000"}),
        ("81/udp", {"HostIp": "127.0.0.1", "HostPort": "8001"}),
    ]
    one_of = ports.publish("8000-8010:80")
    assert list(one_of.bindings()) == [("80/tcp", {"HostIp": "", "HostPort": "8000-8010"})]
    assert list(ports.publish("[::1]::80").bindings()) == [("80/tcp", {"HostIp": "::1", "HostPort": ""})]


def test_mount_options_of_a_volume():
    made = mounts.mount("source=v,target=/d,readonly,volume-label=a=b,volume-opt=o=x")
    assert made == {
        "Type": "volume",
        "Source": "v",
        "Target": "/d",
        "ReadOnly": True,
        "VolumeOptions": {"Labels": {"a": "b"}, "DriverConfig": {"Options": {"o": "x"}}},
    }
