"""``python _profiled.py FILE ARGUMENTS…``: edgeorch, its main thread profiled between SIGUSR1 and SIGUSR2."""

import cProfile
import signal
import sys

from edgeorch.cli import main

if __name__ == "__main__":
    profile, file = cProfile.Profile(), sys.argv.pop(1)

    def write(*_: object) -> None:
        profile.disable()
        profile.dump_stats(file)

    signal.signal(signal.SIGUSR1, lambda *_: profile.enable())
    signal.signal(signal.SIGUSR2, write)
    sys.exit(main())
