"""The routes of a dispatcher: what goes on with the counts of a route that is gone."""

from __future__ import annotations

from defer.dispatcher.routes import Routes
from tests.defer.core_fixtures import route


def test_counts_go_on_with_the_heir_of_the_heir() -> None:
    """A route that drains may live longer than the one that took its place."""
    routes = Routes()
    for epoch in (1, 2, 3):
        routes.load(route(epoch))
    routes[1].heir, routes[2].heir = 2, 3
    routes[1].traffic.accepted = 5
    routes.remove(2)
    routes.remove(1)
    assert routes[3].traffic.before.accepted == 5
