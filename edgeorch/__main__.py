"""``python -m edgeorch``."""

import sys

from edgeorch.cli import main

if __name__ == "__main__":
    sys.exit(main())
