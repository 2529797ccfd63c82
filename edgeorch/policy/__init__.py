"""What may run on this node, for whom. Closed by default; every refusal names the rule and its key."""

from edgeorch.policy.rules import Policy

__all__ = ["Policy"]
