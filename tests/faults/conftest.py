"""Real fleets are made as in the tests of nodes."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "node"))
