"""Traced requests: clocks brought together, spans put in order, and drawn.

`clocks` reads how far other clocks are ahead, `timeline` makes one story of what client, dispatcher and agents noted,
`chrome` writes it for Perfetto, `gantt` and `terminal` draw it, and `run` sends the requests.
`told` makes a tree of spans of what the dispatcher and the agents noted, and `otel` sends spans to a collector.
"""
