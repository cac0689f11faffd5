"""The command `defer`, also as `python -m defer`.

Little is imported before an interrupt is looked after: Ctrl-C while the rest loads is one line, no traceback.
"""

import os
import sys


def main() -> None:
    """Entry point of `defer`."""
    try:
        from defer.cli import main as run

        run()
    except KeyboardInterrupt:
        os.write(2, b"error: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
