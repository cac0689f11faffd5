"""`python -m defer` is the command `defer`."""

from defer.cli import main

if __name__ == "__main__":
    main()
