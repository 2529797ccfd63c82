import math

import pytest

from edgeorch.docker_options import OPTIONS, UNSUPPORTED, parse, split
from edgeorch.errors import DockerOptionError, PolicyError

README = ["docker", "run", "-v", "/var/run:/var/run:rw", "hello-world"]


def body(*options, image="img", args=()):
    return parse(options, image, args)[0]


def facts(*options):
    return parse(options, "img")[1]


def refused(*options):
    with pytest.raises(DockerOptionError) as info:
        parse(options, "img")
    return str(info.value)


def test_the_original_documentation_line():
    assert split(README) == (("-v", "/var/run:/var/run:rw"), "hello-world", ())
    made, wants = parse(*split(README))
    assert made["Image"] == "hello-world"
    assert made["HostConfig"]["Binds"] == ["/var/run:/var/run:rw"]
    assert wants.binds == ("/var/run",)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-e", "A=1", "img"], (("-e", "A=1"), "img", ())),
        (["-eA=1", "img", "-x"], (("-eA=1",), "img", ("-x",))),
        (["-it", "img"], (("-it",), "img", ())),
        (["-itu", "1000", "img"], (("-itu", "1000"), "img", ())),
        (["--init=false", "img"], (("--init=false",), "img", ())),
        (["--init", "false"], (("--init",), "false", ())),
        (["--name=", "--", "img"], None),
        (["-i", "--", "img", "--", "-e"], (("-i",), "img", ("--", "-e"))),
        (["--memory", "--rm", "img"], (("--memory", "--rm"), "img", ())),
        (["-", "x"], ((), "-", ("x",))),
        (["img", "-d"], ((), "img", ("-d",))),
    ],
)
def test_split(words, expected):
    for prefix in (["docker", "run"], ["docker", "container", "run"], ["/usr/bin/docker", "run"]):
        if expected is None:
            with pytest.raises(DockerOptionError):
                split([*prefix, *words])
        else:
            assert split([*prefix, *words]) == expected


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["docker"],
        ["docker", "run"],
        ["docker", "run", "--rm"],
        ["docker", "run", "--rm", ""],
        ["docker", "create", "img"],
        ["podman", "run", "img"],
        ["run", "docker", "img"],
        ["docker", "run", "--"],
    ],
)
def test_split_refuses(argv):
    with pytest.raises(DockerOptionError):
        split(argv)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_options_are_refused_by_name(name):
    with pytest.raises(DockerOptionError) as info:
        split(["docker", "run", f"--{name}", "x", "img"])
    assert f"--{name} is not supported" in info.value.detail
    assert info.value.hint == UNSUPPORTED[name]


def test_short_detach_names_the_long_option_and_what_to_do():
    with pytest.raises(DockerOptionError, match=r"-d \(--detach\) is not supported") as info:
        split(["docker", "run", "-itd", "img"])
    assert "leave it out" in info.value.hint


def test_unknown_options_suggest_the_nearest():
    assert "did you mean --volume?" in refused("--volum", "x")
    assert "-Z is not a known option" in refused("-Z")
    assert "---x" in refused("---x")
    assert "--=x" in refused("--=x")


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.kind != "flag"])
def test_a_missing_value_names_the_option(option):
    assert f"--{option.name}: a value is missing" in refused(f"--{option.name}")


@pytest.mark.parametrize(
    "option",
    [option for option in OPTIONS if option.kind in ("integer", "size", "duration", "decimal", "flag")],
)
def test_a_bad_value_names_the_option(option):
    assert f"--{option.name} 'bad!'" in refused(f"--{option.name}=bad!")


def test_a_stray_word_among_the_options():
    assert "'stray' is not an option" in refused("--rm", "stray")


def test_names_are_unique():
    names = [name for option in OPTIONS for name in (option.name, *option.aliases)]
    assert len(names) == len(set(names))
    shorts = [option.short for option in OPTIONS if option.short]
    assert len(shorts) == len(set(shorts))


def test_of_single_values_the_last_counts_but_all_are_checked():
    assert body("-m", "1g", "-m", "2g")["HostConfig"]["Memory"] == 2 << 30
    assert "--memory" in refused("-m", "x", "-m", "2g")


def test_a_bare_variable_takes_nothing_from_the_daemon(monkeypatch):
    monkeypatch.setenv("SECRET", "s3cret")
    assert body("-e", "SECRET")["Env"] == ["SECRET"]
    made, _ = parse(["--env-file", "f"], "img", read_file=lambda _: b"SECRET\nA=1\n")
    assert made["Env"] == ["A=1"]


def test_option_files_are_named_and_read_only_by_the_given_function():
    options = ["--env-file", "/e", "--label-file", "/l", "--security-opt", "seccomp=/s"]
    made, wants = parse(options, "img")
    assert wants.option_files == ("/e", "/l", "/s")
    assert made["Env"] == []
    content = {"/e": b"\xef\xbb\xbfA=1\r\n# no\nB= 2", "/l": b"x=y", "/s": b'{ "a": [1, 2] }'}
    made, _ = parse(options, "img", read_file=content.__getitem__)
    assert made["Env"] == ["A=1", "B= 2"]
    assert made["Labels"] == {"x": "y"}
    assert made["HostConfig"]["SecurityOpt"] == ['seccomp={"a":[1,2]}']


def test_a_refusal_to_read_passes():
    def no(path):
        raise PolicyError("policy.option_files is off")

    with pytest.raises(PolicyError):
        parse(["--env-file", "/e"], "img", read_file=no)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"A B=1", b"=1"])
def test_bad_option_files(content):
    with pytest.raises(DockerOptionError, match="--env-file"):
        parse(["--env-file", "/e"], "img", read_file=lambda _: content)


def test_an_absent_option_file():
    def absent(path):
        raise FileNotFoundError(2, "No such file or directory", path)

    with pytest.raises(DockerOptionError, match="/e: No such file"):
        parse(["--env-file", "/e"], "img", read_file=absent)


@pytest.mark.parametrize("profile", [b"not json", b"[" * 100_000])
def test_a_bad_seccomp_profile(profile):
    with pytest.raises(DockerOptionError, match="not JSON"):
        parse(["--security-opt", "seccomp=/s"], "img", read_file=lambda _: profile)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--rm", "--restart", "always"], "--rm and --restart"),
        (["--no-healthcheck", "--health-cmd", "x"], "--no-healthcheck"),
        (["--health-timeout", "-1s"], "--health-timeout cannot be negative"),
        (["--log-driver", "none", "--log-opt", "a=b"], "--log-opt"),
        (["--network-alias", "a"], "--network-alias"),
        (["--network", "a", "--network", "host"], "cannot be mixed"),
        (["--network", "a", "--network", "a"], "twice"),
        (["--network", "name=a,alias=x", "--network-alias", "y"], "exclude each other"),
        (["--network", "name=a,ip=1.2.3.4", "--ip", "1.2.3.5"], "exclude each other"),
        (["--network", "name=a,colour=x"], "unknown key"),
        (["-v", "./x:/a"], "starts with /"),
        (["-v", "~/x:/a"], "starts with /"),
        (["-v", "x:/a"], "two characters"),
        (["--mount", "type=bind,source=.,target=/a"], "starts with /"),
        (["--mount", 'type=bind,"source'], "quotes"),
        (["--device", "/dev/snd*"], "name each of them"),
    ],
)
def test_conflicts_and_what_docker_would_resolve_here(options, sentence):
    assert sentence in refused(*options)


@pytest.mark.parametrize("image", ["", "a b", "a\n"])
def test_no_image(image):
    with pytest.raises(DockerOptionError, match="image"):
        parse([], image)


def test_facts_of_a_harmless_container():
    wants = facts(
        "-e",
        "A=1",
        "-p",
        "80:80",
        "-v",
        "/data",
        "--security-opt",
        "no-new-privileges",
        "--ipc",
        "private",
    )
    assert wants == type(wants)()


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        (["--privileged"], "privileged", True),
        (["-v", "/a/../etc:/b:ro"], "binds", ("/a/../etc",)),
        (["--mount", "type=bind,src=/etc,dst=/b"], "binds", ("/etc",)),
        (
            ["--mount", "dst=/b,volume-opt=type=none,volume-opt=o=bind,volume-opt=device=/etc"],
            "binds",
            ("/etc",),
        ),
        (
            ["--mount", "dst=/b,volume-opt=type=tmpfs,volume-opt=o=bind,volume-opt=device=/etc"],
            "binds",
            ("/etc",),
        ),
        (["--mount", "dst=/b,volume-opt=o=rbind,volume-opt=device=etc"], "binds", ("/etc",)),
        (["--network", "host"], "namespaces", ("--network host",)),
        (["--net=container:x"], "namespaces", ("--network container:x",)),
        (["--pid", "host", "--ipc", "host"], "namespaces", ("--pid host", "--ipc host")),
        (["--uts", "host", "--userns", "host"], "namespaces", ("--uts host", "--userns host")),
        (["--cap-add", "NET_ADMIN"], "capabilities", ("NET_ADMIN",)),
        (["--device", "/dev/null:/dev/x"], "devices", ("/dev/null:/dev/x",)),
        (["--gpus", "all"], "devices", ("--gpus all",)),
        (["--device-cgroup-rule", "c 1:3 r"], "other", ("--device-cgroup-rule c 1:3 r",)),
        (["--network", "bridge", "--network", "host"], "namespaces", ("--network host",)),
        (["--network", "none", "--network", "container:x"], "namespaces", ("--network container:x",)),
        (["--mount", "type=volume,src=/etc,dst=/b"], "binds", ("/etc",)),
        (["-v", "data:/b:ro", "--mount", "src=more,dst=/c", "-v", "/d"], "volumes", ("data", "more")),
        (["--mount", "type=tmpfs,dst=/b"], "volumes", ()),
        (["--mount", "src=d,dst=/b,volume-opt=type=none,volume-opt=device=/x"], "volumes", ("d",)),
        (["--network", "web", "--network", "name=db,alias=a"], "networks", ("web", "db")),
        (["--net", "Host"], "networks", ("Host",)),
        (["--network", "bridge"], "networks", ()),
        (["--network", "none"], "networks", ()),
        (["--network", "host"], "networks", ()),
        (["--network", "container:x"], "networks", ()),
        (["--gpus", "driver=cdi,device=x"], "other", ("--gpus driver=cdi",)),
        (["--link", "db"], "other", ("--link db",)),
        (["--network", "own", "--link", "db"], "other", ()),
        (["--cpus", "1.5"], "cpus", 1.5),
        (["--cpu-quota", "50000"], "cpus", 0.5),
        (["--cpu-quota", "50000", "--cpu-period", "10000"], "cpus", 5.0),
        (["--cpu-quota=-1"], "cpus", math.inf),
        (["--cpu-period", "10000"], "cpus", math.inf),
        (["--cpus=-1"], "cpus", math.inf),
        (["-m", "1g"], "memory", 1 << 30),
        (["-m", "1g", "--memory-swap", "3g"], "memory_swap", 3 << 30),
        (["-m", "1g", "--memory-swap=-1"], "memory_swap", math.inf),
        (["--security-opt", "seccomp=unconfined"], "security_opts", ("seccomp=unconfined",)),
        (["--security-opt", "no-new-privileges=false"], "security_opts", ("no-new-privileges=false",)),
        (["--volumes-from", "x"], "other", ("--volumes-from x",)),
        (["--cgroup-parent", "/"], "other", ("--cgroup-parent /",)),
        (["--runtime", "odd"], "other", ("--runtime odd",)),
        (["--volume-driver", "odd"], "other", ("--volume-driver odd",)),
        (["--mount", "dst=/b,volume-driver=odd"], "other", ("--mount volume-driver=odd",)),
        (["--log-driver", "syslog"], "other", ("--log-driver syslog",)),
        (["--oom-score-adj=-5"], "other", ("--oom-score-adj -5",)),
        (["--oom-kill-disable"], "other", ("--oom-kill-disable",)),
    ],
)
def test_facts(options, field, value):
    assert getattr(facts(*options), field) == value


def test_a_network_disk_is_named_with_its_kind():
    wants = facts("--mount", "dst=/b,volume-opt=type=nfs,volume-opt=device=:/x")
    assert wants.other == ("--mount volume-opt=type=nfs",)


def test_ports_are_counted_before_they_are_listed():
    made = body("-p", "8000-8499:8000-8499/udp", "--expose", "1-500")
    assert len(made["ExposedPorts"]) == 1000
    assert "1001 ports; 1000 are allowed" in refused("-p", "8000-8499:8000-8499", "--expose", "1-501")
    # A list of them all would not fit into memory.
    assert "1310700000 ports" in refused(*["-p", "1-65535:1-65535"] * 20_000)
