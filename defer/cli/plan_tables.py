"""Tables of plans: where the time goes, what would help, and plans side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import click

from defer import units
from defer.cli.output import console, table
from defer.documents.plan import Plan
from defer.draw_words import bottleneck_words, gain_words, proof, show_money, show_value


def show_explanation(plan: Plan) -> None:
    """Every addend of the latency, what binds, and what changes would gain."""
    out = console()
    shown = table("where", "what", "time", "share", "bytes", right=("time", "share", "bytes"))
    # With replicas the plan's latency is that of the slowest route, and the terms are of the one that most take.
    total = math.fsum(term.seconds for term in plan.terms)
    for term in plan.terms:
        share = f"{term.seconds / total:.1%}" if total > 0 else ""
        size = units.show_size(term.bytes) if term.bytes else ""
        shown.add_row(term.where, term.kind, units.show_duration(term.seconds), share, size)
    shown.add_section()
    shown.add_row("", "latency", units.show_duration(total), "", "")
    click.echo()
    if plan.shares:
        most = max(share.fraction for share in plan.shares)
        click.echo(
            f"The route of {most:.1%} of the requests; the slowest takes {units.show_duration(plan.latency_s)}."
        )
    out.print(shown)
    if plan.bottleneck:
        click.echo(f"\nBottleneck: {bottleneck_words(plan)}.")
    if plan.advice is None:
        return
    binding = ", ".join(plan.advice.binding)
    click.echo(
        f"Binding: {binding}." if binding else "Binding: nothing; the plan is the same without any limit."
    )
    if not plan.advice.what_ifs:
        return
    tried = table("change", "then", "gain", right=("then", "gain"))
    for each in plan.advice.what_ifs:
        tried.add_row(each.change, show_value(plan, each.value), gain_words(each.gain))
    click.echo()
    out.print(tried)


def show_side_by_side(plans: Sequence[tuple[str, Plan]]) -> None:
    """One column per plan.

    Args:
        plans: Names and plans, the one that the others are compared with first.
    """
    shown = table("", *(name for name, _ in plans))
    rows: list[tuple[str, Callable[[Plan], str]]] = [
        ("made least", lambda p: p.objective),
        ("latency", lambda p: units.show_duration(p.latency_s)),
        ("period", lambda p: units.show_duration(p.period_s)),
        ("requests/s", lambda p: units.show_number(1 / p.period_s) if p.period_s > 0 else "∞"),
        ("cost", lambda p: show_money(p.cost)),
        ("energy", lambda p: units.show_energy(p.energy_j)),
        ("on the wire", lambda p: units.show_size(_moved(p))),
        ("stages", lambda p: ", ".join(f"{s.device} {s.start}–{s.stop - 1}" for s in p.stages)),
        ("routes", lambda p: str(len(p.shares) or 1)),
        ("bottleneck", lambda p: p.bottleneck),
        ("proof", proof),
        ("costs", lambda p: p.method),
    ]
    for title, cell in rows:
        shown.add_row(title, *(cell(plan) for _, plan in plans))
    click.echo()
    console().print(shown)


def _moved(plan: Plan) -> int:
    """Bytes of one request on all links together."""
    return sum(each.wire_bytes * (len(each.path) - 1) for each in plan.transfers)
