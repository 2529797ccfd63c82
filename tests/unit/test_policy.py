import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeorch import config
from edgeorch.errors import PolicyError
from edgeorch.model import Caller, ContainerFacts, ContainerService, NativeService, TaskSpec
from edgeorch.policy import Policy
from edgeorch.policy.paths import resolved
from edgeorch.services import ListedService, load_services

IMAGE = ContainerService(image="hello-world")
RESIZE = ListedService(
    name="resize", source="/etc/edgeorch/services.d/resize.toml", argv=("/usr/bin/resize", "-q")
)


def native(*argv, **env):
    return NativeService(argv=argv, env=env)


def check(policy, service, *, role="submit", other=False, name="x", token="laptop", facts=None, **spec):
    policy.check(
        TaskSpec(name=name, service=(service,), **spec),
        service,
        Caller(token=token, role=role),
        runner_is_other_user=other,
        container=facts,
    )


def check_native(settings, service, *, listed=(RESIZE,), name="resize", **how):
    check(Policy(config.Policy(**settings), listed, node="kitchen"), service, name=name, **how)


def check_container(facts, *, image="hello-world", **settings):
    policy = Policy(config.Policy(**settings), node="kitchen")
    check(policy, ContainerService(image=image), facts=ContainerFacts(**facts))


@pytest.mark.parametrize(
    ("rule", "role", "other", "allowed"),
    [
        ("auto", "submit", True, True),
        ("auto", "submit", False, False),
        ("auto", "admin", False, True),
        ("any", "submit", False, True),
        ("listed", "admin", True, False),
        ("off", "admin", True, False),
        ({"submit": "off"}, "submit", True, False),
        ({"submit": "off"}, "admin", False, True),
        ({"admin": "listed", "submit": "any"}, "admin", True, False),
        ({"admin": "listed"}, "submit", False, False),
        ({"admin": "listed"}, "submit", True, True),
        ("any", "read", True, False),
        ("any", "none", True, False),
    ],
)
def test_the_native_rule(rule, role, other, allowed):
    service = native("/bin/echo")
    if allowed:
        check_native({"native": rule}, service, role=role, other=other)
        return
    with pytest.raises(PolicyError) as caught:
        check_native({"native": rule}, service, role=role, other=other)
    if role in {"submit", "admin"}:
        assert "policy.native is" in caught.value.detail
        assert "kitchen" in caught.value.hint


@pytest.mark.parametrize(
    ("service", "name", "said"),
    [
        (native("/usr/bin/resize", "-q"), "resize", None),
        (native("/usr/bin/resize", "-q"), "other", "no service 'other' is listed"),
        (native("/usr/bin/resize", "-q", "x"), "resize", "not the one in"),
        (native("/usr/bin/resize"), "resize", "not the one in"),
        (native("resize", "-q"), "resize", "not the one in"),
        (native("/usr/bin/resize", "-q", LD_PRELOAD="/tmp/x.so"), "resize", "let the caller set LD_PRELOAD"),
    ],
)
def test_a_listed_service(service, name, said):
    if said is None:
        check_native({"native": "listed"}, service, name=name)
        return
    with pytest.raises(PolicyError, match=said):
        check_native({"native": "listed"}, service, name=name)


def test_listed_arguments_and_variables():
    listed = ListedService(
        name="r", source="r.toml", argv=("/bin/r", "-q"), allow_args=True, allow_env=("Q",)
    )
    check_native({"native": "listed"}, native("/bin/r", "-q", "x", Q="1"), name="r", listed=[listed])
    with pytest.raises(PolicyError):
        check_native({"native": "listed"}, native("/bin/r", "-v", "x"), name="r", listed=[listed])


@pytest.mark.parametrize(
    ("program", "allowed"),
    [
        ("date", True),
        ("/usr/bin/date", True),
        ("/var/edge-orchestration/apps/clock/date", True),
        ("/tmp/date", False),
        ("./date", False),
        ("/usr/bin/../../tmp/date", False),
        ("/usr/bin/", False),
        ("", False),
        ("sh", False),
    ],
)
def test_a_service_of_the_original(program, allowed):
    listed = ListedService(
        name="clock", source="/var/edge-orchestration/apps/clock/clock.conf", program="date"
    )
    service = native(program, "-u")
    if allowed:
        check_native({"native": "listed"}, service, name="clock", listed=[listed])
    else:
        with pytest.raises(PolicyError, match="lists date, not"):
            check_native({"native": "listed"}, service, name="clock", listed=[listed])


@pytest.mark.parametrize("how", ["token", "claimed"])
@pytest.mark.parametrize(
    ("requesters", "token", "claim", "allowed"),
    [
        (("curl", "app"), "app", "", "token"),
        (("curl", "app"), "laptop", "app", "claimed"),
        (("curl", "app"), "laptop", "", ""),
        (("curl", "app"), "ap", "cur", ""),
        (("curl",), "CURL", "Curl", ""),
        ((), "app", "app", ""),
        ((), "app", "", ""),
        (None, "app", "", "token"),
    ],
)
def test_who_may_ask_for_a_listed_service(how, requesters, token, claim, allowed):
    listed = ListedService(name="clock", source="/a/clock.conf", program="date", requesters=requesters)
    how_asked = {"name": "clock", "listed": [listed], "token": token}
    if claim:
        how_asked["metadata"] = {"ServiceRequester": claim}
    settings = {"native": "listed", "requester": how}
    if allowed in {"token", how}:
        check_native(settings, native("date"), **how_asked)
        return
    with pytest.raises(PolicyError, match=r"/a/clock.conf does not let .* ask for it") as caught:
        check_native(settings, native("date"), **how_asked)
    assert caught.value.rule == "requester"
    assert token in caught.value.hint
    # Not who asks, but what is asked for: not said to strangers.
    with pytest.raises(PolicyError, match="ask for it"):
        check_native(settings, native("sh"), **how_asked)


def test_rules_of_listed_services_have_words():
    for name, argv, rule in (("other", "/usr/bin/resize", "service"), ("resize", "/bin/sh", "program")):
        with pytest.raises(PolicyError) as caught:
            check_native({"native": "listed"}, native(argv), name=name)
        assert caught.value.rule == rule
        assert caught.value.extra == {"key": "policy.native"}


def test_of_two_files_one_that_fits_is_enough():
    listed = [
        ListedService(name="r", source="a.toml", argv=("/bin/r",), requesters=("app",)),
        ListedService(name="r", source="b.toml", argv=("/bin/r", "-q")),
    ]
    check_native({"native": "listed"}, native("/bin/r", "-q"), name="r", listed=listed)
    check_native({"native": "listed"}, native("/bin/r"), name="r", listed=listed, token="app")
    with pytest.raises(PolicyError, match=r"a\.toml does not let laptop"):
        check_native({"native": "listed"}, native("/bin/r"), name="r", listed=listed)


@pytest.mark.parametrize(
    ("path", "listed", "allowed"),
    [
        ("/data", (), False),
        ("/data", ("/data",), True),
        ("/data/", ("/data",), True),
        ("/data/x/y", ("/data",), True),
        ("/database", ("/data",), False),
        ("/etc", ("/data",), False),
        ("/data/../etc", ("/data",), False),
        ("/data/./x/../y", ("/data",), True),
        ("relative", ("/",), False),
        ("/data\0", ("/data",), False),
        ("/etc", ("/",), True),
        ("/var/run/utmp", ("/var/run",), True),
        ("/srv", ("/srv/data",), False),
    ],
)
def test_host_paths(path, listed, allowed):
    policy = Policy(config.Policy(host_paths=listed), node="kitchen", resolve=posixpath.normpath)
    facts = ContainerFacts(binds=(path,))
    if allowed:
        check(policy, IMAGE, role="admin", facts=facts)
        return
    with pytest.raises(PolicyError) as caught:
        check(policy, IMAGE, role="admin", facts=facts)
    assert caught.value.detail == f"policy.host_paths does not list {path}"
    assert caught.value.hint == "add it in edgeorch.toml on kitchen"
    assert caught.value.status == 403


@pytest.mark.parametrize(
    ("path", "socket"),
    [
        ("/", "/run/docker.sock"),
        ("/run", "/run/docker.sock"),
        ("/run/", "/run/docker.sock"),
        ("/run/docker.sock", "/run/docker.sock"),
        ("/run/x/../docker.sock", "/run/docker.sock"),
        ("/var/run", "/var/run/docker.sock"),
        ("/var", "/var/run/docker.sock"),
        ("/run/containerd", "/run/containerd/containerd.sock"),
        ("/srv/engine", "/srv/engine/docker.sock"),
    ],
)
def test_a_mount_that_reaches_an_engine_is_privileged(path, socket):
    arguments = {"node": "kitchen", "engine_socket": "/srv/engine/docker.sock", "resolve": posixpath.normpath}

    def tried(**settings):
        policy = Policy(config.Policy(host_paths=("/",), **settings), **arguments)
        check(policy, IMAGE, facts=ContainerFacts(binds=("/data", path)))

    with pytest.raises(PolicyError) as caught:
        tried()
    assert caught.value.detail.startswith(f"policy.privileged is off, and the container asks for {path}, ")
    assert socket in caught.value.detail or path in {"/", "/run", "/var"}
    assert "set policy.privileged = true in edgeorch.toml on kitchen" in caught.value.hint
    tried(privileged=True)


def test_a_link_to_an_engine_is_one_too(tmp_path):
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / "docker.sock").touch()
    (tmp_path / "link").symlink_to(engine)
    policy = Policy(
        config.Policy(host_paths=(str(tmp_path),)), engine_socket=str(tmp_path / "link" / "docker.sock")
    )
    for path, allowed in ((engine, False), (tmp_path / "link", False), (tmp_path / "other", True)):
        facts = ContainerFacts(binds=(str(path),))
        if allowed:
            check(policy, IMAGE, facts=facts)
            continue
        with pytest.raises(PolicyError, match="reaches the Docker socket"):
            check(policy, IMAGE, facts=facts)


@pytest.mark.parametrize("folder", ["/srv" + "/a" * 2048, "/srv/" + "../srv/" * 9000, "/srv/a\0b"])
def test_a_path_that_no_file_can_have_is_refused_without_a_look(folder):
    looked = []

    def resolve(path):
        looked.append(path)
        return resolved(path)

    policy = Policy(config.Policy(host_paths=("/srv",)), resolve=resolve)
    with pytest.raises(PolicyError, match="host_paths"):
        check(policy, IMAGE, facts=ContainerFacts(binds=(folder,) * 3))
    with pytest.raises((OSError, ValueError)):
        resolved(folder)
    # For each mount once or twice, and not for each socket.
    assert sum(path == folder for path in looked) <= 4


def test_a_long_way_to_write_an_engine_is_one_too():
    policy = Policy(config.Policy(host_paths=("/",)))
    for path in ("/" * 5000 + "run/docker.sock", "/run/" + "./" * 5000, "/" + "x/../" * 5000):
        with pytest.raises(PolicyError, match="reaches the Docker socket"):
            check(policy, IMAGE, facts=ContainerFacts(binds=(path,)))


def test_links_on_the_host(tmp_path):
    data, secret = tmp_path / "data", tmp_path / "secret"
    data.mkdir()
    (secret / "inner").mkdir(parents=True)
    (data / "out").symlink_to(secret)
    (data / "deep").symlink_to(secret / "inner")
    (tmp_path / "alias").symlink_to(data)
    policy = Policy(config.Policy(host_paths=(str(data),)))

    def allowed(path):
        facts = ContainerFacts(binds=(str(path),))
        try:
            check(policy, IMAGE, facts=facts)
        except PolicyError:
            return False
        return True

    assert allowed(data / "new")
    assert allowed(tmp_path / "alias" / "x")
    assert not allowed(data / "out")
    assert not allowed(data / "out" / "x")
    # By text it stays in data, for the kernel it is secret's parent.
    assert not allowed(f"{data}/deep/../x")
    # The other way round: for the kernel it is in data, by text it is beside it.
    (data / "sub").mkdir()
    (secret / "back").symlink_to(data / "sub")
    assert not allowed(f"{secret}/back/../x")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"privileged": True}, "--privileged"),
        ({"namespaces": ("--pid container:db",)}, "--pid container:db"),
        ({"namespaces": ("--pid container:db host",)}, "--pid container:db host"),
        ({"security_opts": ("seccomp=unconfined",)}, "the security option seccomp=unconfined"),
        ({"other": ("--volumes-from db",)}, "--volumes-from db"),
    ],
)
def test_what_reaches_beyond_the_container(facts, said):
    with pytest.raises(PolicyError, match=f"policy.privileged is off, and the container asks for {said}"):
        check_container(facts)
    check_container(facts, privileged=True)


@pytest.mark.parametrize(
    ("facts", "key", "listed", "others"),
    [
        ({"namespaces": ("--network host",)}, "namespaces", ["network"], ["pid", "ipc", "uts", "userns"]),
        ({"namespaces": ("--pid host",)}, "namespaces", ["pid"], ["network"]),
        ({"capabilities": ("NET_ADMIN",)}, "capabilities", ["NET_ADMIN"], ["SYS_TIME", "NET_ADMI"]),
        ({"capabilities": ("cap_net_admin",)}, "capabilities", ["NET_ADMIN"], []),
        ({"capabilities": ("NET_ADMIN",)}, "capabilities", ["cap_net_admin"], []),
        ({"capabilities": ("SYS_TIME",)}, "capabilities", ["ALL"], []),
        ({"capabilities": ("all",)}, "capabilities", ["ALL"], ["NET_ADMIN"]),
        (
            {"devices": ("/dev/video0",)},
            "devices",
            ["/dev/video0"],
            ["/dev/video", "/dev/video1", "/dev/vide?0"],
        ),
        ({"devices": ("/dev/video0:/dev/x:r",)}, "devices", ["/dev/video*"], ["/dev/x"]),
        ({"devices": ("/dev/snd/timer",)}, "devices", ["/dev/snd"], ["/dev/*/seq", "/dev/sn"]),
        ({"devices": ("/dev/snd",)}, "devices", ["/dev/**"], ["/dev/snd/timer"]),
        ({"devices": ("/dev/snd/../sda",)}, "devices", [], ["/dev/snd", "/dev/**"]),
        ({"devices": ("dev/sda",)}, "devices", [], ["/dev", "/dev/**"]),
        ({"devices": ("--gpus all",)}, "devices", ["gpus"], ["/dev", "/dev/**"]),
        ({"volumes": ("cache-1",)}, "volumes", ["cache-*"], ["cache", "ache-1", "cache-"]),
        ({"networks": ("web-1",)}, "networks", ["web-*"], ["web", "eb-1", "bridge", "host"]),
    ],
)
def test_what_lists_open(facts, key, listed, others):
    for settings in ({}, {key: tuple(others)}):
        with pytest.raises(PolicyError) as caught:
            check_container(facts, **settings)
        assert caught.value.detail.startswith(f"policy.{key} does not list ")
        assert caught.value.hint == f"add it to policy.{key} in edgeorch.toml on kitchen"
        assert caught.value.extra == {"key": f"policy.{key}"}
    if listed:
        check_container(facts, **{key: tuple(listed)})
    check_container(facts, privileged=True)


def test_files_that_options_read():
    with pytest.raises(PolicyError, match=r"policy\.option_files is off.*/etc/shadow"):
        check_container({"option_files": ("/etc/shadow",)}, privileged=True)
    check_container({"option_files": ("/etc/env",)}, option_files=True)


def test_privileged_does_not_open_host_paths():
    with pytest.raises(PolicyError, match="host_paths"):
        check_container({"binds": ("/etc",)}, privileged=True)


def test_a_harmless_container():
    check_container({})
    with pytest.raises(ValueError, match="facts"):
        check(Policy(config.Policy()), IMAGE)


def test_what_the_settings_give_away():
    def said(**settings):
        return Policy(config.Policy(**settings), node="kitchen").warnings()

    assert said() == said(host_paths=("/data", "/run")) == ()
    for path in ("/", "/etc"):
        assert "root on kitchen" in said(host_paths=(path,))[0]
    assert "policy.privileged" in said(privileged=True)[0]
    assert said(capabilities=("NET_ADMIN",), devices=("/dev/video*", "gpus"), namespaces=("network",)) == ()
    for name in ("all", "CAP_SYS_ADMIN"):
        assert "policy.capabilities" in said(capabilities=(name,))[0]
    for device in ("/dev", "/dev/sd*", "/dev/mem", "/dev/**"):
        assert "policy.devices" in said(devices=(device,))[0]


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_services_of_both_kinds(tmp_path):
    folder, apps = tmp_path / "services.d", tmp_path / "apps"
    one = write(folder, "resize.toml", 'argv = ["/usr/bin/resize"]\nallow_args = true\nallow_env = ["Q"]\n')
    two = write(folder, "b.toml", 'name = "backup"\nargv = ["/bin/tar", "-c"]\n')
    three = write(apps, "ls/ls.conf", "[Version]\nConfVersion=v0.1\n[ServiceInfo]\nServiceName=ls_srv\n"
                  "ExecutableFileName=ls\nAllowedRequester=curl, 50%\n")  # fmt: skip
    write(apps, "box/box.conf", "[ServiceInfo]\nServiceName=box\nExecType=container\n")
    write(folder, "notes.txt", "no service")
    found, warnings = load_services(folder, apps)
    assert warnings == ()
    assert found == (
        ListedService(name="backup", source=two, argv=("/bin/tar", "-c")),
        ListedService(
            name="resize", source=one, argv=("/usr/bin/resize",), allow_args=True, allow_env=("Q",)
        ),
        ListedService(name="ls_srv", source=three, program="ls", allow_args=True, requesters=("curl", "50%")),
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s/a.toml", b"argv = ["),
        ("s/a.toml", b"argv = []"),
        ("s/a.toml", b"argv = ['']"),
        ("s/a.toml", b"argv = ['ls']"),
        ("s/a.toml", b"argv = ['/bin/ls']\nalow_args = true"),
        ("s/a.toml", b"\xff\xfe"),
        ("s/a.toml", b"a = " + b"[" * 5000),
        ("s/a.toml", b"#" * 100_000),
        ("a/x/x.conf", b"not an ini"),
        ("a/x/x.conf", b"[ServiceInfo]\nServiceName=x\n"),
        ("a/x/x.conf", b"[Other]\n"),
        ("a/x/x.conf", b"[ServiceInfo]\nServiceName=x\nExecutableFileName=/bin/bash\nAllowedRequester=a\n"),
        ("a/x/x.conf", b"\xff"),
    ],
)
def test_a_bad_file_is_told_and_the_others_count(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    write(tmp_path, "s/good.toml", 'argv = ["/bin/true"]')
    found, warnings = load_services(tmp_path / "s", tmp_path / "a")
    assert [service.name for service in found] == ["good"]
    assert len(warnings) == 1
    assert warnings[0].startswith(str(path))
    assert "\n" not in warnings[0]


@pytest.mark.parametrize("line", ["", "AllowedRequester=", "AllowedRequester= , "])
def test_a_service_that_nobody_may_ask_for_is_told(tmp_path, line):
    path = write(tmp_path, "a/a.conf", f"[ServiceInfo]\nServiceName=a\nExecutableFileName=ls\n{line}\n")
    (service,), warnings = load_services(tmp_path / "none", tmp_path)
    assert service.requesters == ()
    assert warnings == (f"{path}: its list of requesters is empty or missing, so nobody may ask for it",)


def test_requesters_of_our_own_files(tmp_path):
    write(tmp_path, "a.toml", 'argv = ["/bin/ls"]\nrequesters = ["laptop"]\n')
    write(tmp_path, "b.toml", 'argv = ["/bin/ls"]\n')
    found, warnings = load_services(tmp_path, tmp_path / "none")
    assert [service.requesters for service in found] == [("laptop",), None]
    assert warnings == ()


def test_folders_that_are_not_there(tmp_path):
    assert load_services(tmp_path / "s", tmp_path / "a") == ((), ())


@given(st.binary(max_size=200))
def test_no_content_crashes_the_readers(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("services")
    (folder / "x").mkdir()
    (folder / "x.toml").write_bytes(content)
    (folder / "x" / "x.conf").write_bytes(b"[ServiceInfo]\n" + content)
    found, warnings = load_services(folder, folder)
    assert len(found) + len(warnings) <= 3


def test_a_path_that_cannot_be_resolved_is_refused(tmp_path):
    def resolve(path):
        if "closed" in path:
            raise PermissionError(13, "Permission denied", path)
        return path

    policy = Policy(config.Policy(host_paths=(str(tmp_path),)), resolve=resolve)
    facts = ContainerFacts(binds=(f"{tmp_path}/closed/link",))
    with pytest.raises(PolicyError, match="host_paths"):
        check(policy, IMAGE, facts=facts)


def test_a_link_below_a_listed_folder_is_followed(tmp_path):
    (tmp_path / "link").symlink_to("/")
    policy = Policy(config.Policy(host_paths=(str(tmp_path),)))
    service = ContainerService(image="x")
    for path, allowed in ((f"{tmp_path}/link/etc", False), (f"{tmp_path}/new", True)):
        facts = ContainerFacts(binds=(path,))
        if allowed:
            check(policy, service, facts=facts)
            continue
        with pytest.raises(PolicyError, match="host_paths"):
            check(policy, service, facts=facts)
