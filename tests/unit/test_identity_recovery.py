"""The controller with the CA is lost: its nodes go over to a new one."""

import shutil
import time

import pytest

from edgeorch.errors import ConfigError, ConflictError
from edgeorch.identity.authority import Authority
from edgeorch.identity.folder import NodeFolder
from edgeorch.identity.recovery import recover
from edgeorch.identity.signing import Request


class Fleet:
    """A CA and two nodes; a third was revoked."""

    def __init__(self, folder):
        self.folder = folder
        self.ca = Authority.create(folder / "ca", "home")
        self.nodes = {name: NodeFolder(folder / name) for name in ("kitchen", "garage", "gone")}
        self.round()
        self.ca.revoke("gone")
        del self.nodes["gone"]
        self.round()

    def request(self, name, **how):
        made = NodeFolder(self.folder / name).request(**how)
        return Request(
            name=name,
            node_id=made.node_id,
            public_key=made.public_key,
            certificate=made.certificate,
            crl=made.crl,
        )

    def round(self, **how):
        """One pass of the playbook's keys role."""
        answer = self.ca.sign([self.request(name, **how) for name in self.nodes])
        for name, outcome in answer.nodes.items():
            assert not outcome.error
            self.nodes[name].install(outcome.certificate.encode(), answer.ca.encode(), answer.crl.encode())
        return answer

    def files(self, name):
        pki = self.folder / name / "pki"
        return (pki / "ca.pem").read_text() + (pki / "crl.pem").read_text()

    def lose_and_recover(self):
        shutil.rmtree(self.folder / "ca")
        recover(
            self.folder / "ca", "home", [self.files(n) for n in self.nodes], passphrase=None, wall=time.time
        )
        self.ca = Authority.open(self.folder / "ca")


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


def test_the_fleet_goes_over_to_a_new_ca(fleet):
    old, revoked = fleet.ca.fingerprint, fleet.ca.list_in_force()
    fleet.lose_and_recover()
    rotation = fleet.ca.rotation()
    assert not rotation.begin()
    assert not any(outcome.changed for outcome in fleet.round().nodes.values())
    rotation.reissue()
    assert all(outcome.changed for outcome in fleet.round(rotate=True).nodes.values())
    assert fleet.ca.list_in_force().serials == revoked.serials
    assert fleet.ca.list_in_force().number > revoked.number
    fleet.round()
    rotation.finish(list(fleet.nodes))
    fleet.round()
    assert old not in fleet.ca.fingerprints
    assert Authority.open(fleet.ca.folder).issue("attic").certificate


def test_a_new_node_waits_until_something_can_be_signed(fleet):
    fleet.lose_and_recover()
    assert (
        "is lost (give the other nodes a new one"
        in fleet.ca.sign([fleet.request("attic")]).nodes["attic"].error
    )


def test_a_ca_that_is_there_is_not_replaced(fleet):
    with pytest.raises(ConflictError, match="nothing is lost"):
        recover(fleet.ca.folder, "home", [fleet.files("kitchen")], passphrase=None, wall=time.time)


@pytest.mark.parametrize(
    ("name", "nodes", "said"), [("home", [], "no node has a CA"), ("shop", None, "of the fleet home")]
)
def test_the_nodes_must_be_of_this_fleet(fleet, tmp_path, name, nodes, said):
    nodes = [fleet.files("kitchen")] if nodes is None else nodes
    with pytest.raises(ConfigError, match=said):
        recover(tmp_path / "new", name, nodes, passphrase=None, wall=time.time)
