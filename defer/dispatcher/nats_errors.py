"""What errors of NATS and its client library mean to an operator: the only place where one becomes ours."""

from __future__ import annotations

from typing import Final

import msgspec

from defer.dispatcher.state_url import StateUrl
from defer.errors import DeferError, DiskFull, FileProblem, NotReady, Unauthorised

_NO_SPACE: Final = (10023, 10047, 10077, 10122)


def told(error: Exception, url: StateUrl, trouble: str) -> DeferError:
    """The `DeferError` for an error of the client library.

    Args:
        error: Any; one of ours is returned as it is.
        url: Of the state.
        trouble: What the library has reported of the connection meanwhile; it says why an answer does not come.
    """
    from nats import errors as ne
    from nats.js import errors as je

    if isinstance(error, DeferError):
        return error
    text = str(error).removeprefix("nats: ") or trouble or type(error).__name__
    if "ermissions violation" in text.lower():
        return Unauthorised(f"the state at {url} does not let this user in everywhere: {text}")
    if isinstance(error, ne.AuthorizationError) or "uthorization" in f"{text} {trouble}":
        return Unauthorised(f"the state at {url} refuses the credentials", hint="see `creds` in its URL")
    if isinstance(error, je.APIError) and error.err_code in _NO_SPACE:
        return DiskFull(f"the state at {url} has no room: {error.description}")
    if isinstance(error, je.ServiceUnavailableError | ne.NoRespondersError | je.NoStreamResponseError):
        return NotReady(
            f"the server at {url} has no JetStream, or not yet",
            hint="start it with `nats-server -js`",
        )
    if isinstance(error, TimeoutError | ne.NoServersError | ne.ConnectionClosedError | OSError):
        why = f": {text}" if text != "TimeoutError" else ""
        return NotReady(f"the state at {url} does not answer{why}", hint="is nats-server running there?")
    if isinstance(error, msgspec.MsgspecError):
        return FileProblem(f"the state at {url} is damaged: {error}")
    return NotReady(f"the state at {url} cannot be used: {text}")
