"""Fleet hosts: real Debian machines on one LAN, each a container with systemd, SSH and sudo; no internet.

``Hosts`` boots them and breaks them. By hand::

    python tests/fleet/hosts.py up --prefix my --subnet 10.98.200.0/24 --count 3 [--docker]
    python tests/fleet/hosts.py add --prefix my [--docker]
    python tests/fleet/hosts.py down --prefix my
"""

import argparse
import dataclasses
import ipaddress
import json
import secrets
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from host_image import USER, host_image

BOOT_S = 60
COMMAND_S = 120
_LABEL = "edgeorch.test-hosts"
_FIRST_ADDRESS = 11
_MAC = "02:42:00:00:00:01"
# Enough for systemd as PID 1 and for a Docker Engine inside, and short of --privileged, which not every
# machine can give.
_AS_MACHINE = (
    *("--stop-signal", "RTMIN+3", "--cgroupns", "host", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw"),
    *("--tmpfs", "/run:exec", "--tmpfs", "/tmp:exec"),
    # State lies on a disk, as on a machine, and not on an overlay; the Engine inside wants that too.
    *("--volume", "/var/lib"),
    *("--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN", "--cap-add", "SYS_PTRACE"),
    *("--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"),
)
# A boot that left a failed unit is a broken test bed and is told at once.
_BOOTED = """\
until state=$(systemctl is-system-running --wait 2>/dev/null) || [ "$state" = degraded ]; do sleep 0.1; done
[ "$state" = running ] || { systemctl --failed --plain --no-legend >&2; exit 1; }
cat /etc/ssh/ssh_host_ed25519_key.pub
"""
_START_ENGINE = (
    "systemctl -q unmask --now docker.service docker.socket containerd.service && systemctl start docker"
)


@dataclasses.dataclass
class Host:
    """One machine: its name in the inventory (and hostname), its container and its present address."""

    name: str
    container: str
    address: str
    host_key: str = ""


class Hosts:
    """The machines of one test run: a network and a folder with their key, inventory and known hosts.

    ``with Hosts() as hosts: hosts.add(3)``; leaving it removes all.
    """

    def __init__(self, prefix=None, subnet=None, folder=None):
        self.prefix = prefix or f"eo{secrets.token_hex(3)}"
        self.folder = Path(folder or Path(tempfile.gettempdir(), f"edgeorch-hosts-{self.prefix}"))
        self.by_name = {}
        self.subnet = ipaddress.ip_network(subnet) if subnet else None

    def __enter__(self):
        host_image()
        self.remove()
        self.folder.mkdir(parents=True)
        self.folder.chmod(0o700)
        try:
            self._make_network()
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(self.key))
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_):
        self.remove()

    @classmethod
    def found(cls, prefix):
        """The machines that an earlier process made and left."""
        hosts = cls(prefix)
        (network,) = json.loads(_run("docker", "network", "inspect", prefix))
        hosts.subnet = ipaddress.ip_network(network["IPAM"]["Config"][0]["Subnet"])
        for container in _ids("container", prefix):
            (seen,) = json.loads(_run("docker", "inspect", container))
            name = seen["Config"]["Hostname"]
            address = seen["NetworkSettings"]["Networks"].get(prefix, {}).get("IPAddress", "")
            hosts.by_name[name] = Host(name, seen["Name"].lstrip("/"), address)
        for line in hosts.known_hosts.read_text().splitlines():
            alias, key = line.split(" ", 1)
            hosts.by_name[alias].host_key = key
        return hosts

    @property
    def key(self):
        """The private SSH key that opens each host."""
        return self.folder / "id_ed25519"

    @property
    def known_hosts(self):
        return self.folder / "known_hosts"

    @property
    def inventory(self):
        """The inventory file of all hosts; written anew as they come and move."""
        return self.folder / "hosts.yml"

    @property
    def own_address(self):
        """This machine's address on the LAN of the hosts."""
        return str(self.subnet[1])

    def __getitem__(self, name):
        return self.by_name[name]

    def add(self, count=1, *, docker=False):
        """Boot so many more hosts, named n1, n2 and so on; return them when SSH answers."""
        taken = {host.address for host in self.by_name.values()}
        names = (f"n{number}" for number in range(1, 200))
        free = (str(address) for address in list(self.subnet)[_FIRST_ADDRESS:-2])
        made = []
        while len(made) < count:
            name, address = next(names), next(free)
            if name not in self.by_name and address not in taken:
                made.append(Host(name, f"{self.prefix}-{name}", address))
        # In this order, whoever is up first: it is the inventory's, and tells copies from originals.
        self.by_name |= {host.name: host for host in made}
        with ThreadPoolExecutor(count) as threads:
            list(threads.map(lambda host: self._boot(host, docker=docker), made))
        self._write()
        return made

    def run(self, name, *command, stdin=None, check=True, timeout=COMMAND_S):
        """Run argv, or one string as a shell line, as root on a host; works without its network too.

        Returns:
            The finished process: ``returncode``, ``stdout`` and ``stderr`` as text.
        """
        argv = command if len(command) > 1 else ("/bin/sh", "-c", command[0])
        done = subprocess.run(
            ["docker", "exec", "--interactive", self[name].container, *argv],
            input="" if stdin is None else stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            output = (done.stdout + done.stderr).strip()
            raise AssertionError(f"{name}: {shlex.join(command)} ended with {done.returncode}: {output}")
        return done

    def ssh(self, name, command, *, check=True):
        """Run a shell line over SSH as the user that Ansible is."""
        host = self[name]
        argv = [
            "ssh",
            "-i",
            str(self.key),
            *shlex.split(self._ssh_args(host)),
            f"{USER}@{host.address}",
            command,
        ]
        return subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_S, check=check)

    def copy(self, name, source, target):
        """Copy a file or folder of this machine to a host, owned by root (not below /run or /tmp)."""
        _run("docker", "cp", str(source), f"{self[name].container}:{target}")

    def fetch(self, name, source, archive):
        """Pack a folder of a host into a tar archive on this machine."""
        with Path(archive).open("wb") as target:
            folder, _, last = source.rpartition("/")
            pack = ["docker", "exec", self[name].container, "tar", "-C", folder, "-c", last]
            subprocess.run(pack, stdout=target, check=True, timeout=COMMAND_S)

    def unpack(self, name, archive, folder):
        """Unpack such an archive below a folder of a host, with owners and modes."""
        with Path(archive).open("rb") as source:
            unpack = ["docker", "exec", "--interactive", self[name].container, "tar", "-C", folder, "-xp"]
            subprocess.run(unpack, stdin=source, check=True, timeout=COMMAND_S)

    def load_image(self, name, image):
        """Bring an image of this machine's Engine into the Engine of a host."""
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saved:
            load = ["docker", "exec", "--interactive", self[name].container, "docker", "load"]
            subprocess.run(load, stdin=saved.stdout, check=True, timeout=COMMAND_S, capture_output=True)

    def stop(self, *names):
        """Shut hosts down in order; their disks stay."""
        _run("docker", "stop", *(self[name].container for name in names))

    def kill(self, *names):
        """Cut the power of hosts."""
        _run("docker", "kill", *(self[name].container for name in names))

    def start(self, *names):
        """Switch hosts on again; return when they have booted."""
        _run("docker", "start", *(self[name].container for name in names))
        for name in names:
            self._booted(self[name])

    def pause(self, *names):
        """Freeze every process of hosts; their kernel still takes TCP connections."""
        _run("docker", "pause", *(self[name].container for name in names))

    def resume(self, *names):
        _run("docker", "unpause", *(self[name].container for name in names))

    def disconnect(self, name):
        """Pull the cable: the interface is gone without a reset; ``run`` still works."""
        _run("docker", "network", "disconnect", self.prefix, self[name].container)

    def connect(self, name, address=None):
        """Plug the cable in again: the interface has another name, and the given address."""
        host = self[name]
        _try("docker", "network", "disconnect", self.prefix, host.container)
        host.address = address or host.address
        _run("docker", "network", "connect", "--ip", host.address, self.prefix, host.container)
        self._write()

    def write_inventory(self, path, names=None, **variables):
        """Write an inventory of some hosts; ``variables`` go to the group ``edgeorch``."""
        hosts = {name: self._host_variables(self[name]) for name in names or self.by_name}
        shared = {
            "ansible_user": USER,
            "ansible_ssh_private_key_file": str(self.key),
            "edgeorch_fleet": "home",
            "edgeorch_offline": True,
        }
        text = yaml.safe_dump({"edgeorch": {"hosts": hosts, "vars": shared | variables}}, sort_keys=False)
        Path(path).write_text(text)
        return Path(path)

    def remove(self):
        """Remove all that carries this prefix, also of an earlier run that was cut off."""
        containers = _ids("container", self.prefix)
        with ThreadPoolExecutor(max(1, len(containers))) as threads:
            # A paused container cannot be removed by force with every Engine; kill takes it.
            list(threads.map(lambda one: _run("docker", "rm", "--force", "--volumes", one), containers))
        for network in _ids("network", self.prefix):
            _run("docker", "network", "rm", network)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.by_name.clear()

    def _make_network(self):
        for number in [0] if self.subnet else range(128, 250):
            subnet = self.subnet or ipaddress.ip_network(f"10.98.{number}.0/24")
            # The way out leads to an address that nobody has. An --internal network drops multicast.
            made = _try(
                *("docker", "network", "create", "--subnet", str(subnet), "--gateway", str(subnet[-2])),
                *("--opt", "com.docker.network.bridge.inhibit_ipv4=true"),
                *("--label", f"{_LABEL}={self.prefix}", self.prefix),
            )
            if made.returncode == 0:
                self.subnet = subnet
                bridge = f"br-{made.stdout[:12]}"
                # A given hardware address stays; else it follows that of whoever is plugged in.
                _run("ip", "link", "set", "dev", bridge, "address", _MAC)
                _run("ip", "address", "add", f"{self.own_address}/{subnet.prefixlen}", "dev", bridge)
                return
        raise AssertionError(f"no network for test hosts: {made.stderr}")

    def _boot(self, host, *, docker):
        public = f"{self.key}.pub:/etc/ssh/authorized_keys:ro"
        _run(
            *("docker", "run", "--detach", "--name", host.container, "--hostname", host.name),
            *("--label", f"{_LABEL}={self.prefix}", "--network", self.prefix, "--ip", host.address),
            *_AS_MACHINE,
            *("--volume", public, host_image(), "/sbin/init"),
        )
        self._booted(host)
        if docker:
            self.run(host.name, _START_ENGINE)

    def _booted(self, host):
        host.host_key = self.run(host.name, _BOOTED, timeout=BOOT_S).stdout.strip()

    def _write(self):
        self.known_hosts.write_text("".join(f"{h.name} {h.host_key}\n" for h in self.by_name.values()))
        self.write_inventory(self.inventory)

    def _host_variables(self, host):
        return {"ansible_host": host.address, "ansible_ssh_common_args": self._ssh_args(host)}

    def _ssh_args(self, host):
        # The key is looked up by name, so that a host which comes back with another address stays known.
        options = {"UserKnownHostsFile": self.known_hosts, "GlobalKnownHostsFile": "/dev/null"}
        options |= {"HostKeyAlias": host.name, "IdentitiesOnly": "yes", "ConnectTimeout": 10}
        return " ".join(f"-o {name}={value}" for name, value in options.items())


def _run(*argv):
    done = _try(*argv)
    if done.returncode != 0:
        raise AssertionError(f"{shlex.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def _try(*argv):
    return subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_S, check=False)


def _ids(kind, prefix):
    everything = ("--all",) if kind == "container" else ()
    return _run("docker", kind, "ls", *everything, "--quiet", "--filter", f"label={_LABEL}={prefix}").split()


def main():
    parser = argparse.ArgumentParser(description="Boot real test hosts, add one, or remove them.")
    parser.add_argument("what", choices=["up", "add", "down"])
    parser.add_argument("--prefix", required=True, help="names the network and begins each container's name")
    parser.add_argument("--subnet", help="such as 10.98.200.0/24; a free one by default")
    parser.add_argument("--count", type=int, default=0, help="how many hosts; 3, or 1 more for add")
    parser.add_argument("--docker", action="store_true", help="start the Docker Engine of each new host")
    chosen = parser.parse_args()
    if chosen.what == "down":
        Hosts(chosen.prefix).remove()
        return
    up = chosen.what == "up"
    hosts = Hosts(chosen.prefix, chosen.subnet).__enter__() if up else Hosts.found(chosen.prefix)
    hosts.add(chosen.count or (3 if up else 1), docker=chosen.docker)
    print(f"# {hosts.inventory}\n{hosts.inventory.read_text()}", end="")


if __name__ == "__main__":
    main()
