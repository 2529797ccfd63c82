"""What a container may have of its host, by the facts that its options show."""

from collections.abc import Iterator, Sequence

from edgeorch import config
from edgeorch.model import ContainerFacts
from edgeorch.policy.images import Images
from edgeorch.policy.paths import HostPaths
from edgeorch.policy.patterns import Glob, covers
from edgeorch.policy.refuse import Refuse

GPUS = "gpus"
SYSTEM = "/etc"
DISKS_AND_MEMORY = ("/dev/sda", "/dev/nvme0n1", "/dev/mmcblk0", "/dev/vda", "/dev/dm-0", "/dev/mem")
ROOT_CAPABILITIES = frozenset(
    {"ALL", "SYS_ADMIN", "SYS_MODULE", "SYS_RAWIO", "SYS_PTRACE", "DAC_READ_SEARCH", "BPF"}
)
"""With one of these root in a container has ways to the host."""


class ContainerRules:
    """The rules for containers of one node.

    Args:
        settings: the ``[policy]`` section.
        images: its images.
        paths: its host paths.
        refuse: makes a refusal.
    """

    def __init__(self, settings: config.Policy, images: Images, paths: HostPaths, refuse: Refuse) -> None:
        self._settings = settings
        self._images = images
        self._paths = paths
        self._refuse = refuse
        self._capabilities = {_capability(name) for name in settings.capabilities}

    def check(self, image: str, facts: ContainerFacts) -> None:
        """Refuse a container that may not run here.

        Raises:
            PolicyError: the first rule that it breaks.
        """
        if why := self._images.refusal(image):
            raise self._refuse("policy.images", f"policy.images {why}", "add it")
        if not self._settings.privileged:
            for key, detail in self._beyond(facts):
                what = "leave it out, or set policy.privileged = true"
                if key != "policy.privileged":
                    what = f"add it to {key}"
                raise self._refuse(key, detail, what)
        for path in facts.binds:
            if not self._paths.allow(path):
                raise self._refuse("policy.host_paths", f"policy.host_paths does not list {path}", "add it")
        if facts.option_files and not self._settings.option_files:
            raise self._refuse(
                "policy.option_files",
                f"policy.option_files is off, and an option reads the node's file {facts.option_files[0]}",
                "pass the values themselves, or set policy.option_files = true",
            )

    def warnings(self) -> Iterator[str]:
        """What of the settings is worth root, without its consequence."""
        for path in self._settings.host_paths:
            if self._paths.covers(path, SYSTEM):
                yield f"policy.host_paths lists {path}, which holds the system's own files"
        for name in sorted(self._capabilities & ROOT_CAPABILITIES):
            yield f"policy.capabilities lists {name}"
        for entry in self._settings.devices:
            if any(covers(entry, device) for device in DISKS_AND_MEMORY):
                yield f"policy.devices lists {entry}, which holds disks or the machine's memory"
        if self._settings.privileged:
            yield "policy.privileged is on"

    def _beyond(self, facts: ContainerFacts) -> Iterator[tuple[str, str]]:
        """(key, sentence) of all that reaches beyond the container and is not listed."""
        for name in facts.capabilities:
            if not {_capability(name), "ALL"} & self._capabilities:
                yield "policy.capabilities", f"policy.capabilities does not list the capability {name}"
        for text in facts.devices:
            if not self._allows_device(text):
                yield "policy.devices", f"policy.devices does not list the device {text}"
        yield from _unlisted("volume", facts.volumes, self._settings.volumes)
        yield from _unlisted("network", facts.networks, self._settings.networks)
        for text in facts.namespaces:
            kind, mode = _namespace(text)
            if mode == "host" and kind not in self._settings.namespaces:
                yield "policy.namespaces", f"policy.namespaces does not list {kind}, for {text}"
        for asked in self._privileged(facts):
            yield "policy.privileged", f"policy.privileged is off, and the container asks for {asked}"

    def _privileged(self, facts: ContainerFacts) -> Iterator[str]:
        """What no list opens, in words."""
        if facts.privileged:
            yield "--privileged"
        yield from (text for text in facts.namespaces if _namespace(text)[1] != "host")
        yield from (f"the security option {name}" for name in facts.security_opts)
        yield from facts.other
        for path, socket in self._paths.sockets_behind(facts.binds):
            yield f"{path}, through which it reaches the Docker socket {socket}"

    def _allows_device(self, text: str) -> bool:
        if text.startswith("--gpus "):
            return GPUS in self._settings.devices
        return any(covers(entry, text.partition(":")[0]) for entry in self._settings.devices)


def _unlisted(what: str, names: Sequence[str], listed: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Those of the Engine's volumes or networks that no pattern of the list matches."""
    for name in names:
        if not any(Glob(entry).matches(name) for entry in listed):
            yield f"policy.{what}s", f"policy.{what}s does not list the {what} {name}"


def _namespace(text: str) -> tuple[str, str]:
    """Kind and mode of ``--pid host``."""
    kind, _, mode = text.removeprefix("--").partition(" ")
    return kind, mode


def _capability(name: str) -> str:
    """As the Engine reads it: ``cap_net_admin`` is ``NET_ADMIN``."""
    return name.upper().removeprefix("CAP_")
