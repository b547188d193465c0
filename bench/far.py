#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A replica far away: what it costs the client, and what catching up costs. Ratios, medians of N rounds.

  latency   4 KiB random writes at a fixed rate with an fsync now and then, as a database makes
            them: without a peer, then protocol A to one 50 ms away (each way), the same minute; the peer
            and the link step back from the client's processors and disk (they would have their own)
  catch-up  1 GiB of scattered 4 KiB blocks of a sparse 100 GiB volume, written while the nodes were
            apart: bytes read, bytes sent, and time against the slower of disk and link. Two nodes have a
            disk each, here one side's files are in memory for that; and with all on one disk, which then
            has the reads of the one beside the writes of the other
"""
import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(__file__))
from bench import Server, config, free_port, offsite_status, wait_for  # noqa: E402

RELAY = os.path.join(os.path.dirname(__file__), "..", "tests", "system", "relay.py")
SCATTERED = 262144  # blocks: 1 GiB


def pair(args, folder, size_gib, relay_options=None, far=None):
    """Node a, and b, its files in far (else beside a's), behind a relay with these options, or without one if there
    are none; relay_options None: a is alone."""
    far = far or folder
    s = Server("offsite", folder)
    s.control = f"{folder}/a.ctl"
    lines = f"size = {size_gib}G\nprotocol = A\n"
    s.peer = relay_options is not None
    if s.peer:
        port = free_port()
        link = free_port() if relay_options else port
        # They would have a machine of their own: what the client shares with them is not to be counted.
        s.start("chrt", "-i", "0", f"{args.build}/offsited", "--config",
                config(far, "b", "secondary", f"{far}/b.img",
                       f"nbd-listen = unix:{far}/b.sock\npeer-listen = 127.0.0.1:{port}\n"
                       "peer-plaintext = yes", lines))
        if relay_options:
            s.start("chrt", "-i", "0", sys.executable, RELAY, str(link), str(port), *relay_options)
        lines += f"peer = 127.0.0.1:{link}\n"
    s.start(f"{args.build}/offsited", "--config",
            config(folder, "a", "primary", f"{folder}/a.img",
                   f"nbd-listen = unix:{s.sock}\npeer-plaintext = yes", lines))
    s.ready()
    if s.peer:
        wait_for(lambda: state(args, s) == "streaming", "in sync", 120)
    return s


def volume(args, server):
    text = offsite_status(args, server.control)
    return json.loads(text)["volumes"][0] if text else {}


def state(args, server):
    return volume(args, server).get("replication", {}).get("state")


def lag(args, server):
    return volume(args, server).get("replication", {}).get("lag_bytes")


def fio(server, *options):
    done = subprocess.run(["fio", "--output-format=json", "--name=j", "--ioengine=nbd", f"--uri={server.uri}",
                           "--bs=4k", "--rw=randwrite", "--randrepeat=0", *options], capture_output=True)
    out = done.stdout.decode()
    if done.returncode:
        raise SystemExit(f"bench: fio: {done.stderr.decode()}{out[:300]}")
    return json.loads(out[out.index("{"):])["jobs"][0]


def latency(args, root):
    rows = {"alone": [], "A, 50 ms": []}
    for _ in range(args.rounds):
        for name, relay in (("alone", None), ("A, 50 ms", ["--delay", "50"])):
            folder, far = tempfile.mkdtemp(dir=root), tempfile.mkdtemp(prefix="offsite-bench.", dir=args.memory)
            s = pair(args, folder, 1, relay, far)
            # What a database writes is there already: the first write of a block is the file system's affair.
            fio(s, "--rw=write", "--bs=1M", "--size=1G", "--iodepth=4")
            wait_for(lambda: s.peer is False or lag(args, s) == 0, "the peer has it", 300)
            job = fio(s, "--size=1G", "--iodepth=4", f"--rate_iops={args.iops}", "--fsync=16",
                      "--time_based=1", f"--runtime={8 + args.seconds}", "--ramp_time=8")
            lat = job["write"]["clat_ns"]["percentile"]
            sync = job["sync"]["lat_ns"]["percentile"]
            rows[name].append((job["write"]["iops"], lat["50.000000"] / 1e3, lat["99.000000"] / 1e3,
                               sync["99.000000"] / 1e3))
            s.stop()
            shutil.rmtree(folder)
            shutil.rmtree(far)
    print(f"\n## 4 KiB random writes at {args.iops} a second, fsync every 16, protocol A\n")
    print("| | IOPS | p50 µs | p99 µs | fsync p99 µs |\n|---|---|---|---|---|")
    median = {n: [statistics.median(r[i] for r in rows[n]) for i in range(4)] for n in rows}
    for name, m in median.items():
        print(f"| {name} | {m[0]:.0f} | {m[1]:.0f} | {m[2]:.0f} | {m[3]:.0f} |")
    a, b = median["alone"], median["A, 50 ms"]
    print(f"| ratio | {b[0] / a[0]:.2f} | {b[1] / a[1]:.2f} | {b[2] / a[2]:.2f} | {b[3] / a[3]:.2f} |")


def read_bytes(pid):
    for line in open(f"/proc/{pid}/io"):
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0


def catch_up_once(args, folder, far, rate):
    """Dirty, sent and read bytes; seconds of the catch-up, of the disk alone, of the link alone."""
    s = pair(args, folder, 100, ["--rate", rate] if rate != "0" else [], far)
    tell(args, s, "disconnect")
    fio(s, "--size=100G", "--iodepth=32", f"--number_ios={SCATTERED}", "--norandommap=1")
    dirty = volume(args, s)["replication"]["out_of_sync_bytes"]
    to_disk = not far.startswith(args.memory)
    disk = scattered(far, "randwrite") if to_disk else scattered(folder, "randread")
    sent, read = volume(args, s)["replication"]["sent_bytes"], read_bytes(s.processes[-1].pid)
    start = time.monotonic()
    tell(args, s, "connect")
    tell(args, s, "wait", "--for", "streaming")
    seconds = time.monotonic() - start
    sent = volume(args, s)["replication"]["sent_bytes"] - sent
    read = read_bytes(s.processes[-1].pid) - read
    s.stop()
    return dirty, sent, read, seconds, disk, dirty / to_bytes(rate) if rate != "0" else 0


def catch_up(args, root):
    folders = []
    print("\n## Catch-up of 1 GiB scattered over 4 KiB blocks of a 100 GiB sparse volume\n")
    print("| link/s | source, target | dirty MiB | sent / dirty | read / dirty | s | disk alone s | link alone s "
          "| of the slower | each |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for rate, source, target in [(r, "disk", "disk") for r in args.rates] + [("0", "memory", "disk"),
                                                                             ("0", "disk", "memory")]:
        where = {"disk": root, "memory": args.memory}
        runs = []
        for _ in range(args.rounds):
            pair_of = [tempfile.mkdtemp(prefix="offsite-bench.", dir=where[side]) for side in (source, target)]
            folders += pair_of
            runs.append(catch_up_once(args, *pair_of, rate))
            for folder in pair_of:
                if folder.startswith(args.memory):
                    shutil.rmtree(folder)
        ratios = [seconds / max(disk, link) for *_, seconds, disk, link in runs]
        dirty, sent, read, seconds, disk, link = [statistics.median(column) for column in zip(*runs)]
        print(f"| {rate if rate != '0' else 'loopback'} | {source}, {target} | {dirty / (1 << 20):.0f} | "
              f"{sent / dirty:.3f} | {read / dirty:.3f} | {seconds:.1f} | {disk:.1f} | {link:.1f} | "
              f"{statistics.median(ratios):.2f} | {' '.join(f'{r:.2f}' for r in ratios)} |", flush=True)
    for folder in folders:  # may take minutes where the file system discards each block
        shutil.rmtree(folder, ignore_errors=True)


def tell(args, server, verb, *options):
    subprocess.run([f"{args.build}/offsite", "--socket", server.control, verb, "bench", *options], check=True,
                   stdout=subprocess.DEVNULL)


def to_bytes(text):
    return int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]]


def scattered(folder, how):
    """How long the disk needs for as many scattered 4 KiB writes into a new sparse file, as the target has to do, or
    to read them back. The file stays until the end: to discard its blocks would keep the disk busy for long."""
    path = f"{folder}/alone.img"
    with open(path, "wb") as f:
        f.truncate(100 << 30)
    for rw in ("randwrite", "randread") if how == "randread" else (how,):  # the same blocks: the same seed
        start = time.monotonic()
        subprocess.run(["fio", "--name=d", f"--filename={path}", "--direct=1", f"--rw={rw}", "--bs=4k", "--iodepth=32",
                        "--ioengine=io_uring", f"--number_ios={SCATTERED}", "--norandommap=1", "--end_fsync=1",
                        "--size=100G"], stdout=subprocess.DEVNULL, check=True)
        seconds = time.monotonic() - start
    return seconds


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", default="build")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seconds", type=float, default=5)
    p.add_argument("--iops", type=int, default=1000)
    p.add_argument("--rates", nargs="*", default=["25M", "0"], help="of the link for catch-up; 0: loopback as it is")
    p.add_argument("--disk", default="/var/tmp", help="folder on a real disk")
    p.add_argument("--memory", default="/dev/shm", help="of the peer's files for latency, of one side's for catch-up")
    p.add_argument("what", nargs="*", default=[], help="latency, catch-up (default: both)")
    args = p.parse_args()
    what = args.what or ["latency", "catch-up"]
    with contextlib.ExitStack() as stack:
        root = tempfile.mkdtemp(prefix="offsite-bench.", dir=args.disk)
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        print(f"{args.rounds} rounds, {os.cpu_count()} cores, kernel {os.uname().release}")
        if "latency" in what:
            latency(args, root)
        if "catch-up" in what:
            catch_up(args, root)


if __name__ == "__main__":
    main()
