"""A local HTTP server whose first folder says how well it serves: /good, /cut, /trickle..."""

import contextlib
import http.server
import threading
import time


class Server:
    """Serves ``files`` by their last name; ``requests`` are (path, Range header)."""

    def __init__(self):
        self.files, self.requests, self.address = {}, [], ""
        self.stuck = threading.Event()  # /stuck has sent a third
        self.end = threading.Event()

    def answer(self, handler):
        manner, name = handler.path.split("/")[1], handler.path.rpartition("/")[2]
        wanted = handler.headers.get("Range")
        self.requests.append((handler.path, wanted))
        if manner == "gone" or name not in self.files:
            handler.send_error(404)
            return
        content = self.files[name]
        start = int((wanted or "bytes=0-")[6:-1])
        if start >= len(content):
            handler.send_error(416)
            return
        body = (b"x" * len(content) if manner == "wrong" else content)[start:]
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        third = len(body) // 3
        if manner == "slow":
            for piece in (body[:third], body[third : 2 * third], body[2 * third :]):
                handler.wfile.write(piece)
                time.sleep(0.3)
        elif manner == "stuck":
            handler.wfile.write(body[:third])
            handler.wfile.flush()
            self.stuck.set()
            self.end.wait(60)
        elif manner == "trickle":
            handler.wfile.write(body[:third])
            for place in range(third, len(body)):
                handler.wfile.write(body[place : place + 1])
                if self.end.wait(0.02):
                    break
        elif manner == "always-cut" or (manner == "cut" and len(self.requests) < 3):
            handler.wfile.write(body[:third])
        else:
            handler.wfile.write(body)


@contextlib.contextmanager
def serving():
    server = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            with contextlib.suppress(ConnectionError):
                server.answer(self)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        server.address = f"http://127.0.0.1:{running.server_port}"
        try:
            yield server
        finally:
            server.end.set()
            running.shutdown()
