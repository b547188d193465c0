#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A service that does what no healthy one does. Keeps objects in memory, checks signatures and checksums of
every request by itself, and misbehaves by the bucket's name:

  plain       not at all                      storm       the first three of each kind: 503, Retry-After
  resets      stores, then resets unanswered  truncate    the first answer to GET ends in the middle
  trickle     GET sends a byte a second       hang        no answer at all
  elsewhere   in the region eu-far-1          simple      knows neither CRC32C nor conditions
  ignorant    ignores conditions              disordered  lists in the wrong order
  cutlist     the first page of a list is cut damaging    flips a bit of the first two PUTs' bodies
  forgetful   does not throw parts away at first, refuses the second of each upload, and says that all of them
              are of 2020
  stuck       does not answer when the second part is put
  stubborn    nor when the parts are to be thrown away then
  busy        429 for objects, and not to be asked again for an hour
  late        lists what was there two seconds ago
  halfdone    200 with an error in the body   noranges    answers a range with everything
  otherrange  with another range              broken      always 500
  expired     takes only the keys of the instance's second answer
  skewed      RequestTimeTooSkewed            readonly    AccessDenied for PUT
  patient     the first PUT: 429, Retry-After by number and by date
  slow        the first PUTs wait until there are three, each takes a fifth of a second, and how many there
              were at once is counted
  early       refuses objects to the instance's first keys, without saying why
  forbidden   AccessDenied for everything     lost        in another region, and does not say which
  versioned   keeps versions                  blind       so, and does not list them
  locked      so, and locks objects           dropper     so, but not those put in parts
  faithless   takes the headers of a lock, and does not lock
  frozen      GLACIER and DEEP_ARCHIVE are archives, from which an object comes back in a second or two
  tiered      INTELLIGENT_TIERING is one, which no list tells

Prints its port. Also the instance's and the container's credentials: /latest/..., /container; and a proxy
that sends everything to itself, tunnels to its TLS port too, which /latest/tls/DIR opens. A bucket may be part
of the host's name at Amazon's accelerated endpoint."""

import base64
import hashlib
import hmac
import http.server
import itertools
import json
import re
import select
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
from datetime import datetime, timedelta, timezone

SECRETS = {"AKIAFAKE": "fakesecret", "AKIAROLE1": "rolesecret1", "AKIAROLE2": "rolesecret2"}
LOCK = threading.Lock()
OBJECTS = {}  # bucket -> key -> (body, headers)
UPLOADS = {}  # id -> (bucket, key, headers, parts, begun)
NUMBERS = itertools.count(1)  # of uploads
SEEN = {}  # (bucket, method, what) -> count
REQUESTS = {}  # bucket -> kind -> count
HIDDEN = {}  # path -> object: lost, until it is asked for once more
ORDER = {}  # bucket -> "KIND what" of each
VERSIONS = {}  # bucket -> key -> [Version], the newest last
THAWED = {}  # (bucket, key) -> when it can be read
VERSIONED = ("versioned", "blind", "locked", "dropper")
LOCKING = ("locked", "dropper", "faithless")
ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")
THAW_SECONDS = [1.5]
LATER = [0.0]  # seconds by which it is later here
ROLE = {"answers": 0, "tokens": set()}
TLS = {}  # port
LATE_SECONDS = 2
HISTORY = {}  # bucket "late" -> key -> [(when, there it is from then on)]
ACCELERATED = ".s3-accelerate.amazonaws.com"
CUSTOMER = "x-amz-server-side-encryption-customer-"


def crc32c_table():
    table = []
    for i in range(256):
        for _ in range(8):
            i = (i >> 1) ^ (0x82F63B78 if i & 1 else 0)
        table.append(i)
    return table


TABLE = crc32c_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return base64.b64encode(struct.pack(">I", crc ^ 0xFFFFFFFF)).decode()


def sign(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def now():
    return time.time() + LATER[0]


class Refused(Exception):
    def __init__(self, status, code, headers=None, message="it & that"):
        super().__init__(code)
        self.status, self.code, self.headers, self.message = status, code, headers or {}, message


class Version:
    def __init__(self, number, body, headers, lock):
        self.id, self.body, self.headers, self.lock = "v%d+/=" % number, body, headers, lock

    def is_locked(self):
        return self.lock is not None and self.lock[1].timestamp() > now()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, e):
        text = "<?xml version='1.0'?><Error><Code>%s</Code><Message>%s</Message></Error>" % (
            e.code, e.message.replace("&", "&amp;"))
        self.answer(e.status, b"" if self.command == "HEAD" else text.encode(), e.headers)

    def drop(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    # ---- signature ---------------------------------------------------------------------------

    def check_signature(self, path, query, body):
        match = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d+)/([^/]+)/s3/aws4_request, *"
            r"SignedHeaders=([^,]+), *Signature=([0-9a-f]+)",
            self.headers.get("Authorization", ""))
        if not match:
            raise Refused(403, "AccessDenied")
        key, date, self.region, signed, signature = match.groups()
        self.key_id = key
        if key not in SECRETS:
            raise Refused(403, "InvalidAccessKeyId")
        self.token_checked = key.startswith("AKIAROLE")
        if self.token_checked and self.headers.get("x-amz-security-token") != "token-" + key:
            raise Refused(400, "InvalidToken")
        pairs = sorted(urllib.parse.parse_qsl(query, keep_blank_values=True))
        canonical_query = "&".join(
            urllib.parse.quote(a, safe="-_.~") + "=" + urllib.parse.quote(b, safe="-_.~") for a, b in pairs)
        headers = "".join(
            "%s:%s\n" % (name, " ".join(self.headers.get(name, "").split())) for name in signed.split(";"))
        for name in self.headers:
            if name.lower().startswith("x-amz-") and name.lower() not in signed.split(";"):
                raise Refused(403, "AccessDenied")
        payload = self.headers.get("x-amz-content-sha256", "")
        request = "\n".join([self.command, urllib.parse.quote(path, safe="/-_.~"), canonical_query, headers,
                             signed, payload])
        scope = "%s/%s/s3/aws4_request" % (date, self.region)
        text = "\n".join(["AWS4-HMAC-SHA256", self.headers["x-amz-date"], scope,
                          hashlib.sha256(request.encode()).hexdigest()])
        secret = sign(sign(sign(sign(("AWS4" + SECRETS[key]).encode(), date), self.region), "s3"), "aws4_request")
        if sign(secret, text).hex() != signature:
            raise Refused(403, "SignatureDoesNotMatch")
        if payload != hashlib.sha256(body).hexdigest():
            raise Refused(400, "XAmzContentSHA256Mismatch")

    def check_body(self, body):
        crc, md5 = self.headers.get("x-amz-checksum-crc32c"), self.headers.get("Content-MD5")
        if crc is not None and crc != crc32c(body):
            raise Refused(400, "BadDigest")
        if md5 is not None and md5 != base64.b64encode(hashlib.md5(body).digest()).decode():
            raise Refused(400, "BadDigest")
        self.sums = [name for name, value in (("crc32c", crc), ("md5", md5)) if value]

    # ---- roles -------------------------------------------------------------------------------

    def role(self, path):
        if path.startswith("/latest/uploads/"):  # how many there are: for tests
            return self.answer(200, b"%d" % sum(u[0] == path[16:] for u in UPLOADS.values()))
        if path.startswith("/latest/seen/"):
            return self.answer(200, b"%d" % SEEN.get(path[13:], 0))
        if path.startswith("/latest/tls/"):
            return self.answer(200, b"%d" % tls_open(path[11:]))
        if path.startswith("/latest/plant/"):  # an upload of somebody's, long ago
            bucket, key = path[14:].split("/", 1)
            UPLOADS["id-%d+/=" % next(NUMBERS)] = (bucket, key, {"lock": None, "sums": None}, {}, "2020-01-01T00:00:00.000Z")
            return self.answer(200)
        if path == "/latest/short":  # credentials that are about to expire
            ROLE["hours"] = 0.05
            return self.answer(200)
        if path.startswith("/latest/later/"):  # for locks and archives it is later now, by these seconds
            LATER[0] += float(path[14:])
            return self.answer(200)
        if path.startswith("/latest/thaw/"):  # how long it takes from now on
            THAW_SECONDS[0] = float(path[13:])
            return self.answer(200)
        if path.startswith("/latest/versions/"):
            return self.answer(200, b"%d" % sum(map(len, VERSIONS.get(path[17:], {}).values())))
        if path.startswith("/latest/requests/"):
            return self.answer(200, json.dumps(REQUESTS.get(path[17:], {})).encode())
        if path.startswith("/latest/hide/"):
            bucket, key = path[13:].split("/", 1)
            with LOCK:
                if path in HIDDEN:
                    OBJECTS[bucket][key] = HIDDEN.pop(path)
                else:
                    HIDDEN[path] = OBJECTS[bucket].pop(key)
            return self.answer(200)
        if path.startswith("/latest/order/"):
            return self.answer(200, "\n".join(ORDER.get(path[14:], [])).encode() + b"\n")
        if path == "/container":
            if self.headers.get("Authorization") != "let me in":
                return self.answer(401)
        elif path == "/latest/api/token":
            if self.command != "PUT" or not self.headers.get("X-aws-ec2-metadata-token-ttl-seconds"):
                return self.answer(400)
            token = "imds-%d" % len(ROLE["tokens"])
            ROLE["tokens"].add(token)
            return self.answer(200, token.encode())
        elif self.headers.get("X-aws-ec2-metadata-token") not in ROLE["tokens"]:
            return self.answer(401)
        if path == "/latest/meta-data/iam/security-credentials/":
            return self.answer(200, b"the-role\n")
        ROLE["answers"] += 1
        number = 1 if ROLE["answers"] == 1 else 2
        ends = datetime.now(timezone.utc) + timedelta(hours=ROLE.get("hours", 6))
        return self.answer(200, json.dumps({
            "Code": "Success", "AccessKeyId": "AKIAROLE%d" % number, "SecretAccessKey": "rolesecret%d" % number,
            "Token": "token-AKIAROLE%d" % number, "Expiration": ends.strftime("%Y-%m-%dT%H:%M:%SZ")}).encode())

    # ---- objects -----------------------------------------------------------------------------

    def handle_all(self):
        if self.path.startswith("http://"):  # of a client that takes us for its proxy
            self.path = "/" + self.path.split("/", 3)[3]
            SEEN["proxied"] = SEEN.get("proxied", 0) + 1
        path, _, query = self.path.partition("?")
        path = urllib.parse.unquote(path)
        host = self.headers.get("Host", "")
        SEEN["host-" + host] = SEEN.get("host-" + host, 0) + 1
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path.startswith("/latest/") or path == "/container":
            return self.role(path)
        bucket, _, key = path[1:].partition("/")
        if host.endswith(ACCELERATED):
            bucket, key = host[:-len(ACCELERATED)], path[1:]
        self.bucket, self.key = bucket, key
        self.query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        if bucket == "damaging" and self.command == "PUT" and self.seen("put") <= 2:
            body = bytes([body[0] ^ 1]) + body[1:]
        try:
            self.check_signature(path, query, body)
            self.check_body(body)
            self.count()
            self.misbehave()
            self.serve(body)
        except Refused as e:
            self.refuse(e)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_all

    def do_CONNECT(self):
        """Wherever it is to: to our own TLS port."""
        SEEN["connect-" + self.path] = SEEN.get("connect-" + self.path, 0) + 1
        self.close_connection = True
        with socket.create_connection(("127.0.0.1", TLS["port"])) as there:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            sides = {self.connection: there, there: self.connection}
            while True:
                for side in select.select(list(sides), [], [])[0]:
                    data = side.recv(65536)
                    if not data:
                        return
                    sides[side].sendall(data)

    def seen(self, what):
        with LOCK:
            place = (self.bucket, self.command, what)
            SEEN[place] = SEEN.get(place, 0) + 1
            return SEEN[place]

    def count(self):
        kind = "LIST" if self.command == "GET" and not self.key else self.command
        with LOCK:
            counts = REQUESTS.setdefault(self.bucket, {})
            counts[kind] = counts.get(kind, 0) + 1
            what = self.key or self.query.get("prefix", "")
            ORDER.setdefault(self.bucket, []).append(kind + " " + what)
            sse = self.headers.get("x-amz-server-side-encryption")
            if sse:
                place = "sse-%s-%s" % (self.command, sse)
                SEEN[place] = SEEN.get(place, 0) + 1

    def misbehave(self):
        bucket = self.bucket
        if bucket == "storm" and self.seen(self.path) <= 3:
            raise Refused(503, "SlowDown", {"Retry-After": "0"})
        if bucket == "broken" and self.key:
            raise Refused(500, "InternalError")
        if bucket == "hang" and self.key:
            time.sleep(3600)
        if bucket == "elsewhere" and self.region != "eu-far-1":
            raise Refused(301, "PermanentRedirect", {"x-amz-bucket-region": "eu-far-1"})
        if bucket == "simple" and (self.headers.get("If-None-Match") or "crc32c" in self.sums or
                                   self.headers.get("x-amz-checksum-algorithm")):
            raise Refused(501, "NotImplemented")
        if bucket == "patient" and self.command == "PUT" and self.seen("put") <= 2:
            when = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 2))
            raise Refused(429, "TooManyRequests", {"Retry-After": "1" if SEEN[(bucket, "PUT", "put")] == 1 else when})
        if bucket == "slow" and self.command == "PUT":
            with LOCK:
                SEEN["now"] = SEEN.get("now", 0) + 1
                SEEN["most"] = max(SEEN.get("most", 0), SEEN["now"])
            for _ in range(1000):
                if SEEN["most"] >= 3:
                    break
                time.sleep(0.02)
            time.sleep(0.2)
            with LOCK:
                SEEN["now"] -= 1
        if bucket in ("stuck", "stubborn") and self.query.get("partNumber") == "2":
            SEEN["stuck"] = SEEN.get("stuck", 0) + 1
            time.sleep(3600)
        if bucket == "stubborn" and self.command == "DELETE":
            time.sleep(3600)
        if bucket == "busy" and self.key:
            raise Refused(429, "SlowDown", {"Retry-After": "3600"})
        if bucket == "early" and self.key and self.key_id != "AKIAROLE2":
            raise Refused(403, "AccessDenied")
        if bucket == "forbidden":
            raise Refused(403, "AccessDenied")
        if bucket == "lost":
            raise Refused(301, "PermanentRedirect")
        if bucket == "expired" and self.key_id != "AKIAROLE2":
            raise Refused(400, "ExpiredToken")
        if bucket == "skewed":
            raise Refused(403, "RequestTimeTooSkewed")
        if bucket == "readonly" and self.command == "PUT":
            raise Refused(403, "AccessDenied")

    def serve(self, body):
        objects = OBJECTS.setdefault(self.bucket, {})
        if self.bucket == "missing":
            raise Refused(404, "NoSuchBucket")
        if not self.key:
            if "versions" in self.query:
                return self.versions(objects)
            return self.uploads() if "uploads" in self.query else self.list(objects)
        if "retention" in self.query:
            return self.retention(objects, body.decode())
        if "restore" in self.query:
            return self.thaw(objects, body.decode())
        if self.command == "PUT":
            return self.put_part(body) if "uploadId" in self.query else self.put(objects, body)
        if self.command == "POST":
            return self.create() if "uploads" in self.query else self.complete(objects, body)
        if self.command == "DELETE":
            if "uploadId" in self.query:
                if self.bucket == "forgetful" and self.seen("abort") == 1:
                    raise Refused(403, "AccessDenied")
                UPLOADS.pop(self.query["uploadId"], None)
            elif self.bucket in VERSIONED:
                return self.delete_version(objects)
            else:
                objects.pop(self.key, None)
                self.note(self.key, False)
            return self.answer(204)
        return self.get(objects)

    def note(self, key, there):
        if self.bucket == "late":
            HISTORY.setdefault(key, []).append((time.monotonic(), there))

    def is_listed(self, key):
        """As it was two seconds ago."""
        listed = False
        for when, there in HISTORY.get(key, []):
            if when <= time.monotonic() - LATE_SECONDS:
                listed = there
        return listed

    # ---- versions, locks, archives -----------------------------------------------------------

    def lock_wanted(self, headers):
        mode, date = (headers.get("x-amz-object-lock-" + what) for what in ("mode", "retain-until-date"))
        if not mode:
            return None
        if self.bucket not in LOCKING or not date:
            raise Refused(400, "InvalidRequest")
        return (mode, datetime.strptime(date, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc))

    def show(self, objects, key):
        """What a plain request sees of the versions."""
        versions = VERSIONS.setdefault(self.bucket, {}).setdefault(key, [])
        if versions and versions[-1].body is not None:
            objects[key] = (versions[-1].body, dict(versions[-1].headers, **{"x-amz-version-id": versions[-1].id}))
        else:
            objects.pop(key, None)

    def add_version(self, objects, key, body, headers, lock):
        SEEN["version"] = SEEN.get("version", 0) + 1
        version = Version(SEEN["version"], body, headers, lock)
        VERSIONS.setdefault(self.bucket, {}).setdefault(key, []).append(version)
        self.show(objects, key)
        return version

    def delete_version(self, objects):
        with LOCK:
            if "versionId" not in self.query:
                marker = self.add_version(objects, self.key, None, {}, None)
                return self.answer(204, b"", {"x-amz-delete-marker": "true", "x-amz-version-id": marker.id})
            for version in VERSIONS.get(self.bucket, {}).get(self.key, []):
                if version.id != self.query["versionId"]:
                    continue
                if version.is_locked():
                    raise Refused(403, "AccessDenied")  # some say why, some do not
                VERSIONS[self.bucket][self.key].remove(version)
                self.show(objects, self.key)
                return self.answer(204)
            raise Refused(404, "NoSuchVersion")

    def versions(self, objects):
        prefix, text = self.query.get("prefix", ""), ""
        if self.bucket == "blind":
            raise Refused(403, "AccessDenied")
        if self.bucket not in VERSIONED:
            text = "".join("<Version><Key>%s</Key><VersionId>null</VersionId></Version>" % key
                           for key in sorted(objects) if key.startswith(prefix))
        for key, versions in sorted(VERSIONS.get(self.bucket, {}).items()):
            for version in reversed(versions if key.startswith(prefix) else []):
                what = "DeleteMarker" if version.body is None else "Version"
                text += "<%s><Key>%s</Key><VersionId>%s</VersionId></%s>" % (what, key, version.id, what)
        return self.answer(200, ("<ListVersionsResult>%s</ListVersionsResult>" % text).encode())

    def retention(self, objects, body):
        if self.bucket not in LOCKING:
            raise Refused(400, "InvalidRequest", message="bucket object lock not configured")
        if self.key not in objects:
            raise Refused(404, "NoSuchKey")
        if self.bucket == "faithless":
            if self.command == "PUT":
                return self.answer(200)
            raise Refused(404, "NoSuchObjectLockConfiguration")
        versions = VERSIONS[self.bucket][self.key]
        wanted = self.query.get("versionId", versions[-1].id)
        version = [v for v in versions if v.id == wanted][0]
        if self.command == "GET":
            if version.lock is None:
                raise Refused(404, "NoSuchObjectLockConfiguration")
            return self.answer(200, ("<Retention><Mode>%s</Mode><RetainUntilDate>%s</RetainUntilDate></Retention>" % (
                version.lock[0], version.lock[1].strftime("%Y-%m-%dT%H:%M:%S.000000000Z"))).encode())
        if "md5" not in self.sums:
            raise Refused(400, "InvalidRequest", message="Content-MD5 is missing")
        mode, date = (re.search("<%s>(.*?)</" % what, body).group(1) for what in ("Mode", "RetainUntilDate"))
        lock = self.lock_wanted({"x-amz-object-lock-mode": mode, "x-amz-object-lock-retain-until-date": date})
        if version.is_locked() and (lock[0] != version.lock[0] or lock[1] < version.lock[1]):
            raise Refused(403, "AccessDenied")
        version.lock = lock
        return self.answer(200)

    def is_archived(self, headers):
        kind = headers.get("x-amz-storage-class")
        return kind in ARCHIVES if self.bucket == "frozen" else self.bucket == "tiered" and kind == "INTELLIGENT_TIERING"

    def restore_header(self):
        when = THAWED.get((self.bucket, self.key))
        if when is None:
            return {}
        return {"x-amz-restore": 'ongoing-request="true"' if when > now() else
                'ongoing-request="false", expiry-date="Fri, 01 Jan 2100 00:00:00 GMT"'}

    def thaw(self, objects, body):
        if self.key not in objects:
            raise Refused(404, "NoSuchKey")
        if self.bucket not in ("frozen", "tiered"):
            raise Refused(400, "InvalidArgument")  # as a service that has no archives
        if not self.is_archived(objects[self.key][1]):
            raise Refused(403, "InvalidObjectState")
        days = r"<Days>\d+</Days>" if self.bucket == "frozen" else r"<RestoreRequest[^>]*>"
        if not re.search(days + r"<GlacierJobParameters><Tier>(Standard|Bulk|Expedited)</Tier>", body):
            raise Refused(400, "MalformedXML")
        when = THAWED.get((self.bucket, self.key))
        if when is not None and when > now():
            raise Refused(409, "RestoreAlreadyInProgress")
        THAWED.setdefault((self.bucket, self.key), now() + THAW_SECONDS[0])
        return self.answer(202 if when is None else 200)

    # ---- puts --------------------------------------------------------------------------------

    def store(self, objects, key, body, headers, condition, lock=None):
        with LOCK:
            if condition and self.bucket not in ("ignorant", *VERSIONED) and key in objects:
                raise Refused(412, "PreconditionFailed")
            if self.bucket in VERSIONED:
                return {"x-amz-version-id": self.add_version(objects, key, body, headers, lock).id}
            objects[key] = (body, headers)
            self.note(key, True)
            return {}

    def kept(self):
        return {name: value for name, value in self.headers.items() if name.lower().startswith("x-amz-")
                and ("meta" in name or "class" in name or "tagging" in name or "encryption" in name)
                and name.lower() != CUSTOMER + "key"}

    def check_customer_key(self, headers):
        """As it was when the object was begun."""
        wanted, given = headers.get(CUSTOMER + "key-MD5"), self.headers.get(CUSTOMER + "key")
        if (wanted is None) != (given is None):
            raise Refused(400, "InvalidRequest", message="the object needs its key, and no other does")
        if given is not None:
            md5 = base64.b64encode(hashlib.md5(base64.b64decode(given)).digest()).decode()
            if self.headers.get(CUSTOMER + "algorithm") != "AES256" or not wanted == md5 == self.headers.get(
                    CUSTOMER + "key-MD5"):
                raise Refused(403, "AccessDenied")
            SEEN["keys"] = SEEN.get("keys", 0) + 1

    def put(self, objects, body):
        lock = self.lock_wanted(self.headers)
        if lock and not self.sums:
            raise Refused(400, "InvalidRequest", message="a checksum is missing")
        version = self.store(objects, self.key, body, self.kept(), self.headers.get("If-None-Match"), lock)
        if self.bucket == "resets" and self.seen(self.key) == 1:
            return self.drop()
        return self.answer(200, b"", dict(version, ETag='"%s"' % hashlib.md5(body).hexdigest()))

    def create(self):
        name = "id-%d+/=" % next(NUMBERS)
        lock = self.lock_wanted(self.headers) if self.bucket != "dropper" else None
        sums = self.headers.get("x-amz-checksum-algorithm")
        UPLOADS[name] = (self.bucket, self.key, dict(self.kept(), lock=lock, sums=sums), {}, "2020-01-01T00:00:00.000Z"
                         if self.bucket == "forgetful" else time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()))
        text = "<InitiateMultipartUploadResult><UploadId>%s</UploadId></InitiateMultipartUploadResult>" % name
        return self.answer(200, text.encode())

    def upload(self):
        found = UPLOADS.get(self.query["uploadId"])
        if not found or found[0] != self.bucket or found[1] != self.key:
            raise Refused(404, "NoSuchUpload")
        return found

    def put_part(self, body):
        parts = self.upload()[3]
        self.check_customer_key(self.upload()[2])
        if ("failpart" in self.key or self.bucket == "forgetful") and self.query["partNumber"] == "2":
            raise Refused(400, "InvalidPart")
        etag = '"%s"' % hashlib.md5(body).hexdigest()
        parts[int(self.query["partNumber"])] = (etag, body, self.headers.get("x-amz-checksum-crc32c"))
        return self.answer(200, b"", {"ETag": etag})

    def complete(self, objects, body):
        _, key, headers, parts, _ = self.upload()
        if self.bucket == "halfdone" and self.seen(key) == 1:
            return self.answer(200, b"<Error><Code>InternalError</Code></Error>")
        given = re.findall(r"<Part><PartNumber>(\d+)</PartNumber><ETag>(.*?)</ETag>"
                           r"(?:<ChecksumCRC32C>(.*?)</ChecksumCRC32C>)?</Part>", body.decode())
        if [(int(n), e, c or None) for n, e, c in given] != [(n, p[0], p[2]) for n, p in sorted(parts.items())]:
            raise Refused(400, "InvalidPart")
        headers = dict(headers)
        lock, sums = headers.pop("lock"), headers.pop("sums")
        if sums:  # Amazon's documentation of CompleteMultipartUpload: then the key is needed
            self.check_customer_key(headers)
        self.store(objects, key, b"".join(p[1] for _, p in sorted(parts.items())), headers,
                   self.headers.get("If-None-Match"), lock)
        UPLOADS.pop(self.query["uploadId"])
        if self.bucket == "resets" and self.seen(key) == 1:
            return self.drop()
        return self.answer(200, b"<CompleteMultipartUploadResult/>")

    def uploads(self):
        after = (self.query.get("key-marker", ""), self.query.get("upload-id-marker", ""))
        found = sorted((key, name, begun) for name, (bucket, key, _, _, begun) in list(UPLOADS.items())
                       if bucket == self.bucket and key.startswith(self.query.get("prefix", "")))
        found = [(key, name, begun) for key, name, begun in found if (key, name) > after]
        text = "".join("<Upload><Key>%s</Key><UploadId>%s</UploadId><Initiated>%s</Initiated></Upload>" % one
                       for one in found[:3])
        text += "<IsTruncated>%s</IsTruncated>" % ("true" if len(found) > 3 else "false")
        if len(found) > 3:
            text += "<NextKeyMarker>%s</NextKeyMarker><NextUploadIdMarker>%s</NextUploadIdMarker>" % found[2][:2]
        return self.answer(200, ("<ListMultipartUploadsResult>%s</ListMultipartUploadsResult>" % text).encode())

    def get(self, objects):
        if self.key not in objects:
            raise Refused(404, "NoSuchKey")
        body, headers = objects[self.key]
        self.check_customer_key(headers)
        thawed = self.restore_header()
        headers = dict(headers, **thawed)
        if self.bucket == "tiered" and self.is_archived(headers) and "false" not in thawed.get("x-amz-restore", ""):
            headers["x-amz-archive-status"] = "ARCHIVE_ACCESS"
        if self.command == "GET" and self.is_archived(headers) and "false" not in thawed.get("x-amz-restore", ""):
            raise Refused(403, "InvalidObjectState")
        if self.command == "HEAD":
            return self.answer(200, b"", dict(headers, **{"Content-Length": str(len(body))}))
        begin, end = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        if self.bucket == "noranges":
            return self.answer(200, body)
        if self.bucket == "otherrange":
            begin += 1
        if begin >= len(body):
            raise Refused(416, "InvalidRange")
        part = body[begin:end + 1]
        headers = dict(headers, **{"Content-Range": "bytes %d-%d/%d" % (begin, begin + len(part) - 1, len(body))})
        if self.bucket == "truncate" and self.seen(self.key) == 1:
            self.answer(206, part[:len(part) // 2], dict(headers, **{"Content-Length": str(len(part))}))
            return self.drop()
        if self.bucket == "trickle" and self.seen(self.key) == 1:
            self.answer(206, b"", dict(headers, **{"Content-Length": str(len(part))}))
            for byte in part:
                self.wfile.write(bytes([byte]))
                time.sleep(1)
        return self.answer(206, part, headers)

    def list(self, objects):
        prefix, after = self.query.get("prefix", ""), self.query.get("continuation-token", "")[3:]
        after = max(after, self.query.get("start-after", ""))
        names = sorted(name for name in list(objects) if name.startswith(prefix) and name > after)
        if self.bucket == "late":
            names = sorted(name for name in list(HISTORY) if name.startswith(prefix) and name > after and
                           self.is_listed(name))
        page = names[:int(self.query.get("max-keys", 3))]
        if self.bucket == "disordered":
            page.reverse()
        text = "".join("<Contents><Key>%s</Key><Size>%d</Size><StorageClass>%s</StorageClass></Contents>" %
                       (name.replace("&", "&amp;"), len(objects.get(name, (b"",))[0]),
                        objects.get(name, (b"", {}))[1].get("x-amz-storage-class", "STANDARD")) for name in page)
        more = len(page) < len(names)
        text = ("<?xml version='1.0'?><ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>"
                "<IsTruncated>%s</IsTruncated>%s%s</ListBucketResult>" %
                ("true" if more else "false", text,
                 "<NextContinuationToken>+/=%s</NextContinuationToken>" % page[-1] if more else "")).encode()
        if self.bucket == "cutlist" and "max-keys" not in self.query and self.seen("list") == 1:
            text = text[:len(text) // 2]
        return self.answer(200, text)


def tls_open(folder):
    """A certificate for ourselves, which is its own CA: FOLDER/ca.pem."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-days", "2", "-subj", "/CN=fake", "-keyout", folder + "/key.pem", "-out", folder + "/ca.pem",
                    "-addext", "subjectAltName=IP:127.0.0.1,DNS:s3.invalid,DNS:*" + ACCELERATED],
                   check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder + "/ca.pem", folder + "/key.pem")
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    TLS["port"] = server.server_address[1]
    return TLS["port"]


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        pass


def main():
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), server.shutdown()), daemon=True).start()
    server.serve_forever()


main()
