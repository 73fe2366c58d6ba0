"""Stands for the executor of an engine on several machines: an actor on each node of Ray, and an answer from all of them."""

from __future__ import annotations

import argparse
import json
import os
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import ray  # type: ignore[import-not-found]  # of the environment that this runs in
from ray.util.placement_group import placement_group  # type: ignore[import-not-found]
from ray.util.scheduling_strategies import (  # type: ignore[import-not-found]
    PlacementGroupSchedulingStrategy,
)


@ray.remote(num_cpus=1)  # type: ignore[untyped-decorator]
class Part:
    def hear(self, text: str) -> str:
        return f"{ray.util.get_node_ip_address()} heard {len(text.split())} words"


class Handler(BaseHTTPRequestHandler):
    def __init__(self, model: str, parts: list[Any], *args: Any) -> None:
        self.model, self.parts = model, parts
        super().__init__(*args)

    def log_message(self, *args: object) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        self.answer({"data": [{"id": self.model, "object": "model"}], "object": "list"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        said = "; ".join(sorted(ray.get([part.hear.remote(text) for part in self.parts], timeout=20)))
        words = len(text.split()), len(said.split())
        usage = {"prompt_tokens": words[0], "completion_tokens": words[1], "total_tokens": sum(words)}
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.answer(
            {"id": "1", "object": "chat.completion", "model": self.model, "choices": [choice], "usage": usage}
        )

    def answer(self, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--model")
    parser.add_argument("--members", type=int)
    given = parser.parse_args()
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    group = placement_group([{"CPU": 1}] * given.members, strategy="STRICT_SPREAD")
    ray.get(group.ready(), timeout=120)
    parts = [
        Part.options(
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=each)
        ).remote()
        for each in range(given.members)
    ]
    ray.get([part.hear.remote("") for part in parts], timeout=120)
    ThreadingHTTPServer((given.host, given.port), partial(Handler, given.model, parts)).serve_forever()


if __name__ == "__main__":
    main()
