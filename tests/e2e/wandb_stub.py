"""As much of W&B's API, on the loopback address, as `wandb agent` asks for: one sweep whose points are given."""

import gzip
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stub:
    """A server with one sweep: ``config`` its YAML, ``points`` the parameters of its runs in turn.

    Once ``stop`` says so, it asks the agent to stop what is running, at every heartbeat, as W&B does.
    """

    def __init__(self, config: str, points: list[dict], stop: Callable[[], bool] = lambda: False):
        self.config, self.left, self.asked, self.stop = config, list(enumerate(points)), [], stop
        self.stopped_at: float | None = None
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                sent = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    sent = gzip.decompress(sent)
                body = json.loads(sent) if self.path.endswith("/graphql") else {}
                answer = json.dumps(stub.answer(body.get("query", ""), body.get("variables") or {})).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                return None

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, query: str, variables: dict) -> dict:
        """What W&B would answer to a GraphQL query of the agent."""
        self.asked.append(query)
        if "createAgent" in query:
            return {"data": {"createAgent": {"agent": {"id": "agent-1"}}}}
        if "agentHeartbeat" in query:
            return {
                "data": {
                    "agentHeartbeat": {"agent": {"id": "agent-1"}, "commands": json.dumps(self._commands(variables))}
                }
            }
        if "sweep(" in query:
            sweep = {"id": "s", "name": "sw33p", "config": self.config, "state": "RUNNING", "method": "grid"}
            rest = ("description", "createdAt", "heartbeatAt", "updatedAt", "bestLoss", "controller", "scheduler")
            sweep |= dict.fromkeys(rest) | {"earlyStopJobRunning": False, "runs": {"edges": []}}
            return {"data": {"project": {"sweep": sweep}}}
        viewer = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
        return {"data": {"viewer": viewer, "serverInfo": {"cliVersionInfo": {}, "features": []}}}

    def _commands(self, variables: dict) -> list[dict]:
        running = json.loads(variables.get("runState") or "{}")
        if any(running.values()):
            if not self.stop():
                return []
            self.stopped_at = self.stopped_at or time.monotonic()
            return [{"type": "stop", "run_id": run} for run, alive in running.items() if alive]
        if not self.left:
            return [{"type": "exit"}]
        number, point = self.left.pop(0)
        args = {name: {"value": value} for name, value in point.items()}
        return [{"type": "run", "run_id": f"run{number}", "program": "", "args": args}]

    def close(self) -> None:
        self.server.shutdown()
