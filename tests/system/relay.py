#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""relay.py LISTEN_PORT TARGET_PORT: passes TCP connections on, on 127.0.0.1.

SIGUSR1 cuts: all connections are reset, new ones as well. SIGUSR2 lets them through again.
SIGSTOP and SIGCONT from outside make a link that is silent. Prints "ready" when it listens.
"""
import os
import signal
import socket
import struct
import sys
import threading

listen_port, target_port = int(sys.argv[1]), int(sys.argv[2])
lock = threading.Lock()
open_sockets = set()
cut = False


def reset(sock):
    with lock:
        if sock not in open_sockets:
            return
        open_sockets.discard(sock)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    sock.close()


def pump(source, target):
    try:
        while data := source.recv(1 << 18):
            target.sendall(data)
    except OSError:
        pass
    reset(source)
    reset(target)


def connect(sock):
    target = socket.socket()
    with lock:
        open_sockets.update((sock, target))
    try:
        target.connect(("127.0.0.1", target_port))
        for s in (sock, target):
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        reset(target)
        reset(sock)
        return
    threading.Thread(target=pump, args=(sock, target), daemon=True).start()
    pump(target, sock)


def on_signal(signum, frame):
    os.write(wake_write, b"c" if signum == signal.SIGUSR1 else b"j")


def controller():
    global cut
    while order := os.read(wake_read, 1):
        cut = order == b"c"
        if cut:
            for sock in list(open_sockets):
                reset(sock)
            print("cut", flush=True)
        else:
            print("joined", flush=True)


wake_read, wake_write = os.pipe()
signal.signal(signal.SIGUSR1, on_signal)
signal.signal(signal.SIGUSR2, on_signal)
threading.Thread(target=controller, daemon=True).start()
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", listen_port))
server.listen(16)
print("ready", flush=True)
while True:
    client, _ = server.accept()
    if cut:
        with lock:
            open_sockets.add(client)
        reset(client)
    else:
        threading.Thread(target=connect, args=(client,), daemon=True).start()
