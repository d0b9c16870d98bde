"""A node of a rendezvous, written from fabric/docs/rendezvous_protocol.md alone.

    rendezvous_peer.py PORT SECRET RUN_ID DEED

joins the job that meets at PORT of this machine, and prints the types of the messages that it gets. DEED: `play` takes
part in a round and reports that its workers ended well; `fail-with-0` reports a failure with the exit code 0 and has a
host name that would clear a screen; `redirect` tells the host that the job lives on elsewhere.
"""
import hashlib
import hmac
import json
import os
import socket
import struct
import sys


def mac(key, *parts):
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


class Channel:
    def __init__(self, port, secret, run_id):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        key = mac(secret.encode(), b"TorchFabric rendezvous 2 job", run_id.encode())
        own = os.urandom(32)
        self.socket.sendall(b"FAB2" + own)
        greeting = self.read(36)
        assert greeting[:4] == b"FAB2", greeting[:4]
        nonces = own + greeting[4:]

        def derive(label):
            return mac(key, b"TorchFabric rendezvous 2 ", label, nonces)

        self.socket.sendall(derive(b"client proof"))
        if self.read(1) != b"Y":
            sys.exit("refused")
        assert hmac.compare_digest(self.read(32), derive(b"server proof"))
        self.keys = {"send": derive(b"client messages"), "receive": derive(b"server messages")}
        self.counts = {"send": 0, "receive": 0}

    def read(self, size):
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                sys.exit("closed")
            data += more
        return data

    def seal(self, way, text):
        number = struct.pack(">Q", self.counts[way])
        self.counts[way] += 1
        return mac(self.keys[way], number, text)

    def send(self, kind, **fields):
        text = json.dumps({"type": kind, **fields}).encode()
        self.socket.sendall(struct.pack(">I", len(text)) + self.seal("send", text) + text)

    def receive(self):
        (length,) = struct.unpack(">I", self.read(4))
        seal = self.read(32)
        text = self.read(length)
        assert hmac.compare_digest(seal, self.seal("receive", text))
        message = json.loads(text)
        if message["type"] != "beat":
            print(message["type"], message.get("code", ""), flush=True)
        return message


def main(port, secret, run_id, deed):
    channel = Channel(int(port), secret, run_id)
    host = "evil\x1b[2J\nfabric: all is well" if deed == "fail-with-0" else "z-peer"
    node = {"id": "peer", "host": host, "pid": 7, "local_size": 1, "wanted_rank": -1, "addresses": ["127.0.0.1"],
            "port": 1}
    if deed == "redirect":
        channel.send("moved", host=node)
    channel.send("hello", node=node, min_nodes=2, max_nodes=2, round=-1, resumes=False)
    while True:
        message = channel.receive()
        if message["type"] == "beat":
            channel.send("beat")
        elif message["type"] == "prepare":
            channel.send("prepared", round=message["round"], reached=message["first"]["addresses"], failed=[], port=0,
                         problem="")
        elif message["type"] == "start":
            failed = deed == "fail-with-0"
            channel.send("ended", round=message["roster"]["round"], succeeded=not failed, failed=failed, can_retry=True,
                         forbids_retry=False, code=0, step=-1, cause="\x1b[2Jcause", report="\x1b[2Jreport\n")
        elif message["type"] == "finish":
            return


main(*sys.argv[1:])
