"""What a dispatcher serves, as far as a client has asked it: its models' signatures, and where it takes requests."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace

from defer import api
from defer.admin import Admin
from defer.documents.address import Address
from defer.errors import NotReady, UnknownModel
from node_agent.security import Security

ANSWER_S = 10.0
"""Seconds in which a dispatcher answers a question about itself."""


class Served:
    """What is served at an address; asked for where it is not known.

    Args:
        addresses: Of the dispatcher, or of each that shares its state.
        connect_s: Seconds in which a dispatcher must answer at all.
        security: How connections are protected.
    """

    def __init__(self, addresses: tuple[Address, ...], connect_s: float, security: Security) -> None:
        self.addresses = addresses
        self.security = security
        self.data: Address | None = None
        """Where requests were taken when the dispatcher was last asked; None before that."""
        self._connect_s = connect_s
        self._lock = threading.Lock()
        self._given_up = threading.Event()
        self._models: dict[str, api.ModelInfo] = {}
        self._only: api.ModelInfo | None = None  # what a request without a name means

    @property
    def address(self) -> str:
        """Whom requests go to, for messages."""
        return ",".join(str(each) for each in self.addresses)

    def refresh(self) -> tuple[api.ModelInfo, ...]:
        """Ask the dispatcher what it serves.

        Raises:
            DispatcherUnreachable: Nobody answers at the address.
        """
        with self._admin() as admin:
            answer = admin.ask(api.ListModels(0), api.Models, timeout=ANSWER_S)
            told = admin.address
        self._note(answer, told)
        return answer.models

    def _note(self, answer: api.Models, told: Address) -> None:
        with self._lock:
            self._models = {info.name: info for info in answer.models}
            named = without_versions(self._models)
            self._only = named[0] if len(named) == 1 else None
            self.data = replace(told, port=answer.data_port)
            # The one that answers comes first; at the others, requests go to the next port.
            self.addresses = (told, *(each for each in self.addresses if each != told))

    def status(self) -> api.ServerStatus:
        """Ask the dispatcher how it is.

        Raises:
            DispatcherUnreachable: Nobody answers at the address.
        """
        with self._admin() as admin:
            return admin.ask(api.GetStatus(0), api.ServerStatus, timeout=ANSWER_S)

    def give_up(self) -> None:
        """Ask nothing more; whoever waits for an answer now gets `Cancelled`, within a moment."""
        self._given_up.set()

    def _admin(self) -> Admin:
        return Admin(
            self.addresses, connect_s=self._connect_s, security=self.security, given_up=self._given_up
        )

    def endpoints(self) -> list[str]:
        """Where requests go: the data socket of the dispatcher that answered, then those of the others."""
        assert self.data is not None  # whoever knows a signature has asked
        return [self.data.endpoint(), *(each.endpoint(1) for each in self.addresses[1:])]

    def known(self, model: str) -> api.ModelInfo | None:
        """The signature of a model as far as it was asked for; None when the dispatcher must be asked."""
        info = self._models.get(model, _NOTHING) if model or self._only is None else self._only
        return info if info.inputs else None

    def signature(self, model: str) -> api.ModelInfo:
        """The signature of a model, asked for where it is not known.

        Raises:
            UnknownModel: No such model, or several and none named.
            NotReady: None is served yet.
            DispatcherUnreachable: Nobody answers at the address.
        """
        info = self.known(model)
        if info is not None:
            return info
        served = {info.name: info for info in self.refresh()}
        if not served:
            raise NotReady(
                f"no model is deployed at {self.address}", hint="deploy one with `defer deploy MODEL`"
            )
        named = without_versions(served)
        if not model and len(named) != 1:
            raise UnknownModel(f"several models are served, say which: {', '.join(sorted(served))}")
        found = served.get(model) if model else named[0]
        if found is None:
            raise UnknownModel(f"no model {model!r:.80} is served; served: {', '.join(sorted(served))}")
        if not found.inputs:
            raise NotReady(f"model {found.name!r} is not ready: {found.reason}")
        return found

    def newer(self, model: str, info: api.ModelInfo) -> api.ModelInfo | None:
        """The signature where the model was replaced by one with another since `info`; None where it was not.

        Raises:
            UnknownModel, NotReady, DispatcherUnreachable: As `signature`.
        """
        self.refresh()
        found = self.signature(model)
        return found if (found.inputs, found.outputs) != (info.inputs, info.outputs) else None


def without_versions(models: Mapping[str, api.ModelInfo]) -> list[api.ModelInfo]:
    """The models that a request without a name may mean: a version is meant by its own name alone."""
    return [info for info in models.values() if info.version_of not in models or not info.version_of]


_NOTHING = api.ModelInfo("", "")
