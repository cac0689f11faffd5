"""`defer agent`: the same command as `defer-agent`, which an edge box has without the rest of defer."""

from node_agent.cli import agent_command as command

__all__ = ["command"]
