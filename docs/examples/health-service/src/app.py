"""Tells where a parcel is."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer

from store import Store

STORE = Store({"p-1": "warehouse", "p-2": "on the road"})


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/parcels/"):
            place = STORE.place(self.path.removeprefix("/parcels/"))
            if place is not None:
                return self.answer(200, {"place": place})
        return self.answer(404, {"error": "not found"})

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
