"""The modules, the inventory plugin and run.yml by real Ansible, against a real fleet on loopback."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from real_fleet import RealFleet

PLAYBOOKS = Path(__file__).parents[2] / "playbooks"
BIN = Path(sys.executable).parent
DEAD = "http://127.0.0.1:9"

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not (BIN / "ansible-playbook").exists(), reason="no ansible-playbook: pip install -e '.[dev]'"
    ),
]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    made = RealFleet(tmp_path_factory.mktemp("fleet"), "kitchen", "garage")
    made.nodes["kitchen"].start('[node.labels]\nzone="kitchen"\n')
    made.nodes["garage"].start()
    made.wait_seen(made.nodes["kitchen"], "garage")
    made.wait_seen(made.nodes["garage"], "kitchen")
    yield made
    made.close()


class Ansible:
    """Runs Ansible's commands in a folder of their own, as a user with a home of their own."""

    def __init__(self, folder, fleet):
        self.folder, self.fleet = folder, fleet
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "ANSIBLE_CONFIG": str(PLAYBOOKS / "ansible.cfg"),
        }

    def url(self, name="kitchen"):
        node = self.fleet.nodes[name]
        return f"http://{node.host}:{self.fleet.api}"

    def command(self, program, *arguments, **env):
        argv = [str(BIN / program), *map(str, arguments)]
        return subprocess.run(
            argv,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.env | env,
            timeout=200,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def modules(self, *calls, check=False):
        """What each task, (module, arguments), gives; in one play, as Ansible takes its time to start."""
        tasks = []
        for number, (name, arguments) in enumerate(calls):
            given = f"given_{number}"
            keep = {"content": f"{{{{ {given} | to_json }}}}", "dest": f"{self.folder}/{given}"}
            wish = {name: {"url": [self.url()], **arguments}, "register": given, "ignore_errors": True}
            tasks += [wish, {"ansible.builtin.copy": keep, "check_mode": False}]
        play = [{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}]
        (self.folder / "play.yml").write_text(json.dumps(play))
        done = self.command("ansible-playbook", *["--check"] * check, "play.yml")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SECRET" not in done.stdout + done.stderr
        return [json.loads((self.folder / f"given_{number}").read_text()) for number in range(len(calls))]

    def tasks(self, *wishes, check=False):
        return self.modules(*(("edgeorch_task", wish) for wish in wishes), check=check)


@pytest.fixture
def ansible(tmp_path, fleet):
    return Ansible(tmp_path, fleet)


def test_a_task_gives_its_output_and_exit_code_and_fails_where_it_fails(ansible):
    speak = ["sh", "-c", "echo $WHO; echo oops >&2"]
    good, bad, everywhere = ansible.tasks(
        {"name": "hello", "argv": speak, "env": {"WHO": 5}, "node": "garage"},
        {"name": "bad", "argv": ["sh", "-c", "echo broken >&2; exit 3"]},
        {"name": "all", "argv": ["echo", "here"], "mode": "all"},
    )
    assert good["changed"]
    assert (good["state"], good["exit_code"], good["node"]) == ("succeeded", 0, "garage")
    assert (good["stdout"], good["stderr_lines"]) == ("5\n", ["oops"])
    assert good["task"]["id"] == good["id"]
    assert bad["failed"]
    assert (bad["state"], bad["exit_code"], bad["stderr"]) == ("failed", 3, "broken\n")
    assert bad["msg"].startswith("the task bad has failed on ")
    assert "exited with code 3" in bad["msg"]
    assert bad["msg"].endswith("\nbroken")
    assert sorted(everywhere["stdout_lines"]) == ["garage | here", "kitchen | here"]


def test_secrets_reach_the_service_and_no_log(ansible, fleet):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        garage = fleet.nodes["garage"]
        garage.stop()
        run_dir, garage.run_dir = garage.run_dir, Path(memory)
        garage.start()
        fleet.wait_seen(fleet.nodes["kitchen"], "garage")
        wish = {
            "name": "s",
            "argv": ["sha256sum", "secrets/a"],
            "secrets": {"a": "a SECRET of 5"},
            "key": "s",
        }
        first, again, wrong = ansible.tasks(
            wish | {"node": "garage"}, wish | {"node": "garage"}, wish | {"spec": {"secrets": {"a": "b"}}}
        )
        garage.stop()
        garage.run_dir = run_dir
        garage.start()
    assert first["stdout"].split()[0] == hashlib.sha256(b"a SECRET of 5").hexdigest()
    assert first["task"]["spec"]["secrets"] == {"a": None}
    assert (again["changed"], again["id"]) == (False, first["id"])
    assert "give the secrets as" in wrong["msg"]
    assert "a SECRET of 5" not in json.dumps([first, again, wrong])


def test_a_key_makes_it_once_at_any_node(ansible):
    wish = {"name": "once", "argv": ["true"], "key": "a"}
    at_garage = wish | {"url": [ansible.url("garage")]}
    first, second, other, refused = ansible.tasks(
        wish, at_garage, wish | {"key": "b"}, wish | {"argv": ["false"]}
    )
    assert first["changed"]
    assert (second["changed"], second["id"]) == (False, first["id"])
    assert other["changed"]
    assert f"the key a belongs to the task {first['id']}" in refused["msg"]
    (checked,) = ansible.tasks(wish, check=True)
    assert (checked["changed"], checked["id"]) == (False, first["id"])


def test_a_failed_task_with_a_key_is_run_again(ansible, tmp_path):
    there = tmp_path / "there"
    wish = {"name": "again", "argv": ["test", "-e", str(there)], "key": "a", "node": "kitchen"}
    touch = {"name": "touch", "argv": ["touch", str(there)], "node": "kitchen"}
    failed, _, again, unchanged = ansible.tasks(wish, touch, wish, wish)
    assert failed["failed"]
    assert (again["changed"], again["state"]) == (True, "succeeded")
    assert (unchanged["changed"], unchanged["id"]) == (False, again["id"])


def test_a_service_that_stays_is_started_once_and_not_waited_for(ansible, fleet):
    wish = {"name": "stays", "argv": ["sleep", "1000"], "key": "a", "wait": False}
    first, second, late = ansible.tasks(wish, wish, wish | {"wait": True, "wait_s": 1})
    fleet.nodes["kitchen"].request("DELETE", f"/api/v1/tasks/{first['id']}")
    assert (first["changed"], second["changed"], second["id"]) == (True, False, first["id"])
    assert "has not ended within 1 s" in late["msg"]


def test_check_mode_submits_nothing_and_says_who_would_run_it(ansible, fleet):
    wish = {"name": "checked", "argv": ["true"], "constraints": ["labels.zone == kitchen"]}
    given, none = ansible.tasks(wish, wish | {"constraints": ["arch == vax"]}, check=True)
    assert (given["changed"], given["id"]) == (True, "")
    refused = {each["node_name"]: bool(each["refusal"]) for each in given["ranking"]}
    assert refused == {"kitchen": False, "garage": True}
    assert none["msg"].startswith("no node could run checked now: ")
    assert fleet.nodes["kitchen"].get("/api/v1/tasks?name=checked")["tasks"] == []


def test_what_cannot_be_asked_for_is_one_sentence(ansible):
    wish = {"name": "odd", "argv": ["true"]}
    misspelt, size = ansible.tasks(wish | {"spec": {"prioritty": 5}}, wish | {"memory": "much"})
    for given, word in ((misspelt, "prioritty"), (size, "much")):
        assert given["failed"]
        assert word in given["msg"]
        assert "\n" not in given["msg"]


def test_nodes_are_told_by_the_first_one_that_lives(ansible):
    everyone, one, nobody, living, dead = ansible.modules(
        *(
            ("edgeorch_node_info", wish)
            for wish in (
                {},
                {"name": "kitchen"},
                {"name": "attic"},
                {"url": [DEAD, ansible.url("garage")]},
                {"url": [DEAD, "http://127.0.0.1:10"]},
            )
        ),
        check=True,
    )
    assert not everyone["changed"]
    assert [node["name"] for node in everyone["nodes"]] == ["garage", "kitchen"]
    assert [(node["state"], node["labels"]) for node in one["nodes"]] == [("alive", {"zone": "kitchen"})]
    assert "attic" in nobody["msg"]
    assert living["url"] == ansible.url("garage")
    assert dead["msg"].startswith("no node answers: ")


def test_a_node_that_cannot_be_asked_is_one_sentence(ansible, fleet):
    tls = f"https://{fleet.nodes['kitchen'].host}:{fleet.api}"
    words = {
        DEAD: "cannot be reached",
        "http://192.0.2.1": "plain http works on the node itself only",
        "https://a/b": "is not a node's address",
        tls: "its certificate is not of this fleet",
    }
    found = ansible.modules(*(("edgeorch_node_info", {"url": [url], "token": "SECRET"}) for url in words))
    for given, word in zip(found, words.values(), strict=True):
        assert given["failed"]
        assert word in given["msg"]
        assert "\n" not in given["msg"]


def test_node_token_and_ca_come_from_the_users_file(ansible, fleet):
    folder = ansible.folder / ".config/edgeorch"
    folder.mkdir(parents=True)
    (folder / "ca.pem").write_bytes((fleet.folder / "ca/ca.pem").read_bytes())
    url = f"https://{fleet.nodes['kitchen'].host}:{fleet.api}"
    (folder / "config.toml").write_text(f'url = "{url}"\ntoken = "SECRET"\nca = "ca.pem"\n')
    (given,) = ansible.modules(("edgeorch_node_info", {"url": []}))
    # TLS was good, the token was sent, and the node does not know it.
    assert "token" in given["msg"]
    (folder / "config.toml").write_text("tokn = 1\n")
    (given,) = ansible.modules(("edgeorch_node_info", {"url": []}))
    assert "'tokn' is not known here" in given["msg"]


def inventory(ansible, text="", url=None):
    path = ansible.folder / "edgeorch.yml"
    path.write_text(f"plugin: edgeorch\nurl: {json.dumps(url or [ansible.url()])}\n{text}")
    return ansible.command("ansible-inventory", "-i", path, "--list")


def test_the_inventory_has_the_nodes_in_their_groups(ansible, fleet):
    done = inventory(
        ansible, "compose: {ansible_user: \"'pi'\"}\ngroups: {small: edgeorch_node_cpus < 10000}\n"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    hosts = found["_meta"]["hostvars"]
    assert hosts.keys() == {"kitchen", "garage"}
    kitchen = hosts["kitchen"]
    assert kitchen["ansible_host"] == fleet.nodes["kitchen"].host
    # What Ansible composes it marks as no template itself.
    assert kitchen["ansible_user"] in ("pi", {"__ansible_unsafe": "pi"})
    assert kitchen["edgeorch_node_version"]
    assert kitchen["edgeorch_node_cert_days"] > 300
    assert kitchen["edgeorch_node_score"] > 0
    assert found["label_zone_kitchen"]["hosts"] == ["kitchen"]
    arch = kitchen["edgeorch_node_arch"]
    for group in ("edgeorch", "state_alive", "driver_native", f"arch_{arch}", "small"):
        assert sorted(found[group]["hosts"]) == ["garage", "kitchen"]


def test_the_inventory_asks_any_living_node_and_takes_the_states_that_are_wished_for(ansible):
    done = inventory(ansible, "states: [dead]\n", url=[DEAD, ansible.url("garage")])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["_meta"]["hostvars"] == {}


def test_an_inventory_without_a_living_node_says_so(ansible):
    done = inventory(ansible, url=[DEAD])
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_inventory_is_found_beside_a_playbook_without_our_settings(ansible):
    inventory(ansible)
    run = json.dumps({"edgeorch_run": {"name": "hi", "argv": ["true"]}, "edgeorch_url": [ansible.url()]})
    argv = ("-i", ansible.folder / "edgeorch.yml", PLAYBOOKS / "run.yml", "-e", run)
    (ansible.folder / "empty.cfg").touch()
    done = ansible.command("ansible-playbook", *argv, ANSIBLE_CONFIG=str(ansible.folder / "empty.cfg"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Unable to parse" not in done.stderr


def play(ansible, **run):
    argv = ("-e", json.dumps({"edgeorch_run": run, "edgeorch_url": [ansible.url()]}), PLAYBOOKS / "run.yml")
    return ansible.command("ansible-playbook", *argv)


def test_run_shows_what_the_service_wrote(ansible):
    done = play(ansible, name="hello", argv=["echo", "to you"], node="garage", memory="64M", timeout_s=20)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded on garage" in done.stdout
    assert "to you" in done.stdout


def test_run_fails_if_the_service_fails_and_shows_why(ansible):
    done = play(ansible, name="bad", argv=["sh", "-c", "echo broken; exit 3"])
    assert done.returncode == 2
    assert "the task bad has failed on" in done.stdout
    assert "broken" in done.stdout


def test_run_says_what_is_missing(ansible):
    done = play(ansible, name="nothing")
    assert done.returncode == 2
    assert "one of the following is required: argv, image, service" in done.stdout


def test_the_modules_are_documented(ansible):
    names = ("edgeorch_task", "edgeorch_node_info")
    done = ansible.command("ansible-doc", "-M", PLAYBOOKS / "library", "--json", *names)
    assert done.returncode == 0, done.stderr
    for said in json.loads(done.stdout).values():
        assert said["doc"]["options"]
        assert said["examples"]
        assert said["return"]


def test_the_inventory_plugin_is_documented(ansible):
    done = ansible.command("ansible-doc", "-t", "inventory", "--json", "edgeorch")
    assert done.returncode == 0, done.stderr
    assert {"url", "token", "ca", "states", "keyed_groups", "cache"} <= json.loads(done.stdout)["edgeorch"][
        "doc"
    ]["options"].keys()
