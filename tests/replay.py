"""A server that gives the recorded answers of a real vLLM server, and checks what it is asked.

The recording is made by `make test-vllm`. A request is found again by what decides its answer but
for the pictures' pixels, of which the sizes count: how a picture is compressed differs from
version to version of a library.
"""
import base64
import hashlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

RECORDING = Path(__file__).parent/"recordings"/"vllm.json"


def sized(part):
    "A part of a message, a picture as its size."
    if part["type"] != "image_url":
        return part
    head, _, data = part["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    return {"picture": Image.open(io.BytesIO(base64.b64decode(data))).size}


def key_of(content):
    "What a recorded answer is found by: the request without the adapter's name and pixels."
    turns = [turn if isinstance(turn["content"], str)
             else {**turn, "content": [sized(part) for part in turn["content"]]}
             for turn in content["messages"]]
    text = json.dumps({**content, "messages": turns, "model": ""}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def trimmed(content):
    "What our side reads of an answer."
    kept = []
    for choice in content["choices"]:
        steps = [{name: step[name] for name in ("token", "logprob")}
                 for step in choice["logprobs"]["content"]]
        kept.append({"index": choice["index"], "finish_reason": choice["finish_reason"],
                     "token_ids": choice["token_ids"], "logprobs": {"content": steps}})
    return {"prompt_token_ids": content["prompt_token_ids"], "choices": kept}


class Replay:
    "What the server was asked, and what it does otherwise than the real one."

    def __init__(self, answers=None, key="", sleeps=False):
        self.answers = json.loads(RECORDING.read_text())["answers"] if answers is None else answers
        self.key = key
        self.sleeps = sleeps
        self.asleep = False
        self.loaded = {}              # adapters by name
        self.names = []               # all that there have been
        self.requests = []            # (method, path, content) of each request
        self.spoil = lambda content: content       # what becomes of an answer
        self.first = lambda handler: False         # True: it has dealt with the request
        self.release = threading.Event()           # ends what hangs

    def reply(self, method, path, content):
        "The status and the content of an answer, as vLLM 0.32 has them."
        path, _, query = path.partition("?")
        if path == "/v1/models":
            base = {"id": "base", "object": "model", "parent": None}
            return 200, {"data": [base, *({"id": n, "parent": "base"} for n in self.loaded)]}
        if path == "/server_info":
            return 200, {"vllm_config": {"model_config": {"enable_sleep_mode": self.sleeps}}}
        if path in ("/sleep", "/wake_up"):
            assert self.sleeps and self.asleep == (path == "/wake_up")
            self.asleep = path == "/sleep"
            return 200, {}
        assert not self.asleep, f"{path} was asked of a server that sleeps"
        if path == "/v1/load_lora_adapter":
            return self.load(content["lora_name"], Path(content["lora_path"]))
        if path == "/v1/unload_lora_adapter":
            return (200, "gone") if self.loaded.pop(content["lora_name"], None) else (404, "none")
        if path == "/v1/chat/completions":
            return self.complete(content)
        return 404, {"detail": "Not Found"}

    def load(self, name, folder):
        "Take an adapter in; a name that was there before is refused."
        if name in self.names:
            return 400, {"error": {"message": f"The lora adapter '{name}' has been loaded."}}
        if not (folder/"adapter_model.safetensors").is_file() or not folder.is_absolute():
            return 404, {"error": {"message": f"No adapter found for '{folder}'"}}
        self.names.append(name)
        self.loaded[name] = (folder/"adapter_model.safetensors").read_bytes()
        return 200, "Success"

    def complete(self, content):
        "The recorded answer to a request for responses."
        if content["model"] not in {"base", *self.loaded}:
            return 404, {"error": {"message": f"The model `{content['model']}` does not exist."}}
        found = self.answers.get(key_of(content))
        if found is None:
            return 400, {"error": {"message": "this request was not recorded"}}
        return 200, self.spoil(json.loads(json.dumps(found)))


class Handler(BaseHTTPRequestHandler):
    "Answers with what its `Replay` says."
    protocol_version = "HTTP/1.1"

    def log_message(self, *given):
        pass

    def answer(self):
        replay = self.server.replay
        size = int(self.headers.get("Content-Length") or 0)
        content = json.loads(self.rfile.read(size)) if size else None
        replay.requests.append((self.command, self.path, content))
        if replay.first(self):
            return
        if replay.key and self.headers.get("Authorization") != f"Bearer {replay.key}":
            self.say(401, {"error": "Unauthorized"})
        else:
            self.say(*replay.reply(self.command, self.path, content))

    def say(self, status, content, **headers):
        "Send an answer."
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer


class Quiet(ThreadingHTTPServer):
    "A server that says nothing of connections that end early, as they do in these tests."
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, address):
        pass


class Running:
    "A server with a `Replay`, within a `with`."

    def __init__(self, replay):
        self.replay = replay

    def __enter__(self):
        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.server.replay = self.replay
        threading.Thread(target=self.server.serve_forever, args=(.02,), daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_):
        self.replay.release.set()
        self.server.shutdown()
        self.server.server_close()
