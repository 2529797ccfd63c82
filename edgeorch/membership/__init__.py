"""Who exists and who is alive.

mDNS, seeds and digests say who may exist; links prove who it is; probes say who is alive. ``Membership`` is
what ``node.py`` runs, ``Table`` what placement reads.
"""

from edgeorch.membership.addresses_watch import AddressWatch
from edgeorch.membership.link_control import LinkControl, Revocations
from edgeorch.membership.mdns import Discovery, Fleet, Mdns
from edgeorch.membership.membership import Membership
from edgeorch.membership.sampler import ExecutorLoad, Machine, Sampler
from edgeorch.membership.self_info import SelfInfo, describe
from edgeorch.membership.table import Table

__all__ = [
    "AddressWatch",
    "Discovery",
    "ExecutorLoad",
    "Fleet",
    "LinkControl",
    "Machine",
    "Mdns",
    "Membership",
    "Revocations",
    "Sampler",
    "SelfInfo",
    "Table",
    "describe",
]
