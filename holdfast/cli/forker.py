"""A process that has a service's code loaded and runs none of it: it forks itself into services, one for each request.

Run by `holdfast.cli.warm`, as `forker.py ROOT MODULE PARENT CONTROL`; not imported. A fork has the environment, folder,
session and files that the request names, and then does what the service's own command does. It dies with this process,
and this process dies with the one that started it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import runpy
import signal
import socket
import sys

_PR_SET_PDEATHSIG = 1
_REQUEST_BYTES = 1 << 20


def die_with(parent: int) -> None:
    """Has the kernel kill this process when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def serve_requests(control: socket.socket) -> None:
    """Answers requests until nobody can make any. Returns in a fork, which is to become the service."""
    own = os.getpid()
    while True:
        message, files, _, _ = socket.recv_fds(control, _REQUEST_BYTES, 2)
        if not message:
            os._exit(0)
        request = json.loads(message)
        if "ready" in request:
            control.send(b"0")
            continue
        if "reap" in request:
            # Invariant: an ended fork keeps its process id until whoever asked for it has taken notice.
            _, status = os.waitpid(request["reap"], 0)
            control.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        process_id = os.fork()
        if process_id == 0:
            control.close()
            os.setsid()
            die_with(own)
            standard_input, log = files
            for number, file in ((0, standard_input), (1, log), (2, log)):
                os.dup2(file, number)
            os.close(standard_input)
            os.close(log)
            os.chdir(request["folder"])
            os.environ.clear()
            os.environ.update(request["environment"])
            return
        for file in files:
            os.close(file)
        control.send(str(process_id).encode())


if __name__ == "__main__":
    root, module, parent, descriptor = sys.argv[1:5]
    del sys.argv[1:5]
    die_with(int(parent))
    sys.path.insert(0, root)
    importlib.import_module(f"{module}.__main__")
    # The fork runs it as its own main module; what it imports is there already.
    del sys.modules[f"{module}.__main__"]
    # A second thread would be missing in the forks, with whatever it held at that moment.
    assert len(os.listdir("/proc/self/task")) == 1
    serve_requests(socket.socket(fileno=int(descriptor)))
    runpy.run_module(module, run_name="__main__", alter_sys=True)
