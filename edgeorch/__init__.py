"""Run containers and commands on the best-placed machine of a small fleet."""

__version__ = "0.1.0"
