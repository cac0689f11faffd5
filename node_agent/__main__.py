"""`python -m node_agent` is the command `defer-agent`."""

from node_agent.cli import main

if __name__ == "__main__":
    main()
