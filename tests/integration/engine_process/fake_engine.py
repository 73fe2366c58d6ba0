"""An engine that misbehaves as asked: ``fake_engine.py PORT BEHAVIOUR``. Standard library only."""

import http.server
import os
import pathlib
import signal
import subprocess
import sys
import time

port, behaviour = int(sys.argv[1]), sys.argv[2]
print(f"engine {behaviour} says hello", flush=True)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        hung = behaviour == "hangs later" and time.monotonic() - began > 0.5
        if hung:
            time.sleep(3600)
        status = {"never ready": 503, "has no such path": 404}.get(behaviour, 200)
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing in the log: on a busy machine a probe leaves before it has its answer."""


if behaviour == "crashes at once":
    print("\x1b[31mcannot load the model\x1b[0m\x07", flush=True)
    sys.exit(3)
if behaviour == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "listens on nothing":
    time.sleep(3600)
if behaviour.startswith("slow"):
    time.sleep(1.0)
if behaviour == "ignores SIGTERM":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if behaviour == "has a grandchild":
    # The one between dies at once: the grandchild belongs to nobody but the session.
    subprocess.Popen(["sh", "-c", "sleep 3600 & echo grandchild $!"]).wait()
if behaviour == "has a runaway":
    runaway = subprocess.Popen(["sleep", "3600"], start_new_session=True)
    print("grandchild", runaway.pid, flush=True)
if behaviour == "shows its world":
    print("ENV", *sorted(os.environ), flush=True)
    print("VALUE", os.environ.get("MODEL_VAR"), flush=True)
    print("FDS", *sorted(path.name for path in pathlib.Path("/proc/self/fd").iterdir()), flush=True)
    print("CWD", pathlib.Path.cwd(), flush=True)
    print("SESSION", os.getsid(0) == os.getpid(), flush=True)
if behaviour == "goes on talking":
    import threading

    def talk() -> None:
        while True:
            print("still here", flush=True)
            time.sleep(0.05)

    threading.Thread(target=talk, daemon=True).start()
began = time.monotonic()
if behaviour.endswith("crashes later"):
    import threading

    threading.Timer(0.5, os._exit, [7]).start()
Server(("127.0.0.1", port), Handler).serve_forever()
