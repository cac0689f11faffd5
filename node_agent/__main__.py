"""The command `defer-agent`, also as `python -m node_agent`.

Little is imported before an interrupt is looked after: Ctrl-C while the rest loads is one line, no traceback.
"""

import os
import sys


def main() -> None:
    """Entry point of `defer-agent`."""
    try:
        from node_agent.cli import main as run

        run()
    except KeyboardInterrupt:
        os.write(2, b"error: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
