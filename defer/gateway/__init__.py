"""The gateway: a pipeline behind the Open Inference Protocol v2, over HTTP and gRPC. Needs the extra `gateway`.

`datatypes`, `calls` and `messages` know tensors and bodies and neither socket nor thread; `service` answers what both
protocols ask; `app` is HTTP's side of it, `rpc` gRPC's; `server` runs them in a thread with an event loop of its own.
"""
