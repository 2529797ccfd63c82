import io
import json
import time
from datetime import UTC, datetime, timedelta

import click
import pytest

from edgeorch import cli, errors
from edgeorch.cli import checks, show
from edgeorch.cli.audit import Moment
from edgeorch.cli.audit import row_of as audit_row
from edgeorch.cli.checks import CHECKS
from edgeorch.cli.printing import Printer
from edgeorch.cli.spec import Duration, Size, name_of, read_spec, secrets_of, service_of
from edgeorch.cli.status import WARN_DAYS as SHOWN_WARN_DAYS
from edgeorch.cli.status import problems_of, waiting_of
from edgeorch.cli.submit import ranking_rows
from edgeorch.cli.tasks import row_of
from edgeorch.client.answers import Attempt, AuditRecord, Node, Output, Ranked, Score, Task
from edgeorch.identity import WARN_DAYS, Authority


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No settings of the person who runs the tests, and no debug traceback."""
    for name in ("EDGEORCH_URL", "EDGEORCH_TOKEN", "EDGEORCH_CA", "EDGEORCH_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_loads_and_has_help_with_an_example(name, capsys):
    command = cli.edgeorch.get_command(click.Context(cli.edgeorch), name)
    for words in [[], *([sub] for sub in getattr(command, "commands", {}))]:
        assert cli.main([name, *words, "--help"]) == 0
        out = capsys.readouterr().out
        assert "Usage: edgeorch" in out
        if name not in {"keys", "token"} and (words or not hasattr(command, "commands")):
            assert "Example" in out


def test_the_help_page_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("words", "code"),
    [(["nope"], 2), (["run"], 2), (["run", "--memory", "lots", "--", "x"], 2), (["--version"], 0), ([], 2)],
)
def test_usage(words, code, capsys):
    assert cli.main(words) == code
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 78),
        (errors.IdentityError("x"), 78),
        (errors.NodeUnreachableError("x"), 3),
        (errors.OriginUnreachableError("x"), 3),
        (errors.UnavailableError("x"), 1),
        (errors.PolicyError("x"), 4),
        (errors.UnauthorizedError("x"), 4),
        (errors.InvalidRequestError("x"), 4),
        (errors.StorageError("x"), 1),
    ],
)
def test_exit_codes(error, code):
    assert cli.exit_code_of(error) == code


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (errors.PolicyError("not here", hint="ask"), 4, "edgeorch: not here\n  ask\n"),
        (ExceptionGroup("", [ExceptionGroup("", [errors.ConfigError("bad")])]), 78, "edgeorch: bad\n"),
        (ExceptionGroup("", [errors.ConfigError("bad"), ZeroDivisionError("oops")]), 1, "a defect: ZeroDiv"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (BaseExceptionGroup("", [KeyboardInterrupt()]), 130, "interrupted"),
    ],
)
def test_whatever_goes_wrong_is_a_sentence(raised, code, said, capsys, monkeypatch):
    def explode(*args, **kwargs):
        raise raised

    monkeypatch.setattr(cli.edgeorch, "main", explode)
    assert cli.main(["nodes"]) == code
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    monkeypatch.setenv("EDGEORCH_DEBUG", "1")
    cli.main(["nodes"])
    assert type(raised).__name__ in capsys.readouterr().err


def test_unreachable_says_what_to_do(capsys):
    import socket

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: nobody answers there
        assert cli.main(["nodes", "--url", f"http://127.0.0.1:{closed.getsockname()[1]}"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "refused" in err
    assert "--url" in err


# Specs


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512", 512), ("64K", 65536), ("1.5M", 1572864), ("2GiB", 2 << 30), ("1gb", 1 << 30)],
)
def test_sizes(text, size):
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("10m", 600), ("2h", 7200), ("1d", 86400)]
)
def test_durations(text, seconds):
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize(
    ("kind", "text"), [(Size(), "1X"), (Size(), "-1"), (Duration(), "0"), (Duration(), "soon")]
)
def test_what_is_no_size_or_duration(kind, text):
    with pytest.raises(click.BadParameter):
        kind.convert(text, None, None)


def test_services_from_words():
    assert service_of(None, ["A=1=2"], [], ["ls", "-l"]) == {
        "driver": "native",
        "argv": ["ls", "-l"],
        "env": {"A": "1=2"},
    }
    assert service_of("busybox", ["A=1"], ["--network", "none"], ["id"]) == {
        "driver": "container",
        "image": "busybox",
        "options": ["-e", "A=1", "--network", "none"],
        "args": ["id"],
    }
    for image, env, options, words in ((None, [], [], []), (None, [], ["-v"], ["x"]), ("i", ["A"], [], [])):
        with pytest.raises(click.UsageError):
            service_of(image, env, options, words)


@pytest.mark.parametrize(
    ("image", "words", "name"),
    [
        ("ghcr.io:443/acme/resize:2", [], "resize"),
        ("busybox@sha256:12", [], "busybox"),
        (None, ["/usr/bin/env", "x"], "env"),
        (None, ["/"], "task"),
    ],
)
def test_names_of_tasks_without_one(image, words, name):
    assert name_of(image, words) == name


def test_specs_from_files(tmp_path):
    (tmp_path / "a.toml").write_text('name = "x"\n[[service]]\ndriver = "native"\nargv = ["id"]\n')
    (tmp_path / "a.json").write_text('[{"name": "x"}]')
    assert read_spec(str(tmp_path / "a.toml"))["service"][0]["argv"] == ["id"]
    assert read_spec(str(tmp_path / "a.json")) == [{"name": "x"}]


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, None])
@pytest.mark.parametrize("suffix", ["json", "toml"])
def test_broken_spec_files_are_named(tmp_path, content, suffix):
    path = tmp_path / f"a.{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(errors.InvalidRequestError, match=str(path)):
        read_spec(str(path))


# Showing


def test_secrets_from_files_stdin_and_variables(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"\x00\xff\n")
    monkeypatch.setenv("DB_PASSWORD", "wörd")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"typed")))
    given = (f"a.key={tmp_path}/file", "DB_PASSWORD", "in=-")
    assert secrets_of(given) == {"a.key": b"\x00\xff\n", "DB_PASSWORD": "wörd".encode(), "in": b"typed"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("no_such_variable",), "no such variable"),
        (("hunter2 is my password",), "NAME=FILE"),
        (("../x=y",), "NAME=FILE"),
        (("a=-", "b=-"), "read once"),
        (("a=/nonexistent/file",), "No such file"),
    ],
)
def test_secrets_that_cannot_be_read_are_named_but_not_shown(given, words):
    with pytest.raises((click.UsageError, errors.InvalidRequestError)) as caught:
        secrets_of(given)
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_tables_in_a_pipe_are_tab_separated_and_whole(capsys):
    show.table(("A", "B"), [("x" * 200, "two\nlines\tand more")])
    assert capsys.readouterr().out == f"A\tB\n{'x' * 200}\ttwo lines and more\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (119, "119 s"), (600, "10 min"), (90_000, "25 h"), (-3, "0 s")]
)
def test_spans(seconds, text):
    assert show.span(seconds) == text


def test_output_of_several_nodes_is_printed_by_whole_lines(capfdbinary):
    printer = Printer(as_json=False)
    for label, data in (("a", b"one\ntw"), ("b", b"x\n"), ("a", b"o\nend"), ("", b"raw")):
        printer.write(Output(stream="stdout", offset=0, data=data, label=label))
    printer.finish()
    assert capfdbinary.readouterr().out == b"a | one\nb | x\na | two\nrawa | end\n"


def test_rows():
    attempt = Attempt(number=1, node="id", node_name="attic", state="failed", signal=9)
    task = Task(id="t", name="n", state="failed", created_at=show.datetime.now(show.UTC), attempts=(attempt,))
    assert row_of(task)[2:6] == ("failed", "attic", "signal 9", "0 s ago")
    good = Ranked(
        node="id", node_name="attic", driver="native", score=Score(value=3.14159, reasons=("idle", "near"))
    )
    bad = Ranked(node="id2", refusal="no slots")
    assert ranking_rows((good, bad)) == [
        ("attic", "native", "3.14", "idle, near"),
        ("id2", "-", "-", "no slots"),
    ]


def test_a_row_of_the_audit_trail():
    at = datetime(2026, 11, 28, 14, 0, tzinfo=UTC)
    record = AuditRecord(id="x", at=at, node="n", action="cancel", subject="t", token="ann", role="admin")
    when = at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    assert audit_row(record) == (when, "n", "cancel", "t", "ann", "admin", "-", "")
    record = AuditRecord(
        id="x",
        at=at,
        node="n",
        node_name="attic",
        action="refused-login",
        count=7,
        address="192.0.2.1",
        via="m",
        via_name="barn",
        detail="why",
    )
    assert audit_row(record)[1:] == ("attic", "refused-login x7", "-", "-", "-", "192.0.2.1 via barn", "why")


def test_moments():
    def moment(text):
        return Moment().convert(text, None, None)

    assert moment("2026-11-28T14:00Z") == datetime(2026, 11, 28, 14, 0, tzinfo=UTC)
    assert moment("2026-11-28").tzinfo is not None
    assert timedelta(hours=1.9) < datetime.now(UTC) - moment("2h") < timedelta(hours=2.1)
    for text in ("yesterday", "", "-1h", "99999999999d"):
        with pytest.raises(click.BadParameter):
            moment(text)


def test_status_says_what_needs_a_look():
    assert WARN_DAYS == SHOWN_WARN_DAYS
    fine = Node(id="1", name="a", state="alive", cert_days=WARN_DAYS + 1, version="1")
    assert problems_of([fine]) == []
    assert problems_of([fine, Node(id="2", name="b", state="left", version="0", cert_days=-3)]) == []
    found = problems_of(
        [fine, Node(id="2", name="b", state="suspect", reason="silent", cert_days=3, version="2")]
    )
    assert [line.split(":")[0] for line in found] == ["b", "b", "nodes run different versions"]
    now = show.datetime.now(show.UTC)
    assert waiting_of([Task(id="t", name="n", state="waiting", reason="no node fits", created_at=now)]) == [
        "n (t): no node fits"
    ]


# node --print-config and doctor


def test_print_config_shows_where_each_value_came_from(tmp_path, capsys, monkeypatch):
    path = tmp_path / "node.toml"
    path.write_text('[node]\nname = "attic"\n')
    monkeypatch.setenv("EDGEORCH_API_PORT", "4000")
    assert cli.main(["node", "--config", str(path), "--print-config"]) == 0
    lines = dict(line.split("\t", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["node.name"] == f'"attic"\t{path}'
    assert lines["api.port"] == "4000\t$EDGEORCH_API_PORT"
    assert lines["api.keep_alive_s"] == "75.0\tdefault"
    assert cli.main(["node", "--config", str(path), "--print-config", "--json"]) == 0
    assert {"key": "api.port", "value": 4000, "from": "$EDGEORCH_API_PORT", "reload": False} in json.loads(
        capsys.readouterr().out
    )


def test_a_bad_configuration_is_one_sentence_and_78(tmp_path, capsys):
    path = tmp_path / "node.toml"
    path.write_text('[node]\nnmae = "attic"\n')
    assert cli.main(["node", "--config", str(path)]) == 78
    assert (
        capsys.readouterr().err
        == f"edgeorch: {path}: unknown key in [node]: 'nmae'\n  did you mean 'name'?\n"
    )
    assert cli.main(["doctor", "--config", str(path)]) == 1


@pytest.fixture
def node_folder(tmp_path):
    """The folder of a node with good certificates and free ports."""
    authority = Authority.create(tmp_path / "ca", "home", wall=time.time)
    authority.issue("attic", ["127.0.0.1"]).write(tmp_path)
    (tmp_path / "edgeorch.toml").write_text(
        f"""
        [node]
        state_dir = "{tmp_path}/state"
        run_dir = "{tmp_path}/run"
        listen = ["127.0.0.1"]
        [api]
        port = 0
        [wire]
        port = 0
        [executor]
        drivers = ["native"]
        """
    )
    return tmp_path


def findings(folder, capsys):
    code = cli.main(["doctor", "--json", "--config", str(folder / "edgeorch.toml")])
    return code, {row["check"]: row for row in json.loads(capsys.readouterr().out)}


def test_doctor_finds_nothing_wrong_with_a_good_node(node_folder, capsys):
    code, found = findings(node_folder, capsys)
    assert [name for name, row in found.items() if row["state"] == "failed"] == []
    assert code == 0
    assert "attic" in found["certificate"]["detail"]
    assert found["node"]["state"] == "warning", "nothing answers on port 0"
    assert all(row["fix"] for row in found.values() if row["state"] != "ok")
    assert len(found) > len(CHECKS)


def test_doctor_names_what_is_broken_and_the_cure(node_folder, capsys):
    (node_folder / "pki" / "node.key").chmod(0o644)
    config = node_folder / "edgeorch.toml"
    config.write_text(config.read_text() + f'[runner]\nsocket = "{node_folder}/none.sock"\n')
    code, found = findings(node_folder, capsys)
    assert code == 1
    assert found["key file"]["fix"].startswith("chmod u=rw,g=r,o= ")
    assert found["runner"]["state"] == "failed"
    (node_folder / "pki" / "node.pem").unlink()
    code, found = findings(node_folder, capsys)
    assert "keys issue" in found["certificate"]["fix"]


def test_doctor_looks_at_the_policy(node_folder, capsys):
    assert findings(node_folder, capsys)[1]["policy"]["state"] == "ok"
    config = node_folder / "edgeorch.toml"
    known = config.read_text()
    config.write_text(known + "[policy]\nprivileged = true\n")
    code, found = findings(node_folder, capsys)
    assert (code, found["policy"]["state"]) == (0, "warning")
    assert "whoever may submit is root on" in found["policy"]["detail"]
    config.write_text(known + '[policy]\nimages = ["sha256:abc"]\n')
    code, found = findings(node_folder, capsys)
    assert (code, found["policy"]["state"]) == (1, "failed")
    assert found["policy"]["detail"].startswith("policy.images: 'sha256:abc' is not a digest")


def test_doctor_looks_at_clock_disk_and_certificate(node_folder, capsys, monkeypatch):
    monkeypatch.setattr(checks, "clock_synchronised", lambda: False)
    monkeypatch.setattr(checks, "why_volatile", lambda folder: f"{folder} is in memory (tmpfs)")
    (node_folder / "pki" / "node.key").chmod(0o640)
    two_months_ago = time.time() - 340 * 86_400
    Authority.create(node_folder / "old", "home", wall=lambda: two_months_ago).issue(
        "attic", ["127.0.0.1"]
    ).write(node_folder)
    code, found = findings(node_folder, capsys)
    assert code == 0
    assert found["clock"]["state"] == found["state"]["state"] == found["certificate"]["state"] == "warning"
    assert found["clock"]["detail"].endswith("not synchronised")
    assert found["state"]["fix"].endswith("node.volatile = true")
    assert "rotate-keys" in found["certificate"]["fix"]

    config = node_folder / "edgeorch.toml"
    config.write_text(config.read_text().replace("[node]", "[node]\nvolatile = true"))
    monkeypatch.setattr(checks, "clock_synchronised", lambda: None)
    code, found = findings(node_folder, capsys)
    assert (found["clock"]["state"], "state" in found) == ("ok", False)


def test_doctor_tells_a_taken_port(node_folder, capsys):
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        config = node_folder / "edgeorch.toml"
        text = config.read_text().replace(
            "[wire]\n        port = 0", f"[wire]\n        port = {other.getsockname()[1]}"
        )
        config.write_text(text)
        code, found = findings(node_folder, capsys)
    assert code == 1
    assert "in use by another program" in found["node port"]["detail"]
