"""Whatever is written where options belong: a body, or an error that is the writer's."""

import json

from hypothesis import given
from hypothesis import strategies as st

from edgeorch.docker_options import OPTIONS, parse, split
from edgeorch.errors import DockerOptionError

NAMES = [name for option in OPTIONS for name in (option.name, *option.aliases)]
FRAGMENTS = (
    *("0", "1", "-1", "64m", "1g", "5s", "1/2", "0.5", "a=b", "key=", "=", ",", ":", "::", "/", "/tmp"),
    *("/dev/null", "a:b", "a:b:c", "a:b:c:d", "[::1]", "1.2.3.4", "host", "none", "container:", "bridge"),
    *("container:x", "type=bind", "source=/x", "target=/y", "readonly", "name=n", "alias=a", "80", "80-90"),
    *(
        "80/tcp",
        "80:80",
        "published=1",
        "all",
        "device=0",
        "seccomp=",
        "seccomp=x",
        "unconfined",
        '"a',
        '"a"',
    ),
    *("on-failure:3", "nofile=1:2", "c *:* rwm", "no-new-privileges", "local", "\u00e9", "\ud800", "\0"),
)

value = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=8), max_size=4).map("".join) | st.lists(
    st.sampled_from(FRAGMENTS), max_size=5
).map(",".join)
option = st.one_of(
    st.tuples(st.sampled_from(NAMES), value).map(lambda pair: [f"--{pair[0]}={pair[1]}"]),
    st.tuples(st.sampled_from(NAMES), value).map(lambda pair: [f"--{pair[0]}", pair[1]]),
    st.sampled_from(NAMES).map(lambda name: [f"--{name}"]),
    st.tuples(st.sampled_from("aehiltuwpPvcmdqZ"), value).map(lambda pair: [f"-{pair[0]}{pair[1]}"]),
    st.text(max_size=6).map(lambda text: [text]),
)
words = st.lists(option, max_size=6).map(lambda groups: [word for group in groups for word in group])


@given(words, st.text(max_size=6), st.lists(st.text(max_size=6), max_size=3), st.binary(max_size=40))
def test_parse_raises_only_its_own_error(options, image, args, content):
    try:
        body, facts = parse(options, image, args, read_file=lambda _: content)
    except DockerOptionError:
        pass
    else:
        assert json.loads(json.dumps(body)) == body
        assert facts.privileged == body["HostConfig"]["Privileged"]


@given(words)
def test_split_raises_only_its_own_error(options):
    try:
        found, image, args = split(["docker", "run", *options])
    except DockerOptionError:
        pass
    else:
        ended = ["--"] if len(found) + 1 + len(args) < len(options) else []
        assert [*found, *ended, image, *args] == options


@given(words, st.lists(value, max_size=3))
def test_what_split_gives_parse_takes(options, args):
    try:
        direct = parse(options, "image", args)
    except DockerOptionError:
        return
    again = split(["docker", "run", *options, "--", "image", *args])
    assert again == (tuple(options), "image", tuple(args))
    assert parse(*again) == direct
