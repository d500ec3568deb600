"""ComfyUI's own server: one that is started for the purpose, or one that runs already."""

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pnpmix.files.texts import first_fault
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from .errors import JobFailed, ServerEnded, ServerGone
from .files import write_whole
from .graphs import PACK
from .pictures import FOLDER, InputFile

# node → the input that names a model file, and the folder of such files; the pack's own nodes say it themselves
MODEL_FILES = {
    "CheckpointLoaderSimple": ("ckpt_name", "checkpoints"),
    "CLIPVisionLoader": ("clip_name", "clip_vision"),
    "CLIPLoader": ("clip_name", "text_encoders"),
}
START_SECONDS, ASK_SECONDS, END_SECONDS, TRIES = 600, 300, 20, 3
# The server ends with whoever started it, however that ended: its standard input is then at its end
UNTIL_ITS_STARTER_ENDS = """
import os, runpy, sys, threading

def wait():
    sys.stdin.buffer.read()
    os._exit(1)

threading.Thread(target=wait, daemon=True).start()
sys.path[0] = os.getcwd()
sys.argv[0] = "main.py"
runpy.run_path("main.py", run_name="__main__")
"""


class Refused(JobFailed):
    """It answered, with an error."""

    def __init__(self, path: str, code: int, body: bytes):
        super().__init__(f"ComfyUI answered {path.partition('?')[0]} with the error {code}")
        self.body = body


# What of ComfyUI's answers is asked for


class System(BaseModel):
    """The part of /system_stats about ComfyUI."""

    comfyui_version: str
    argv: list[str]


class Device(BaseModel):
    """A device in /system_stats."""

    name: str
    type: str
    torch_vram_total: int


class Stats(BaseModel):
    """The answer of /system_stats."""

    system: System
    devices: Annotated[list[Device], Field(min_length=1)]


class Named(BaseModel):
    """The answer of /upload/image."""

    name: str


class Queued(BaseModel):
    """The answer of /prompt."""

    prompt_id: str


class Queue(BaseModel):
    """The answer of /queue."""

    queue_running: list[list[Any]]
    queue_pending: list[list[Any]]


class Status(BaseModel):
    """The status of a run in /history."""

    status_str: str
    messages: list[tuple[str, dict[str, Any]]]


class Done(BaseModel):
    """A run in /history."""

    status: Status
    outputs: dict[str, dict[str, Any]]


class Fault(BaseModel):
    """An error in the answer of /prompt."""

    message: str
    details: str | None = None


class NodeFaults(BaseModel):
    """The errors of a node in the answer of /prompt."""

    errors: list[Fault]


class Refusal(BaseModel):
    """The answer of /prompt to a graph that is not valid."""

    error: Fault
    node_errors: dict[str, NodeFaults] | list = {}  # ComfyUI's empty one is a list


class Server:
    """A ComfyUI that answers at `url`."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.sent: set[str] = set()
        self.messages: list[str] = []  # what the nodes of the last graph said

    def ask(self, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        """Sends a request and returns the answer's content.

        Raises:
            ServerGone: there is no answer.
            Refused: the answer is an error.
        """
        try:
            request = urllib.request.Request(self.url + path, body, {"Content-Type": kind} if body else {})
            with urllib.request.urlopen(request, timeout=ASK_SECONDS) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise Refused(path, error.code, error.read()) from error
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: what was given is no address
            raise ServerGone(f"no ComfyUI answers at {self.url} ({getattr(error, 'reason', error)})") from error

    def answer(self, expected: Any, path: str, *body) -> Any:
        """Returns the answer to a request, as JSON of a type that pydantic knows.

        Raises:
            ServerGone: also where it says something else.
        """
        content = self.ask(path, *body)
        try:
            return TypeAdapter(expected).validate_json(content)
        except ValidationError as error:
            said = f"{path.partition('?')[0]}: {first_fault(error)}"
            raise ServerGone(f"another program than ComfyUI answers at {self.url} ({said[:300]})") from error

    def choices(self, node: str, name: str) -> list[str]:
        """Returns the choices of an input; none where the server does not know the node."""
        known = self.answer(dict[str, Any], f"/object_info/{node}")
        if node not in known:
            return []
        kind, *options = known[node]["input"]["required"][name]
        return kind if isinstance(kind, list) else options[0].get("options", [])

    def has_pack(self) -> bool:
        try:
            return "PnPMixSampler" in self.answer(dict[str, Any], "/object_info/PnPMixSampler")
        except Refused as error:
            raise ServerGone(f"another program than ComfyUI answers at {self.url} ({error})") from error

    def send(self, name: str, file: InputFile) -> None:
        """Puts an image into ComfyUI's inputs, as FOLDER/name.

        One that is there already is not written anew: another run's graph may read it at this moment.
        """
        content = file.encode()
        if self.upload(name, content, "false") != name:  # another image is there, or half of this one
            self.upload(name, content, "true")

    def upload(self, name: str, content: bytes, overwrite: str) -> str:
        """Uploads an image and returns its name there."""
        edge = uuid.uuid4().hex
        fields = {"overwrite": overwrite, "subfolder": FOLDER}
        parts = [f'--{edge}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
        parts.append(f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n')
        body = "".join(parts).encode() + content + f"\r\n--{edge}--\r\n".encode()
        return self.answer(Named, "/upload/image", body, f"multipart/form-data; boundary={edge}").name

    def run(
        self,
        prompt: dict,
        files: dict[str, InputFile],
        workflow: dict | None = None,
        watch: Callable[[], None] = lambda: None,
    ) -> dict:
        """Runs a graph and returns the outputs of its nodes.

        Args:
            files: the images that it loads, by their names there.
            workflow: the graph as the editor saves it, for the metadata of the results.
            watch: called again and again while it runs.

        Raises:
            JobFailed: a model file is not there, ComfyUI refused the graph, or a node raised.
        """
        self.check_files(prompt)
        for name in files.keys() - self.sent:
            self.send(name, files[name])
            self.sent.add(name)
        extra = {"extra_pnginfo": {"workflow": workflow}} if workflow else {}
        body = json.dumps({"prompt": prompt, "extra_data": extra}).encode()
        try:
            number = self.answer(Queued, "/prompt", body).prompt_id
        except Refused as error:
            raise JobFailed(refusal(error.body, prompt)) from error
        pause, was_queued = 0.05, True
        while True:
            watch()
            done = self.answer(dict[str, Done], f"/history/{number}").get(number)
            if done:
                break
            queue = self.answer(Queue, "/queue")
            is_queued = any(number in entry for entry in queue.queue_running + queue.queue_pending)
            if not (is_queued or was_queued):  # twice: between the queue and the history it is in neither
                raise JobFailed("it was taken out of ComfyUI's queue")
            was_queued = is_queued
            time.sleep(pause)
            pause = min(1.2 * pause, 0.5)
        if done.status.status_str != "success":
            raise JobFailed(stopped(done.status.messages, prompt))
        return done.outputs

    def images(self, prompt: dict, saves: Sequence[str], *run) -> list[bytes]:
        """Runs a graph and returns the image that each of the nodes `saves` saved.

        Args:
            run: as of `run`, which raises the same.
        """
        outputs = self.run(prompt, *run)
        self.messages = [text for output in outputs.values() for text in output.get("messages", [])]
        saved = [outputs[node_id]["images"][0] for node_id in saves]
        contents = [self.fetch(x) for x in saved]
        for x in saved:
            self.forget(x)
        return contents

    def check_files(self, prompt: dict) -> None:
        """Checks the model files that a graph names.

        Raises:
            JobFailed: one is not there; says which are.
        """
        for node in prompt.values():
            if node["class_type"] in MODEL_FILES:
                name, folder = MODEL_FILES[node["class_type"]]
                file, known = node["inputs"][name], self.choices(node["class_type"], name)
                if file not in known:
                    there = "There are: " + ", ".join(known) if known else "There is none"
                    raise JobFailed(f"the file '{file}' is not in ComfyUI's models/{folder}. {there}")

    def about(self) -> dict[str, str]:
        """Returns its version and its device, for a report."""
        said = self.answer(Stats, "/system_stats")
        return {"ComfyUI": said.system.comfyui_version, "device": said.devices[0].name}

    def memory(self) -> int | None:
        """Returns the bytes that torch holds on the device now; None on a CPU."""
        device = self.answer(Stats, "/system_stats").devices[0]
        return device.torch_vram_total if device.type != "cpu" else None

    def fetch(self, saved: dict) -> bytes:
        """Returns an image that a node saved, by what the node says of it."""
        return self.ask("/view?" + urllib.parse.urlencode(saved))

    def forget(self, saved: dict) -> None:
        """Deletes an image that was fetched from the ComfyUI that this program started; another's keeps it."""

    def restart(self) -> None:
        """Starts a ComfyUI again that this program started; another's is left alone."""


class OwnServer(Server):
    """A ComfyUI that this program starts, with folders of its own for all but the models.

    Of the custom nodes it loads this pack alone, so that no other can change what comes out.
    """

    def __init__(self, comfyui: Path, options: Sequence[str], scratch: Path):
        """Starts it, with further options of ComfyUI's command line."""
        self.comfyui, self.options, self.scratch = comfyui, options, scratch
        super().__init__("")
        self.start()

    def start(self) -> None:
        """Starts ComfyUI and waits until it answers.

        Raises:
            ServerGone: it does not start; says what it wrote last.
        """
        for _ in range(TRIES):
            self.process = self.launch()
            if self.answers():
                return
            if "address already in use" not in self.last_lines().lower():  # another program was quicker
                break
            self.stop()
        raise ServerGone(f"ComfyUI in {self.comfyui} did not start:\n{self.last_lines()}")

    def restart(self) -> None:
        self.stop()
        self.start()

    def launch(self) -> subprocess.Popen[bytes]:
        """Runs ComfyUI at a port that is free now, and returns its process."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        folders = []
        for name in ("input", "output", "temp", "user"):
            folder = self.scratch / name
            folder.mkdir(exist_ok=True)
            folders += [f"--{name}-directory", str(folder)]
        command = [sys.executable, "-c", UNTIL_ITS_STARTER_ENDS, "--port", str(port), *folders]
        command += ["--disable-auto-launch", "--disable-all-custom-nodes", "--disable-api-nodes"]
        command += ["--whitelist-custom-nodes", FOLDER, PACK.name, "--database-url", "sqlite:///:memory:"]
        with (self.scratch / "log").open("wb") as log:
            return subprocess.Popen(
                [*command, *self.options], cwd=self.comfyui, stdin=subprocess.PIPE, stdout=log, stderr=log
            )

    def answers(self) -> bool:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(ServerGone, ServerEnded, Refused):
                arguments = self.answer(Stats, "/system_stats").system.argv
                return str(self.scratch / "input") in arguments  # else another server has this port
            time.sleep(0.3)
        return False

    def last_lines(self) -> str:
        text = (self.scratch / "log").read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-15:])

    def ask(self, *arguments) -> bytes:
        """Sends a request as `Server.ask` does.

        Raises:
            ServerEnded: instead of ServerGone, where the process has ended.
        """
        try:
            return super().ask(*arguments)
        except ServerGone:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)  # it ends a moment after its connections
                raise ServerEnded(f"ComfyUI ended in the middle:\n{self.last_lines()}") from None
            raise

    def send(self, name: str, file: InputFile) -> None:
        write_whole(self.scratch / "input" / FOLDER / name, file.encode())

    def memory(self) -> int | None:
        """Returns the bytes that torch holds on the device now; on a CPU, those of the whole process."""
        import psutil  # which ComfyUI brings

        return super().memory() or psutil.Process(self.process.pid).memory_info().rss

    def forget(self, saved: dict) -> None:
        (self.scratch / "output" / saved["subfolder"] / saved["filename"]).unlink(missing_ok=True)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def comfyui_server(url: str | None, options: Sequence[str]) -> Iterator[Server]:
    """Yields the ComfyUI at `url`, or, without one, one of our own, which ends with the block.

    Raises:
        ServerGone: it does not answer, or does not have this pack.
    """
    if url:
        server = Server(url)
        if not server.has_pack():
            raise ServerGone(f"the ComfyUI at {server.url} does not have this pack")
        yield server
        return
    with contextlib.ExitStack() as stack:
        scratch = Path(tempfile.mkdtemp(prefix="pnp-mix-"))
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        own = OwnServer(Path(os.environ["COMFYUI_DIR"]), options, scratch)
        stack.callback(own.stop)
        if not own.has_pack():
            raise ServerGone(f"ComfyUI could not load this pack:\n{own.last_lines()}")
        yield own


def node_name(node_id: str, prompt: dict) -> str:
    """Returns what messages call a node."""
    node = prompt.get(node_id, {})
    return node.get("_meta", {}).get("title") or node.get("class_type") or node_id


def refusal(answer: bytes, prompt: dict) -> str:
    """Returns why ComfyUI does not run a graph, in one line for each fault."""
    try:
        said = Refusal.model_validate_json(answer)
    except ValidationError:
        return f"ComfyUI refused the graph: {answer[:200].decode(errors='replace')}"
    by_node = said.node_errors if isinstance(said.node_errors, dict) else {}
    faults = [
        f"{node_name(node_id, prompt)}: {fault.details or fault.message}"
        for node_id, node in by_node.items()
        for fault in node.errors
    ]
    return "\n".join(faults) or said.error.message


def stopped(messages: list, prompt: dict) -> str:
    """Returns why a graph stopped."""
    for event, said in messages:
        if event == "execution_error":
            return f"{node_name(said['node_id'], prompt)}: {said['exception_message'].strip()}"
    return "it was interrupted"
