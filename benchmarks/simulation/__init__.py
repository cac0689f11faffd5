"""A deterministic simulation: the real data path, cores and connections on a virtual clock and a simulated network.

`schedule.run(seed)` plays one random schedule of requests and faults and returns its history and what broke a promise.
No socket, no thread, no sleeping: the same seed gives the same history.
"""
