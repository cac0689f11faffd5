"""Stands in for an agent: listens, prints one JSON line, answers each connection with its own process id."""

import json
import os
import socket
import sys
import time

if "--broken" in sys.argv:
    sys.exit("the store is on fire")
if "--mute" in sys.argv:
    time.sleep(60)
name, host, port = sys.argv[1:4]
with socket.create_server((host, int(port))) as listener:
    print(json.dumps({"name": name, "control": f"tcp://{host}:{port}"}), flush=True)
    print("serving", file=sys.stderr, flush=True)
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(str(os.getpid()).encode())
