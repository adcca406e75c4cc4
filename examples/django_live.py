"""A setting that changes in two Django workers at once.

    pip install "mqkv[django]"
    python examples/django_live.py                                    on the embedded engine
    python examples/django_live.py amqp://guest:guest@localhost/%2F   on a broker

Then open http://127.0.0.1:8001/ and type. Each half of the page is answered by another process; both have all of the cache in
memory, and see each change as it happens. ``--check`` starts the workers, changes the setting in one, sees it in the other, ends.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from wsgiref.simple_server import WSGIRequestHandler, make_server

import django
from django.conf import settings
from django.core.cache import cache
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

PORTS = (8001, 8002)

PAGE = """<!doctype html><meta charset="utf-8"><title>mqkv and Django</title>
<style>body{font:1.2em sans-serif;margin:3em}section{display:inline-block;width:45%%;padding:1em}b{font-size:2em}</style>
<h1>One setting, two workers</h1>
<p><input id="setting" autofocus placeholder="type here" size="40"></p>
%s
<script>
document.querySelector("#setting").oninput = e => fetch("/setting?value=" + encodeURIComponent(e.target.value), {method: "POST"})
for (const each of document.querySelectorAll("section")) setInterval(async () => {
  const answer = await (await fetch(`http://127.0.0.1:${each.dataset.port}/setting`)).json()
  each.querySelector("b").textContent = answer.setting
  each.querySelector("i").textContent = `process ${answer.pid}, answered in ${answer.microseconds} microseconds`
}, 100)
</script>"""
HALF = '<section data-port="%d"><b></b><p><i></i></p></section>'


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(PAGE % "".join(HALF % port for port in PORTS))


def setting(request: HttpRequest) -> HttpResponse:
    if request.method == "POST":
        cache.set("setting", request.GET["value"], timeout=None)
    begun = time.perf_counter()
    value = cache.get("setting", "(nothing yet)")
    spent = round((time.perf_counter() - begun) * 1e6)
    answer = {"setting": value, "pid": os.getpid(), "microseconds": spent}
    return JsonResponse(answer, headers={"Access-Control-Allow-Origin": "*"})


urlpatterns = [path("", page), path("setting", setting)]


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def serve(location: str, port: int) -> None:
    settings.configure(
        SECRET_KEY="an example's: yours is a secret",
        ALLOWED_HOSTS=["127.0.0.1"],
        ROOT_URLCONF=__name__,
        CACHES={
            "default": {
                "BACKEND": "mqkv.django.StreamCache",
                "LOCATION": location,
                "OPTIONS": {"prefix": "django-live"},
            }
        },
    )
    django.setup()
    make_server("127.0.0.1", port, get_wsgi_application(), handler_class=Quiet).serve_forever()


def ask(port: int, query: str = "", method: str = "GET") -> dict[str, object]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/setting{query}", method=method)
    with urllib.request.urlopen(request, timeout=10) as response:
        answer: dict[str, object] = json.load(response)
        return answer


def wait_for(port: int, worker: subprocess.Popen[bytes]) -> None:
    while worker.poll() is None:
        try:
            ask(port)
            return
        except OSError:
            time.sleep(0.05)
    sys.exit(f"the worker on port {port} has ended: is the port taken?")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def check(ports: tuple[int, int]) -> None:
    for n in range(3):
        value = f"change {n} of {os.getpid()}"
        first = ask(ports[0], f"?value={urllib.parse.quote(value)}", "POST")
        begun = time.monotonic()
        while (second := ask(ports[1]))["setting"] != value:
            if time.monotonic() - begun > 10:
                sys.exit("the other worker did not see the change")
        print(f"set in process {first['pid']}, seen in process {second['pid']}: {second['setting']!r}")


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["serve"]:
        serve(arguments[1], int(arguments[2]))
        return
    checking = "--check" in arguments
    locations = [argument for argument in arguments if argument != "--check"]
    ports = (free_port(), free_port()) if checking else PORTS
    workers = [subprocess.Popen([sys.executable, __file__, "serve", *(locations or [""]), str(port)]) for port in ports]
    try:
        for port, worker in zip(ports, workers, strict=True):
            wait_for(port, worker)
        if checking:
            check(ports)
        else:
            print(f"http://127.0.0.1:{PORTS[0]}/ (end with Ctrl-C)")
            workers[0].wait()
    except KeyboardInterrupt:
        pass
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
