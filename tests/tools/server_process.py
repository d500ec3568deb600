"""ComfyUI's own server, for tests that reach the pack as a user does."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from comfy_host import COMFYUI, DEVICE, PACK


class Server:
    """ComfyUI as a user starts it, with its own folder of models, pictures and custom nodes."""

    def __init__(self, base: Path, *options: str, environment: dict | None = None):
        self.base, self.log = base, base / "server.log"
        for name in ("custom_nodes", "models/checkpoints", "input", "output", "user", "temp"):
            (base / name).mkdir(parents=True, exist_ok=True)
        (base / "custom_nodes" / "pnp-mix").symlink_to(PACK)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "main.py", *DEVICE, "--port", str(port), "--base-directory", str(base), *options]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=COMFYUI, stdout=log, stderr=log, env=environment)

    def get(self, path: str):
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as answer:
                return json.load(answer)
        except (urllib.error.URLError, ConnectionError):
            return None

    def wait(self, question, seconds: float):
        """The first answer that is not empty."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            if answer := question():
                return answer
            time.sleep(0.5)
        raise TimeoutError(self.log.read_text())

    def wait_for_pack(self) -> None:
        self.wait(lambda: self.get("/object_info/PnPMixSampler"), 300)

    def queue(self, prompt: dict) -> str:
        """Queues a graph; the server's id of it."""
        request = urllib.request.Request(self.url + "/prompt", json.dumps({"prompt": prompt}).encode())
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["prompt_id"]

    def run(self, prompt: dict) -> dict:
        """Queues a graph and returns the outputs of its nodes."""
        prompt_id = self.queue(prompt)
        entry = self.wait(lambda: (self.get(f"/history/{prompt_id}") or {}).get(prompt_id), 600)
        assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1][1]["exception_message"]
        return entry["outputs"]

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
