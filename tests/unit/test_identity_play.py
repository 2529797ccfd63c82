"""What the playbooks need of the CA besides signatures: a look, guards, what a node really has, warnings."""

import time

import pytest

from edgeorch.errors import ConfigError, ConflictError
from edgeorch.identity import issue
from edgeorch.identity.authority import Authority
from edgeorch.identity.folder import NodeFolder
from edgeorch.identity.signing import Request

NOW = time.time()


def authority(folder, fleet="home", at=NOW):
    return Authority.create(folder, fleet, wall=lambda: at)


def request(node, name="kitchen", **more):
    made = node.request(rotate=more.pop("rotate", False))
    return Request(
        name=name,
        node_id=made.node_id,
        public_key=made.public_key,
        certificate=made.certificate,
        crl=made.crl,
        **more,
    )


def install(node, answer, name="kitchen"):
    node.install(answer.nodes[name].certificate.encode(), answer.ca.encode(), answer.crl.encode())


@pytest.fixture
def ca(tmp_path):
    return authority(tmp_path / "ca")


@pytest.fixture
def node(tmp_path):
    return NodeFolder(tmp_path / "node")


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_look_at_a_bare_node_makes_nothing(node, tmp_path):
    seen = node.look()
    assert (seen.changed, seen.public_key, seen.node_id) == (True, "", "")
    assert not (tmp_path / "node").exists()


def test_a_look_says_what_request_would(ca, node, tmp_path):
    install(node, ca.sign([request(node)]))
    node = NodeFolder(tmp_path / "node")
    assert node.look() == node.request()
    assert node.look(rotate=True).changed


def test_a_check_says_who_would_be_signed_and_writes_nothing(ca, node):
    before = files_below(ca.folder)
    answer = ca.sign([request(node)], check=True)
    assert answer.nodes["kitchen"].changed
    assert files_below(ca.folder) == before
    install(node, ca.sign([request(node)]))
    assert not ca.sign([request(node)], check=True).nodes["kitchen"].changed


def test_a_node_of_another_ca_of_the_fleet_is_left_alone_unless_replaced(ca, node, tmp_path):
    install(node, authority(tmp_path / "other").sign([request(node)]))
    error = ca.sign([request(node)]).nodes["kitchen"].error
    assert "another CA of the fleet home" in error
    assert "edgeorch_home" in error
    assert ca.sign([request(node, replace=True)]).nodes["kitchen"].certificate


def test_a_node_of_another_fleet_is_left_alone(ca, node, tmp_path):
    install(node, authority(tmp_path / "other", fleet="shop").sign([request(node)]))
    assert "fleet shop" in ca.sign([request(node)]).nodes["kitchen"].error


def test_a_name_in_use_says_how_to_replace_the_node(ca, node, tmp_path):
    install(node, ca.sign([request(node)]))
    assert "edgeorch_replace=true" in ca.sign([request(NodeFolder(tmp_path / "anew"))]).nodes["kitchen"].error


def test_the_old_ca_stays_until_the_node_has_shown_its_new_certificate(ca, node):
    install(node, ca.sign([request(node)]))
    rotation = ca.rotation()
    rotation.begin()
    install(node, ca.sign([request(node)]))
    rotation.reissue()
    answer = ca.sign([request(node, rotate=True)])
    with pytest.raises(ConflictError, match="kitchen"):
        rotation.finish()  # signed, and not known to be there
    install(node, answer)
    ca.sign([request(node)])
    with pytest.raises(ConflictError, match="attic"):
        rotation.finish(["kitchen", "attic"])
    rotation.finish(["kitchen"])
    assert len(ca.fingerprints) == 1


def test_an_expired_ca_is_replaced_at_once(tmp_path, node):
    now = [NOW - 3700 * issue.DAY]
    ca = Authority.create(tmp_path / "ca", "home", wall=lambda: now[0])
    install(node, ca.sign([request(node)]))
    now[0] = NOW
    with pytest.raises(ConfigError, match=r"CA expired .*rotate_ca=true"):
        ca.sign([])
    rotation = ca.rotation()
    rotation.begin()
    assert rotation.phase == "reissue"
    install(node, ca.sign([request(node)]))


def test_what_ends_soon_is_told_also_for_a_node_that_is_off(tmp_path, node):
    now = [NOW]
    ca = Authority.create(tmp_path / "ca", "home", wall=lambda: now[0])
    assert ca.sign([request(node)]).warnings == ()
    now[0] += (issue.NODE_DAYS - 31) * issue.DAY
    (said,) = ca.sign([]).warnings
    assert "kitchen ends in 31 days" in said
    now[0] = NOW + (issue.CA_DAYS - 31) * issue.DAY
    assert "rotate_ca=true" in ca.sign([]).warnings[0]


def test_a_list_that_ends_soon_is_signed_afresh(tmp_path):
    now = [NOW]
    ca = Authority.create(tmp_path / "ca", "home", wall=lambda: now[0])
    assert ca.sign([]).crl == ca.sign([]).crl
    first = ca.list_in_force()
    now[0] += (issue.CRL_DAYS - 31) * issue.DAY
    ca.sign([])
    assert ca.list_in_force().number == first.number + 1


def test_a_restored_folder_takes_up_the_newer_list_of_a_node(tmp_path, ca, node):
    install(node, ca.sign([request(node)]))
    backup = files_below(ca.folder)
    gone = NodeFolder(tmp_path / "gone")
    ca.sign([request(gone, "garage")])
    ca.revoke("garage")
    install(node, ca.sign([request(node)]))
    revoked = ca.list_in_force()
    for path, content in backup.items():
        path.write_bytes(content)
    ca.sign([request(node)])
    now = ca.list_in_force()
    assert now.serials == revoked.serials
    assert now.number > revoked.number
    assert ca.sign([request(node)]).crl == ca.crl_pem.decode()
