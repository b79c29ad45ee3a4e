"""A service that asks a node for flags by OFREP, the OpenFeature Remote Evaluation Protocol.

python3 service.py NODE_URL PORT, then http://127.0.0.1:PORT/checkout/ann@example.com. TIDINGS_TOKEN is the node's token
for reading, if it has tokens.
"""

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext


def headers():
    token = os.environ.get("TIDINGS_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def page(email):
    client = api.get_client()
    user = EvaluationContext(targeting_key=email, attributes={"email": email})
    # The values here count if the node cannot be reached, or does not know the flag.
    greeting = client.get_string_value("greeting", "hello", user)
    checkout = "new" if client.get_boolean_value("checkout", False, user) else "old"
    return f"{greeting}, {email}: the {checkout} checkout\n"


class Checkout(BaseHTTPRequestHandler):
    def do_GET(self):
        is_found = self.path.startswith("/checkout/")
        body = page(unquote(self.path.removeprefix("/checkout/"))) if is_found else "see /checkout/EMAIL\n"
        self.send_response(200 if is_found else 404)
        self.send_header("content-type", "text/plain; charset=utf-8")
        self.end_headers()
        self.wfile.write(body.encode())


node_url, port = sys.argv[1], int(sys.argv[2])
api.set_provider(OFREPProvider(node_url, headers_factory=headers))
server = ThreadingHTTPServer(("127.0.0.1", port), Checkout)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
