#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Side by side with peers, in one run: medians of N rounds and ratios, never absolute claims.

  export    one NBD server, fio's nbd engine over a unix socket: offsited, nbdkit file, qemu-storage-daemon
  peer      the same with a copy on a second server over TCP loopback: protocol A and C beside
            qemu-storage-daemon's write-blocking mirror
  snapshot  1 GiB, then 1 % of its 64 KiB blocks changed: offsite, restic, borg; all encrypt
  restore   1 GiB out of a directory that is not in the page cache into a new file, durable: offsite
            (plain, encrypted), restic, borg
  s3        1 GiB out of a bucket of a real service (radosgw, its data in memory): offsite restore, beside
            curl that gets the same objects, as many at once; both onto the disk, durable, and without it:
            offsite into a file in memory, curl into files there, or dropping them
  instant   restore --instant of a volume of 1 TiB that holds another content: from the command's start to the first
            read of 4 KiB out of the snapshot, and to the first write, answered; of a map with four pages, and with
            all 16,384 (a chunk in each); out of a directory and a bucket (radosgw)
  restart   a device (tests/device: the kernel's nbd client as a program) under 4k random writes at depth 32, a peer
            in protocol C: the longest time between two answers, and that one write took, over a stop and start,
            and a kill -9 and start, --restarts times each; in sync, while a snapshot is sealed, and on a sparse
            volume of 1 TiB whose maps are full
  seal      4k random writes: p99 while a snapshot of 2 GiB is sealed, beside without; the client is at work
            before the snapshot begins, and the snapshot is not done before fio is

Rounds are interleaved (every server runs each job once a round), so that a noisy minute hits all.
"""
import argparse
import contextlib
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

JOBS = {  # name: (fio options, which figure)
    "randwrite 4k qd1": ("rw=randwrite\nbs=4k\niodepth=1", "iops"),
    "randwrite 4k qd32": ("rw=randwrite\nbs=4k\niodepth=32", "iops"),
    "randread 4k qd32": ("rw=randread\nbs=4k\niodepth=32", "iops"),
    "write 1M qd4": ("rw=write\nbs=1M\niodepth=4", "MiB/s"),
    "read 1M qd4": ("rw=read\nbs=1M\niodepth=4", "MiB/s"),
    "randwrite 4k+fsync": ("rw=randwrite\nbs=4k\niodepth=1\nfsync=1", "iops"),
}
PEER_JOBS = ["randwrite 4k qd1", "randwrite 4k qd32", "write 1M qd4", "randwrite 4k+fsync"]
RAMP_SECONDS = 0.5  # of each job, not counted
TICK = os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(condition, what, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"bench: {what}: not within {seconds} s")
        time.sleep(0.02)


class Server:
    """A running server: processes, socket, and what it costs."""

    def __init__(self, name, folder, env=None):
        self.name, self.folder, self.processes, self.env = name, folder, [], env
        self.sock = os.path.join(folder, "nbd.sock")
        self.uri = f"nbd+unix:///?socket={self.sock}"

    def start(self, *command):
        log = open(os.path.join(self.folder, "log"), "ab")
        self.processes.append(subprocess.Popen(command, stdout=log, stderr=log,
                                               env=self.env))

    def ready(self):
        def answers():
            for p in self.processes:
                if p.poll() is not None:
                    log = open(os.path.join(self.folder, "log")).read()
                    raise SystemExit(f"bench: {self.name} ended:\n{log}")
            return subprocess.run(["nbdinfo", "--size", self.uri], stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL).returncode == 0
        wait_for(answers, f"{self.name} answers")

    def cpu_seconds(self):
        total = 0
        for p in self.processes:
            fields = open(f"/proc/{p.pid}/stat").read().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / TICK
        return total

    def rss_mib(self):
        total = 0
        for p in self.processes:
            for line in open(f"/proc/{p.pid}/status"):
                if line.startswith("VmRSS:"):
                    total = max(total, int(line.split()[1]) / 1024)
        return total

    def stop(self):
        for p in reversed(self.processes):
            p.send_signal(signal.SIGTERM)
        for p in reversed(self.processes):
            try:
                p.wait(20)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()


def make_file(path, size):
    """Random content: no server gets holes or zeroes for free."""
    with open(path, "wb") as f:
        for _ in range(size >> 20):
            f.write(os.urandom(1 << 20))
        os.fsync(f.fileno())


def config(folder, name, role, backing, extra_node="", extra_volume=""):
    path = os.path.join(folder, f"{name}.conf")
    with open(path, "w") as f:
        f.write(f"""[node]
name = {name}
state-dir = {folder}/{name}
control = {folder}/{name}.ctl
{extra_node}
[volume bench]
backing = {backing}
role = {role}
{extra_volume}
""")
    return path


def offsite_alone(args, folder, image, volume_lines="", env=None):
    """A node without a peer; whether it is ready is to be seen."""
    s = Server("offsite", folder, env)
    s.start(f"{args.build}/offsited", "--config",
            config(folder, "a", "primary", image, f"nbd-listen = unix:{s.sock}", volume_lines))
    s.control = f"{folder}/a.ctl"
    return s


def offsite(args, folder, size, image):
    s = offsite_alone(args, folder, image)
    s.ready()
    return s


def on_tmpfs(folder):
    return folder.startswith("/dev/shm")


def nbdkit(args, folder, size, image):
    # It has no O_DIRECT: on a disk it answers out of the page cache, which the others do not.
    s = Server("nbdkit file" if on_tmpfs(folder) else "nbdkit file (page cache)", folder)
    s.start("nbdkit", "-f", "-U", s.sock, "file", image)
    s.ready()
    return s


def qsd_options(image, direct):
    return f"driver=file,filename={image},node-name=disk,cache.direct={'on' if direct else 'off'}," \
           f"aio={'native' if direct else 'threads'}"


def qsd(args, folder, size, image):
    s = Server("qemu-storage-daemon", folder)
    direct = not on_tmpfs(folder)
    s.start("qemu-storage-daemon", "--blockdev", qsd_options(image, direct),
            "--nbd-server", f"addr.type=unix,addr.path={s.sock}",
            "--export", "type=nbd,id=e,node-name=disk,name=,writable=on")
    s.ready()
    return s


def offsite_status(args, control):
    out = subprocess.run([f"{args.build}/offsite", "--socket", control, "status", "--json"],
                         capture_output=True)
    return out.stdout.decode() if out.returncode == 0 else ""


def offsite_peer(protocol):
    def start(args, folder, size, image):
        s = Server(f"offsite {protocol}", folder)
        port = free_port()
        copy = os.path.join(folder, "copy.img")
        s.start(f"{args.build}/offsited", "--config",
                config(folder, "b", "secondary", copy,
                       f"nbd-listen = unix:{folder}/b.sock\npeer-listen = 127.0.0.1:{port}\n"
                       "peer-plaintext = yes",
                       f"size = {size}\nprotocol = {protocol}"))
        s.start(f"{args.build}/offsited", "--config",
                config(folder, "a", "primary", image,
                       f"nbd-listen = unix:{s.sock}\npeer-plaintext = yes",
                       f"peer = 127.0.0.1:{port}\nprotocol = {protocol}"))
        s.ready()
        # A first write, so that there is something to replicate, then in sync.
        subprocess.run(["qemu-io", "-f", "raw", "-c", "write -P 7 0 4k", s.uri], check=True,
                       stdout=subprocess.DEVNULL)
        wait_for(lambda: '"streaming"' in offsite_status(args, f"{folder}/a.ctl").lower(),
                 "the peers are in sync", 120)
        return s
    return start


def qmp(path, *commands):
    """Sends commands, one after the other; returns the answers."""
    with socket.socket(socket.AF_UNIX) as s:
        wait_for(lambda: os.path.exists(path), "qemu's monitor")
        s.connect(path)
        f = s.makefile("rw")
        f.readline()
        answers = []
        for command in ({"execute": "qmp_capabilities"},) + commands:
            f.write(json.dumps(command) + "\n")
            f.flush()
            while True:
                answer = json.loads(f.readline())
                if "event" not in answer:
                    answers.append(answer)
                    break
        return answers[1:]


def qsd_mirror(args, folder, size, image):
    s = Server("qsd mirror", folder)
    direct = not on_tmpfs(folder)
    port = free_port()
    copy, monitor = os.path.join(folder, "copy.img"), os.path.join(folder, "qmp")
    with open(copy, "wb") as f:
        f.truncate(size)
    s.start("qemu-storage-daemon", "--blockdev", qsd_options(copy, direct),
            "--nbd-server", f"addr.type=inet,addr.host=127.0.0.1,addr.port={port}",
            "--export", "type=nbd,id=e,node-name=disk,name=copy,writable=on")
    wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, "the mirror's target")
    s.start("qemu-storage-daemon", "--blockdev", qsd_options(image, direct),
            "--chardev", f"socket,id=m,path={monitor},server=on,wait=off",
            "--monitor", "chardev=m",
            "--nbd-server", f"addr.type=unix,addr.path={s.sock}",
            "--export", "type=nbd,id=e,node-name=disk,name=,writable=on")
    s.ready()
    answers = qmp(monitor,
                  {"execute": "blockdev-add", "arguments": {
                      "driver": "nbd", "node-name": "copy", "export": "copy",
                      "server": {"type": "inet", "host": "127.0.0.1", "port": str(port)}}},
                  {"execute": "blockdev-mirror", "arguments": {
                      "job-id": "m", "device": "disk", "target": "copy", "sync": "full",
                      "copy-mode": "write-blocking"}})
    for a in answers:
        if "error" in a:
            raise SystemExit(f"bench: qemu's mirror: {a}")

    def in_sync():
        jobs = qmp(monitor, {"execute": "query-block-jobs"})[0]["return"]
        return jobs and jobs[0].get("ready")
    wait_for(in_sync, "qemu's mirror is ready", 120)
    return s


def fio_start(server, job, seconds, size):
    return subprocess.Popen(
        ["fio", "--output-format=json", "--name=j", "--ioengine=nbd", f"--uri={server.uri}",
         f"--size={size}", "--time_based=1", f"--runtime={seconds}", f"--ramp_time={RAMP_SECONDS}",
         "--randrepeat=0", "--norandommap=1"] +
        [f"--{o}" for o in JOBS[job][0].split("\n")], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)


def fio_side(process, job):
    """What fio says of the job's reads or writes."""
    out, error = process.communicate()
    if process.returncode:
        raise SystemExit(f"bench: fio: {error.decode()}")
    out = out.decode()
    result = json.loads(out[out.index("{"):])["jobs"][0]
    return result["read"] if "read" in JOBS[job][0].split("\n")[0] else result["write"]


def p99_us(side):
    return side["clat_ns"]["percentile"]["99.000000"] / 1e3 if side.get("clat_ns") else 0


def fio(server, job, seconds, size):
    side = fio_side(fio_start(server, job, seconds, size), job)
    value = side["iops"] if JOBS[job][1] == "iops" else side["bw"] / 1024
    return value, side["total_ios"]


def table(title, jobs, servers, results, note=""):
    print(f"\n## {title}\n")
    print("| job | " + " | ".join(servers) + " | offsite / best peer |")
    print("|---|" + "---|" * (len(servers) + 1))
    for job in jobs:
        values = {s: statistics.median(results[s][job]) for s in servers}
        own = [v for s, v in values.items() if s.startswith("offsite")]
        peers = [v for s, v in values.items()
                 if not s.startswith("offsite") and "page cache" not in s]
        ratios = " / ".join(f"{v / max(peers):.2f}" for v in own)
        cells = " | ".join(f"{v:,.0f} {JOBS[job][1]}" for v in values.values())
        print(f"| {job} | {cells} | {ratios} |")
    if note:
        print("\n" + note)
    sys.stdout.flush()


def run_servers(args, title, starters, jobs, root, size):
    results, cpu, rss = {}, {}, {}
    for n in range(args.rounds):
        for starter in starters:
            folder = tempfile.mkdtemp(dir=root)
            image = os.path.join(folder, "disk.img")
            make_file(image, size)
            server = starter(args, folder, size, image)
            try:
                idle = server.rss_mib()
                before, ios = server.cpu_seconds(), 0
                for job in jobs:
                    value, count = fio(server, job, args.seconds, size)
                    results.setdefault(server.name, {}).setdefault(job, []).append(value)
                    if "4k" in job and "fsync" not in job:
                        ios += count
                spent = server.cpu_seconds() - before
                cpu.setdefault(server.name, []).append(spent / max(ios, 1) * 1e6)
                rss.setdefault(server.name, []).append((idle, server.rss_mib()))
            finally:
                server.stop()
                shutil.rmtree(folder)
    names = list(results)
    note = "CPU seconds of the whole run per million 4k requests: " + ", ".join(
        f"{s} {statistics.median(cpu[s]):.0f}" for s in names) + \
        ". Resident MiB idle / after load: " + ", ".join(
        f"{s} {rss[s][-1][0]:.0f}/{rss[s][-1][1]:.0f}" for s in names) + "."
    table(title, jobs, names, results, note)
    return results


def change_blocks(path, size, percent, seed):
    rng = random.Random(seed)
    count = size // 65536
    with open(path, "r+b") as f:
        for block in rng.sample(range(count), max(1, count * percent // 100)):
            f.seek(block * 65536)
            f.write(rng.randbytes(65536))
        os.fsync(f.fileno())


def timed(command, **kwargs):
    start, before = time.monotonic(), os.times()
    r = subprocess.run(command, capture_output=True, **kwargs)
    if r.returncode not in (0, 1 if command[0] == "borg" else 0):
        raise SystemExit(f"bench: {command}: {r.stderr.decode()}")
    after = os.times()
    return time.monotonic() - start, (after.children_user - before.children_user +
                                      after.children_system - before.children_system)


def snapshot_offsite(args, folder, image, size, seed):
    """First and incremental snapshot through the daemon; the change is written through NBD."""
    with open(f"{folder}/key", "wb") as f:  # restic and borg encrypt too
        f.write(os.urandom(32))
    os.chmod(f"{folder}/key", 0o600)
    s = offsite_alone(args, folder, image,
                      f"store = file:{folder}/store\nstore-key-file = {folder}/key")
    try:
        s.ready()
        create = [f"{args.build}/offsite", "--socket", f"{folder}/a.ctl", "snapshot", "create",
                  "bench"]
        times, before = [], s.cpu_seconds()
        times.append((timed(create)[0], s.cpu_seconds() - before))
        rng = random.Random(seed)
        count = size // 65536
        commands = []
        for block in rng.sample(range(count), max(1, count // 100 if size <= 1 << 30 else 163)):
            commands += ["-c", f"write -q -P {rng.randrange(1, 256)} {block * 65536} 64k"]
        subprocess.run(["qemu-io", "-f", "raw"] + commands + [s.uri], check=True,
                       stdout=subprocess.DEVNULL)
        before = s.cpu_seconds()
        times.append((timed(create)[0], s.cpu_seconds() - before))
        return times
    finally:
        s.stop()


def snapshot_peer(tool, folder, image, size, seed):
    env = dict(os.environ, RESTIC_PASSWORD="x", RESTIC_REPOSITORY=f"{folder}/repo",
               BORG_PASSPHRASE="x", BORG_REPO=f"{folder}/repo", HOME=folder,
               BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK="yes")
    if tool == "restic":
        timed(["restic", "init"], env=env)
        run = ["restic", "backup", image]
        runs = [run, run]
    else:
        timed(["borg", "init", "-e", "repokey-blake2"], env=env)
        runs = [["borg", "create", "::1", image], ["borg", "create", "::2", image]]
    times = [timed(runs[0], env=env)]
    change_blocks(image, size, 1, seed)
    times.append(timed(runs[1], env=env))
    return times


def bench_snapshot(args, root):
    size, results = 1 << 30, {}
    for n in range(args.rounds):
        for tool in ("offsite", "restic", "borg"):
            folder = tempfile.mkdtemp(dir=root)
            image = os.path.join(folder, "disk.img")
            make_file(image, size)
            times = snapshot_offsite(args, folder, image, size, n) if tool == "offsite" else \
                snapshot_peer(tool, folder, image, size, n)
            results.setdefault(tool, []).append(times)
            shutil.rmtree(folder)
        folder = tempfile.mkdtemp(dir=root)
        image = os.path.join(folder, "disk.img")
        with open(image, "wb") as f:
            f.truncate(1 << 40)
        times = snapshot_offsite(args, folder, image, 1 << 40, n)
        results.setdefault("offsite, sparse 1 TiB", []).append(times)
        shutil.rmtree(folder)
    print("\n## Snapshot of 1 GiB random data into a directory, then 1 % of its 64 KiB blocks changed\n")
    print("| tool | first: s (CPU s) | 1 % changed: s (CPU s) |\n|---|---|---|")
    for tool, runs in results.items():
        first, second = (tuple(statistics.median(r[i][k] for r in runs) for k in (0, 1))
                         for i in (0, 1))
        print(f"| {tool} | {first[0]:.2f} ({first[1]:.2f}) | {second[0]:.3f} ({second[1]:.2f}) |")
    sys.stdout.flush()


def snapshot_create(args, folder, image, store, env=None):
    """A snapshot of the image, through a daemon; store: the lines of its volume."""
    s = offsite_alone(args, folder, image, store, env)
    try:
        s.ready()
        timed([f"{args.build}/offsite", "--socket", f"{folder}/a.ctl", "snapshot", "create",
               "bench"])
    finally:
        s.stop()


def backup_offsite(args, folder, image, encrypted):
    """Makes a snapshot of the image; the command that restores it."""
    secret = ""
    if encrypted:
        with open(f"{folder}/key", "wb") as f:
            f.write(os.urandom(64))
        os.chmod(f"{folder}/key", 0o600)
        secret = f"\nstore-key-file = {folder}/key"
    snapshot_create(args, folder, image, f"store = file:{folder}/store{secret}")
    return [f"{args.build}/offsite", "restore", "--store", f"file:{folder}/store", "--to",
            f"{folder}/out/disk.img"] + (["--key-file", f"{folder}/key"] if encrypted else [])


def backup_peer(tool, folder, image):
    env = dict(os.environ, RESTIC_PASSWORD="x", RESTIC_REPOSITORY=f"{folder}/repo",
               BORG_PASSPHRASE="x", BORG_REPO=f"{folder}/repo", HOME=folder,
               BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK="yes")
    if tool == "restic":
        timed(["restic", "init"], env=env)
        timed(["restic", "backup", image], env=env)
        return ["restic", "restore", "latest", "--target", f"{folder}/out"], env
    timed(["borg", "init", "-e", "repokey-blake2"], env=env)
    timed(["borg", "create", "::1", image], env=env)
    return ["borg", "extract", "::1"], env


def evict(folder):
    """Out of the page cache: who restores does so long after the backup."""
    os.sync()
    for path, _, names in os.walk(folder):
        for name in names:
            fd = os.open(os.path.join(path, name), os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def bench_restore(args, root):
    size, results = args.restore_mib << 20, {}
    for _ in range(args.rounds):
        for tool in ("offsite", "offsite, encrypted", "restic", "borg"):
            folder, env = tempfile.mkdtemp(dir=root), None
            image = os.path.join(folder, "disk.img")
            make_file(image, size)
            if tool.startswith("offsite"):
                command = backup_offsite(args, folder, image, tool != "offsite")
            else:
                command, env = backup_peer(tool, folder, image)
            os.mkdir(f"{folder}/out")
            evict(folder)
            wall, cpu = timed(command, env=env, cwd=f"{folder}/out")
            start = time.monotonic()  # offsite has made it durable already
            os.sync()
            wall += time.monotonic() - start
            results.setdefault(tool, []).append((wall, cpu))
            shutil.rmtree(folder)
    print(f"\n## Restore of {args.restore_mib} MiB random data out of a directory, read from the disk, durable\n")
    print("| tool | s (CPU s) |\n|---|---|")
    for tool, runs in results.items():
        wall, cpu = (statistics.median(r[k] for r in runs) for k in (0, 1))
        print(f"| {tool} | {wall:.2f} ({cpu:.2f}) |")


@contextlib.contextmanager
def s3_service(args):
    here = os.path.dirname(os.path.abspath(__file__))
    p = subprocess.Popen(["bash", f"{here}/s3.sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         text=True, env=dict(os.environ, BUILD=args.build))
    try:
        line = p.stdout.readline()
        if not line:
            raise SystemExit("bench: no S3 service")
        yield json.loads(line)
    finally:
        p.stdin.close()
        p.wait()


S3_TRANSFERS = 8  # at once, of a restore and of curl


def s3_curl(s3):
    return ["curl", "-sS", "--fail", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user",
            f"{s3['key']}:{s3['secret']}", "-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]


def s3_objects(s3, prefix):
    """Keys and sizes; fewer than a page of the listing."""
    text = subprocess.run(
        s3_curl(s3) + [f"{s3['endpoint']}/{s3['bucket']}?list-type=2&prefix={prefix}%2F"],
        check=True, capture_output=True, text=True).stdout
    return re.findall(r"<Key>([^<]+)</Key>.*?<Size>(\d+)</Size>", text)


def bench_s3(args, root, memory):
    size, results = args.restore_mib << 20, {}
    with s3_service(args) as s3:
        env = dict(os.environ, AWS_ACCESS_KEY_ID=s3["key"], AWS_SECRET_ACCESS_KEY=s3["secret"])
        store = f"s3://{s3['bucket']}/bench?region=us-east-1&endpoint={s3['endpoint']}&path-style=yes" \
                f"&connections={S3_TRANSFERS}"
        folder = tempfile.mkdtemp(dir=root)
        image = os.path.join(folder, "disk.img")
        make_file(image, size)
        snapshot_create(args, folder, image, f"store = {store}", env)
        objects = s3_objects(s3, "bench")
        in_memory = tempfile.mkdtemp(dir=memory)
        for where, output in (("null", "/dev/null"), ("disk", f"{folder}/object."),
                              ("memory", f"{in_memory}/object.")):
            with open(f"{folder}/urls.{where}", "w") as f:
                for i, (key, _) in enumerate(objects):
                    f.write(f'url = "{s3["endpoint"]}/{s3["bucket"]}/{key}"\n'
                            f'output = "{output}{i if where != "null" else ""}"\n')

        def restore(name, target):
            os.sync()
            results.setdefault(name, []).append(timed(
                [f"{args.build}/offsite", "restore", "--store", store, "--to", target], env=env))
            if subprocess.run(["cmp", image, target]).returncode:
                raise SystemExit("bench: s3: restored something else")
            os.unlink(target)

        def curl(name, urls):
            os.sync()
            start = time.monotonic()
            _, cpu = timed(s3_curl(s3) + ["--parallel", "--parallel-max", str(S3_TRANSFERS), "-K",
                                          urls])
            if urls.endswith("disk"):
                os.sync()
            results.setdefault(name, []).append((time.monotonic() - start, cpu))

        def drop(parent):
            for name in os.listdir(parent):
                if name.startswith("object."):
                    os.unlink(f"{parent}/{name}")
        for n in range(args.rounds):
            restore("offsite restore, durable on the disk", f"{folder}/{n}.img")
            curl("curl, durable on the disk", f"{folder}/urls.disk")
            drop(folder)
            restore("offsite restore, into memory", f"{in_memory}/{n}.img")
            curl("curl, into memory", f"{folder}/urls.memory")
            drop(in_memory)
            curl("curl, dropped", f"{folder}/urls.null")
        shutil.rmtree(folder)
    total = sum(int(n) for _, n in objects)
    print(f"\n## Restore of {args.restore_mib} MiB random data out of a bucket "
          f"({len(objects)} objects, {total >> 20} MiB), {S3_TRANSFERS} transfers at once\n")
    print("| tool | s (CPU s) | MiB/s |\n|---|---|---|")
    for tool, runs in results.items():
        wall, cpu = (statistics.median(r[k] for r in runs) for k in (0, 1))
        print(f"| {tool} | {wall:.2f} ({cpu:.2f}) | {(total >> 20) / wall:.0f} |")
    sys.stdout.flush()


INSTANT_SIZE, INSTANT_STEP = 1 << 40, 64 << 20  # a map page's


def instant_image(path, offsets):
    with open(path, "wb") as f:
        f.truncate(INSTANT_SIZE)
        for offset in offsets:
            f.seek(offset)
            f.write(os.urandom(4096))


def instant_io(s, what):
    out = subprocess.run(["qemu-io", "-f", "raw", "-c", what, s.uri], capture_output=True, text=True)
    if out.returncode or "rror" in out.stdout + out.stderr or "ailed" in out.stdout + out.stderr:
        raise SystemExit(f"bench: instant: {what}: {out.stdout}{out.stderr}")


def instant_runs(args, folder, store, offsets, env):
    """Seconds from the command to the first read, and to the first write after it; of each round."""
    image, runs = os.path.join(folder, "disk.img"), []
    instant_image(image, offsets)
    s = offsite_alone(args, folder, image, f"store = {store}\nhydrate-rate = 64K", env)
    command = [f"{args.build}/offsite", "--socket", s.control]
    try:
        s.ready()
        subprocess.run(command + ["snapshot", "create", "bench"], check=True, capture_output=True)
        for n in range(args.rounds):
            at = offsets[(n + 1) * len(offsets) // (args.rounds + 1)]
            # Another content: it is not known any more to be that snapshot, and what it has is not the last copy's.
            instant_io(s, f"write -P 1 {at} 64k")
            start = time.monotonic()
            subprocess.run(command + ["restore", "bench", "--instant"], check=True, capture_output=True)
            instant_io(s, f"read {at} 4k")
            read = time.monotonic() - start
            instant_io(s, f"write -P 2 {at + (32 << 20)} 4k")
            runs.append((read, time.monotonic() - start))
            wait_for(lambda: subprocess.run(command + ["set", "bench", "hydrate-rate=0"],
                                            capture_output=True).returncode == 0, "the rate is set")
            subprocess.run(command + ["wait", "bench", "--for", "filled", "--timeout", "10m"], check=True,
                           capture_output=True)
            subprocess.run(command + ["set", "bench", "hydrate-rate=64K"], check=True, capture_output=True)
    finally:
        s.stop()
    return runs


def bench_instant(args, root):
    print(f"\n## restore --instant of 1 TiB: ms from the command on, medians of {args.rounds} rounds\n")
    print("| map, store | first read answered | first write answered |\n|---|---|---|")
    maps = {"4 pages": [0, 1 << 30, 1 << 38, 1 << 39],
            "16,384 pages": list(range(0, INSTANT_SIZE, INSTANT_STEP))}
    with s3_service(args) as s3:
        env = dict(os.environ, AWS_ACCESS_KEY_ID=s3["key"], AWS_SECRET_ACCESS_KEY=s3["secret"])
        for name, offsets in maps.items():
            for where in ("directory", "radosgw"):
                folder = tempfile.mkdtemp(dir=root)
                store = f"file:{folder}/store" if where == "directory" else \
                    f"s3://{s3['bucket']}/instant{len(offsets)}?region=us-east-1" \
                    f"&endpoint={s3['endpoint']}&path-style=yes"
                if where == "directory":
                    os.mkdir(f"{folder}/store")
                runs = instant_runs(args, folder, store, offsets, env)
                cells = [f"{statistics.median(r[i] for r in runs) * 1e3:.0f}" for i in (0, 1)]
                print(f"| {name}, {where} | {' | '.join(cells)} |")
                sys.stdout.flush()
                shutil.rmtree(folder)


def seal_run(args, s, folder, job, size):
    """fio's writes without a snapshot, and with one that begins while fio is at work and outlasts it."""
    alone = fio_side(fio_start(s, job, args.seconds, size), job)
    writer = fio_start(s, job, args.seconds, size)
    time.sleep(RAMP_SECONDS)
    create = subprocess.Popen(
        [f"{args.build}/offsite", "--socket", f"{folder}/a.ctl", "snapshot", "create", "bench"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    sealing = fio_side(writer, job)
    early = create.poll() is not None
    why = create.communicate()[1].decode()
    if early or create.returncode:
        print(f"bench: seal: {job}: not counted: "
              f"{'the snapshot ended before fio did' if early else ''} {why[-300:]}", file=sys.stderr)
        return None
    return p99_us(alone), p99_us(sealing), alone["iops"], sealing["iops"]


def bench_seal(args, root, medium):
    """What clients feel of a snapshot. All is new to the store each time."""
    size, results = 2 << 30, {job: [] for job in PEER_JOBS[:2]}
    for _ in range(args.rounds):
        for job in results:
            folder = tempfile.mkdtemp(dir=root)
            image = os.path.join(folder, "disk.img")
            make_file(image, size)
            s = offsite_alone(args, folder, image, f"store = file:{folder}/store")
            try:
                s.ready()
                figures = seal_run(args, s, folder, job, size)
                if figures:
                    results[job].append(figures)
            finally:
                s.stop()
            shutil.rmtree(folder)
    print(f"\n## 4k random writes while a snapshot of 2 GiB is sealed, on {medium}\n")
    print("| job | p99 without: us | while sealing: us | p99, ratio | the worst run | writes a second, ratio |")
    print("|---|---|---|---|---|---|")
    for job, runs in results.items():
        if runs:
            ratios = [r[1] / r[0] for r in runs]
            a, b = (statistics.median(r[i] for r in runs) for i in range(2))
            writes = statistics.median(r[3] / r[2] for r in runs)
            print(f"| {job} | {a:,.0f} | {b:,.0f} | {statistics.median(ratios):.2f} | "
                  f"{max(ratios):.2f} | {writes:.2f} |")
        else:
            print(f"| {job} | - | - | - | - | - |")
    sys.stdout.flush()


class Device:
    """nbd_device, and what it says."""

    def __init__(self, args, folder, blocks):
        self.path = os.path.join(folder, "device")
        self.process = subprocess.Popen(
            [f"{args.build}/tests/device/nbd_device", "--listen", self.path, "--log",
             f"{folder}/log", "--blocks", str(blocks), "--depth", "32"], stdout=subprocess.PIPE)
        wait_for(lambda: os.path.exists(self.path), "the device listens")

    def line(self, words, seconds=120):
        """The next line that begins so; without reading ahead."""
        text, end = b"", time.monotonic() + seconds
        while not text.endswith(b"\n") or not text.startswith(words):
            text = b"" if text.endswith(b"\n") else text
            if time.monotonic() > end or self.process.poll() is not None:
                raise SystemExit(f"bench: the device does not say {words.decode()}")
            if select.select([self.process.stdout], [], [], 1)[0]:
                text += os.read(self.process.stdout.fileno(), 1)
        return text.decode()

    def stop(self):
        self.process.terminate()
        if self.process.wait(120):
            raise SystemExit("bench: the device met an I/O error")


def restart_nodes(args, folder, image, size, store):
    """Two nodes, a with a device; returns b, a's command and environment, and the device."""
    port = free_port()
    subprocess.run([f"{args.build}/offsite", "keygen", f"{folder}/psk"], check=True,
                   stdout=subprocess.DEVNULL)
    b = Server("b", folder)
    b.start(f"{args.build}/offsited", "--config",
            config(folder, "b", "secondary", f"{folder}/copy.img",
                   f"nbd-listen = unix:{folder}/b.sock\npeer-listen = 127.0.0.1:{port}\n"
                   f"psk-file = {folder}/psk", f"size = {size}\nprotocol = C"))
    device = Device(args, folder, min(size, args.size_mib << 20) // 4096)
    command = [f"{args.build}/tests/device/offsited", "--config",
               config(folder, "a", "primary", image,
                      f"nbd-listen = unix:{b.sock}\npsk-file = {folder}/psk",
                      f"peer = 127.0.0.1:{port}\nprotocol = C\nattach = yes\n"
                      f"store = file:{store}")]
    return b, command, dict(os.environ, OFFSITE_DEVICE=device.path), device


def restart_in_sync(args, folder):
    return "streaming" in offsite_status(args, f"{folder}/a.ctl").lower()


def restart_once(args, folder, how, start, a, device, sealing):
    """Ends the daemon a and starts it again; the new one, and the figures in seconds."""
    if sealing:
        subprocess.run([f"{args.build}/offsite", "--socket", f"{folder}/a.ctl", "snapshot",
                        "create", "bench", "--no-wait"], check=True, stdout=subprocess.DEVNULL)
        time.sleep(0.3)
    device.process.send_signal(signal.SIGUSR1)
    time.sleep(0.2)
    ended = time.monotonic()
    a.send_signal(signal.SIGTERM if how == "restart" else signal.SIGKILL)
    a.wait()
    begun = time.monotonic()
    a = start()
    report = json.loads(device.line(b"again").split(" ", 2)[2])
    return a, (report["gap"], report["write"], begun - ended, report["given"] - begun,
               report["first"] - report["given"], report["resent"])


def restart_rounds(args, root, size, sparse, sealing):
    folder = tempfile.mkdtemp(dir=root)
    image = os.path.join(folder, "disk.img")
    if sparse:
        with open(image, "wb") as f:
            f.truncate(size)
    else:
        make_file(image, size)
    b, command, env, device = restart_nodes(args, folder, image, size, f"{folder}/store")
    log = open(f"{folder}/log.a", "ab")

    def start():
        return subprocess.Popen(command, env=env, stdout=log, stderr=log)
    results, a = {"restart": [], "kill -9": []}, start()
    try:
        device.line(b"attached")
        for how in [h for h in results for _ in range(args.restarts)]:
            wait_for(lambda: restart_in_sync(args, folder), "the peers are in sync", 300)
            time.sleep(1)
            a, figures = restart_once(args, folder, how, start, a, device, sealing)
            results[how].append(figures)
        device.stop()
    finally:
        device.process.kill()
        a.terminate()
        a.wait()
        b.stop()
    shutil.rmtree(folder)
    return results


def bench_restart(args, root):
    size = args.size_mib << 20
    print(f"\n## A device over {args.restarts} restarts and as many crashes of its daemon: ms, median / worst\n")
    print("| | between two answers | one write | stop | start to sockets | to the first answer | sent again |")
    print("|---|---|---|---|---|---|---|")
    for name, volume, sparse, sealing in (("in sync", size, False, False),
                                          ("a snapshot is sealed", size, False, True),
                                          ("1 TiB, sparse", 1 << 40, True, False)):
        for how, runs in restart_rounds(args, root, volume, sparse, sealing).items():
            cells = [f"{statistics.median(r[i] for r in runs) * 1e3:.0f} / "
                     f"{max(r[i] for r in runs) * 1e3:.0f}" for i in range(5)]
            print(f"| {name}, {how} | {' | '.join(cells)} | {max(r[5] for r in runs)} |")
            sys.stdout.flush()


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", default="build")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seconds", type=float, default=3)
    p.add_argument("--size-mib", type=int, default=512)
    p.add_argument("--restore-mib", type=int, default=1024)
    p.add_argument("--restarts", type=int, default=10)
    p.add_argument("--disk", default="/var/tmp", help="folder on a real disk")
    p.add_argument("what", nargs="*", default=[],
                   help="export, peer, snapshot, restore, s3, instant, seal, restart (default: all)")
    args = p.parse_args()
    what = args.what or ["export", "peer", "snapshot", "restore", "s3", "instant", "seal", "restart"]
    args.build = os.path.abspath(args.build)
    size = args.size_mib << 20
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: ended"))  # servers and folders go, too
    with contextlib.ExitStack() as stack:
        roots = {}
        for medium, parent in (("tmpfs", "/dev/shm"), ("disk", args.disk)):
            roots[medium] = tempfile.mkdtemp(prefix="offsite-bench.", dir=parent)
            stack.callback(shutil.rmtree, roots[medium], ignore_errors=True)
        print(f"{args.rounds} rounds of {args.seconds:g} s a job, {os.cpu_count()} cores, "
              f"kernel {os.uname().release}; medians")
        for medium, root in roots.items():
            if "export" in what:
                run_servers(args, f"NBD export on {medium}", [offsite, nbdkit, qsd], list(JOBS),
                            root, size)
            if "peer" in what:
                run_servers(args, f"With a peer over TCP loopback, on {medium}",
                            [offsite_peer("A"), offsite_peer("C"), qsd_mirror], PEER_JOBS, root,
                            size)
        if "snapshot" in what:
            bench_snapshot(args, roots["disk"])
        if "restore" in what:
            bench_restore(args, roots["disk"])
        if "s3" in what:
            bench_s3(args, roots["disk"], roots["tmpfs"])
        if "instant" in what:
            bench_instant(args, roots["disk"])
        if "seal" in what:
            for medium, root in roots.items():
                bench_seal(args, root, medium)
        if "restart" in what:
            bench_restart(args, roots["disk"])


if __name__ == "__main__":
    main()
