"""The dispatcher: accepts requests, keeps each until it is answered, and owns the cluster's state.

`core` decides and `shell` moves the bytes; `daemon` is the process around them.
"""
