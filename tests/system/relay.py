#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""relay.py LISTEN_PORT TARGET_PORT [options]: passes TCP connections on, on 127.0.0.1.

  --delay MS       each way (default 0)
  --rate BYTES     per second, each way (K, M, G; default 0: no limit)
  --buffer BYTES   held back each way at most, as a TCP window would (default 64M)
  --control PATH   a unix socket for orders
  --bind, --target ADDRESS  instead of 127.0.0.1 (e.g. in a network namespace)

relay.py --send PATH ORDER...: gives a running relay one order, prints its answer, exits 1 on a wrong one.

Orders, one a line, one line of answer each; DIR is up (from who connects), down, or both (default):
  cut              all connections are reset, new ones as well
  join             ... new ones are let through again
  reset            all connections are reset once
  reset-after N [DIR]  ... when N further bytes have passed: in the middle of a frame
  hold [DIR]       nothing passes, nothing is lost: a silent link, or one silent one way
  drop [DIR]       what comes is thrown away: connections that lost something are reset by `pass`
  pass             no hold, no drop
  delay MS, rate BYTES
  stats            JSON: connections, and the bytes passed up and down

SIGUSR1 is cut, SIGUSR2 join; SIGSTOP and SIGCONT from outside also make a link that is silent.
Prints "ready" when it listens, "cut" and "joined" after those signals.
"""
import argparse
import collections
import json
import os
import selectors
import signal
import socket
import struct
import sys
import time

CHUNK = 1 << 18
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def size(text):
    return int(float(text[:-1]) * UNITS[text[-1]]) if text[-1:] in UNITS else int(text)


class Way:
    """One direction of all connections: what the link does to it."""

    def __init__(self):
        self.passed = self.reset_after = 0
        self.held = self.dropping = False


class Pipe:
    """One direction of one connection."""

    def __init__(self, relay, way, source, target):
        self.relay, self.way, self.source, self.target = relay, way, source, target
        self.queue = collections.deque()  # (when it may leave, bytes)
        self.bytes = 0
        self.free_at = 0.0  # when the link has sent what is queued
        self.ended = self.closed = self.lost = False

    def wants_read(self):
        return not self.ended and not (self.way.held and self.bytes) and self.bytes < self.relay.buffer

    def due(self):
        """When something can be done about the head of the queue; None: not by waiting."""
        if self.way.held or self.closed or not (self.queue or self.ended):
            return None
        return self.queue[0][0] if self.queue else 0.0

    def read(self):
        try:
            data = self.source.recv(CHUNK)
        except BlockingIOError:
            return
        if not data:
            self.ended = True
            return
        if self.way.dropping:
            self.lost = True
            return
        now = time.monotonic()
        self.free_at = max(now, self.free_at) + (len(data) / self.relay.rate if self.relay.rate else 0)
        self.queue.append((self.free_at + self.relay.delay, memoryview(data)))
        self.bytes += len(data)

    def write(self, now):
        """Passes on what is due; OSError when the target is gone, Reset when the order says so."""
        while self.queue and self.queue[0][0] <= now and not self.way.held:
            when, data = self.queue[0]
            if self.way.reset_after:
                data = data[: self.way.reset_after]
            try:
                sent = self.target.send(data)
            except BlockingIOError:
                return False
            self.way.passed += sent
            self.bytes -= sent
            self.queue[0] = (when, self.queue[0][1][sent:])
            if not self.queue[0][1]:
                self.queue.popleft()
            if self.way.reset_after:
                self.way.reset_after -= sent
                if not self.way.reset_after:
                    raise ConnectionResetError
        if self.ended and not self.queue and not self.closed and not self.way.held:
            self.closed = True
            self.target.shutdown(socket.SHUT_WR)
        return True


class Relay:
    def __init__(self, options):
        self.delay, self.rate = options.delay / 1000, size(options.rate)
        self.buffer = size(options.buffer)
        self.target = (options.target, options.target_port)
        self.up, self.down = Way(), Way()
        self.pairs = set()  # of (pipe up, pipe down)
        self.is_cut = False
        self.selector = selectors.DefaultSelector()
        self.listener = self.listen(socket.AF_INET, (options.bind, options.listen_port))
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_write, False)
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
        self.selector.register(self.wake_read, selectors.EVENT_READ, self.signalled)
        if options.control:
            self.control = self.listen(socket.AF_UNIX, options.control)
            self.selector.register(self.control, selectors.EVENT_READ, self.accept_order)

    @staticmethod
    def listen(family, address):
        server = socket.socket(family)
        if family == socket.AF_INET:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen(16)
        server.setblocking(False)
        return server

    # ---- connections

    def accept(self, _):
        client, _ = self.listener.accept()
        if self.is_cut:
            self.kill(client)
            return
        server = socket.socket()
        try:
            server.connect(self.target)
        except OSError:
            self.kill(client)
            server.close()
            return
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
        self.pairs.add((Pipe(self, self.up, client, server), Pipe(self, self.down, server, client)))

    @staticmethod
    def kill(sock):
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass
        sock.close()

    def reset(self, pair):
        self.pairs.discard(pair)
        for pipe in pair:
            if pipe.source in self.selector.get_map():
                self.selector.unregister(pipe.source)
            self.kill(pipe.source)

    def reset_all(self):
        for pair in list(self.pairs):
            self.reset(pair)

    def arm(self, pair, blocked):
        for pipe, back in (pair, pair[::-1]):
            events = selectors.EVENT_READ if pipe.wants_read() else 0
            if back in blocked:
                events |= selectors.EVENT_WRITE
            known = self.selector.get_map().get(pipe.source)
            if not events:
                if known:
                    self.selector.unregister(pipe.source)
            elif not known:
                self.selector.register(pipe.source, events, pair)
            elif known.events != events:
                self.selector.modify(pipe.source, events, pair)

    def turn(self):
        """Moves what is due; the seconds until something else will be, or None."""
        now, dues = time.monotonic(), []
        for pair in list(self.pairs):
            blocked = set()
            try:
                for pipe in pair:
                    if pipe.due() is not None and not pipe.write(now):
                        blocked.add(pipe)
            except OSError:
                self.reset(pair)
                continue
            if all(pipe.closed for pipe in pair):
                self.reset(pair)
                continue
            dues += [p.due() for p in pair if p not in blocked and p.due() is not None]
            self.arm(pair, blocked)
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def run(self):
        while True:
            for key, events in self.selector.select(self.turn()):
                if callable(key.data):
                    key.data(key.fileobj)
                elif events & selectors.EVENT_READ and key.data in self.pairs:
                    pipe = next(p for p in key.data if p.source is key.fileobj)
                    try:
                        pipe.read()
                    except OSError:
                        self.reset(key.data)

    # ---- orders

    def signalled(self, _):
        for order in os.read(self.wake_read, 64).decode():
            print(self.obey("cut" if order == "c" else "join"), flush=True)

    def accept_order(self, _):
        client, _ = self.control.accept()
        with client, client.makefile("rw") as lines:
            client.settimeout(5)
            try:
                for line in lines:
                    lines.write(self.obey(line) + "\n")
                    lines.flush()
            except OSError:
                pass

    def ways(self, name):
        return {"up": [self.up], "down": [self.down], "both": [self.up, self.down]}[name]

    def obey(self, line):
        verb, *words = line.split() or [""]
        try:
            return getattr(self, "order_" + verb.replace("-", "_"))(*words)
        except (AttributeError, KeyError, TypeError, ValueError):
            return "wrong order: " + line.strip()

    def order_cut(self):
        self.is_cut = True
        self.reset_all()
        return "cut"

    def order_join(self):
        self.is_cut = False
        return "joined"

    def order_reset(self):
        self.reset_all()
        return "ok"

    def order_reset_after(self, count, name="both"):
        for way in self.ways(name):
            way.reset_after = size(count)
        return "ok"

    def order_hold(self, name="both"):
        for way in self.ways(name):
            way.held = True
        return "ok"

    def order_drop(self, name="both"):
        for way in self.ways(name):
            way.dropping = True
        return "ok"

    def order_pass(self):
        for way in (self.up, self.down):
            way.held = way.dropping = False
        for pair in list(self.pairs):
            if any(pipe.lost for pipe in pair):
                self.reset(pair)
        return "ok"

    def order_delay(self, ms):
        self.delay = float(ms) / 1000
        return "ok"

    def order_rate(self, rate):
        self.rate = size(rate)
        return "ok"

    def order_stats(self):
        return json.dumps({"connections": len(self.pairs), "up": self.up.passed, "down": self.down.passed})


def send_order(path, words):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall((" ".join(words) + "\n").encode())
        sock.shutdown(socket.SHUT_WR)
        answer = sock.makefile().read().strip()
    print(answer)
    return 1 if not answer or answer.startswith("wrong") else 0


def main():
    if sys.argv[1:2] == ["--send"]:
        sys.exit(send_order(sys.argv[2], sys.argv[3:]))
    parser = argparse.ArgumentParser()
    parser.add_argument("listen_port", type=int)
    parser.add_argument("target_port", type=int)
    parser.add_argument("--delay", type=float, default=0)
    parser.add_argument("--rate", default="0")
    parser.add_argument("--buffer", default="64M")
    parser.add_argument("--control")
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--target", default="127.0.0.1")
    relay = Relay(parser.parse_args())
    for number, order in ((signal.SIGUSR1, b"c"), (signal.SIGUSR2, b"j")):
        signal.signal(number, lambda *_, order=order: os.write(relay.wake_write, order))
    print("ready", flush=True)
    relay.run()


if __name__ == "__main__":
    main()
