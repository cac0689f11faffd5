"""Asks an agent whether it is well: `python -m node_agent.probe [HOST:PORT]`, for probes of containers and clusters.

An open port proves only that libzmq lives. This says hello on the control port, waits for a heartbeat and looks at the
age of the item in work, so an agent whose worker hangs fails the probe. Exit code 0: well; 1: not, and why.
"""

from __future__ import annotations

import sys
import time

import click
import zmq

from node_agent.errors import AgentError, said
from node_agent.frames import decode_control, encode_control
from node_agent.link import dial, new_context, open_socket
from node_agent.messages import PROTOCOL_MINIMUM, PROTOCOL_VERSION, Heartbeat, Hello
from node_agent.security import OPEN, Security, choose, host_of

OLDEST_S = 300.0
"""An item older than this is a hang."""


def check(address: str, timeout_s: float, oldest_s: float = OLDEST_S, security: Security = OPEN) -> str:
    """What is wrong with the agent at `address` (`host:port`); empty if nothing is.

    Args:
        address: Of its control socket.
        timeout_s: Seconds to wait for a heartbeat.
        oldest_s: Seconds that one item may take.
        security: With keys, those of the agent itself.
    """
    context = new_context(security)
    try:
        socket = open_socket(context, zmq.DEALER, purpose="control")
        try:
            dial(socket, f"tcp://{address}", security.own.name if security.own is not None else "agent")
            deadline = time.monotonic() + timeout_s
            # It takes a message only once the other end has shaken hands.
            hello = Hello(1, PROTOCOL_MINIMUM, PROTOCOL_VERSION, "probe", "dispatcher")
            beat = None
            if socket.poll(int(timeout_s * 1000), zmq.POLLOUT):
                socket.send(encode_control(hello))
                beat = _heartbeat(socket, deadline)
        finally:
            socket.close(0)
    except (zmq.ZMQError, AgentError) as error:
        return str(error)
    finally:
        context.term()
    if beat is None:
        return f"no heartbeat from {address} within {timeout_s:g} s"
    if beat.item_age_s > oldest_s:
        return f"an item is in work for {beat.item_age_s:.0f} s"
    return ""


def _heartbeat(socket: zmq.Socket[bytes], deadline: float) -> Heartbeat | None:
    while (left := deadline - time.monotonic()) > 0:
        if not socket.poll(int(left * 1000) + 1):
            break
        message = decode_control(socket.recv_multipart()[0])
        if isinstance(message, Heartbeat):
            return message
    return None


@click.command()
@click.argument("address", default="127.0.0.1:7700")
@click.option("--timeout", default=3.0, show_default=True, help="Seconds to wait for a heartbeat.")
@click.option("--oldest", default=OLDEST_S, show_default=True, help="Seconds that one item may take.")
@click.option("--keys", type=click.Path(), help="The agent's own folder of keys, where it has one.")
@click.option("--insecure", is_flag=True, help="Ask an agent on another machine without keys.")
def main(address: str, timeout: float, oldest: float, keys: str | None, insecure: bool) -> None:
    """Ends with 0 if the agent at ADDRESS (HOST:PORT) is well."""
    try:
        security = choose(keys, roles=("agent",), hosts=(host_of(address),), insecure=insecure)
        wrong = check(address, timeout, oldest, security)
    except AgentError as error:
        wrong = said(error)
    if wrong:
        click.echo(wrong, err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
