#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Real NBD clients against the NBD server: nbdinfo, nbdcopy, qemu-img, qemu-io, fio, nbdfuse; each
# in the clear, under TLS with certificates on both sides, and under TLS with a pre-shared key; on
# both backends of the loop.
#
#   BUILD=build tests/system/nbd_clients.sh [PATTERN]
#
# PATTERN (a regular expression) chooses among the checks. Prints "ok NAME", "FAIL NAME" or
# "SKIP NAME: why" for each; exits 1 if one failed. time limit: 300 s
set -eu

BUILD=${BUILD:-build}
PATTERN=${1:-.}
server=$BUILD/tests/system/nbd_memory
[ -x "$server" ] || { echo "FAIL: $server is not there: make $server" >&2; exit 1; }

dir=$(mktemp -d /tmp/nbd-clients-XXXXXX)
chmod 755 "$dir" # fio and nbdfuse run as nobody at times
mkdir -m 777 "$dir/work"
server_pid=
failed=0
cleanup() {
	mountpoint -q "$dir/fuse" 2>/dev/null && { umount "$dir/fuse" || umount -l "$dir/fuse"; }
	[ -z "$server_pid" ] || { kill "$server_pid" 2>/dev/null && wait "$server_pid" || true; }
	rm -rf "$dir"
}
trap cleanup EXIT

# ---- keys -------------------------------------------------------------------------------------
# libnbd wants ca-cert.pem, client-cert.pem, client-key.pem in one folder; qemu the same names.
make_keys() {
	local d=$dir/pki
	mkdir "$d"
	cat >"$d/ca.info" <<-END
		cn = test authority
		ca
		cert_signing_key
	END
	cat >"$d/server.info" <<-END
		cn = localhost
		dns_name = localhost
		ip_address = 127.0.0.1
		tls_www_server
		signing_key
		encryption_key
	END
	cat >"$d/client.info" <<-END
		cn = client
		tls_www_client
		signing_key
		encryption_key
	END
	local role
	for role in ca server client; do
		certtool --generate-privkey --key-type=ecdsa --outfile "$d/$role-key.pem"
	done
	certtool --generate-self-signed --load-privkey "$d/ca-key.pem" --template "$d/ca.info" \
		--outfile "$d/ca-cert.pem"
	for role in server client; do
		certtool --generate-certificate --load-privkey "$d/$role-key.pem" \
			--load-ca-certificate "$d/ca-cert.pem" --load-ca-privkey "$d/ca-key.pem" \
			--template "$d/$role.info" --outfile "$d/$role-cert.pem"
	done
	mkdir -p "$dir/home/.pki"
	ln -s "$d" "$dir/home/.pki/libnbd"
	chmod 644 "$d"/*.pem
	mkdir "$dir/psk"
	# qemu wants keys.psk as the file's name.
	psktool -u alice -p "$dir/psk/keys.psk"
	# A key that the server does not know.
	psktool -u alice -p "$dir/wrong.psk"
}

# ---- the server -------------------------------------------------------------------------------
start_server() { # ARGUMENTS...
	: >"$dir/server.out"
	"$server" --unix "$dir/socket" --tcp 127.0.0.1:0 "$@" >"$dir/server.out" 2>"$dir/server.err" &
	server_pid=$!
	local i
	for i in $(seq 1200); do
		[ "$(grep -c listening "$dir/server.out")" = 2 ] && break
		kill -0 "$server_pid" 2>/dev/null || break
		sleep 0.05
	done
	port=$(sed -n 's/^listening: tcp:.*:\([0-9]*\)$/\1/p' "$dir/server.out")
	[ -n "$port" ] || { cat "$dir/server.err" >&2; echo "FAIL: the server does not start"; exit 1; }
}

stop_server() {
	local status=0
	kill "$server_pid"
	wait "$server_pid" || status=$?
	server_pid=
	[ $status = 0 ] || { echo "FAIL server/$label: exit status $status"; cat "$dir/server.err"
		failed=1; }
}

# ---- checks -----------------------------------------------------------------------------------
check() { # NAME COMMAND...
	local name=$label/$1 status
	shift
	[[ $name =~ $PATTERN ]] || return 0
	# Not as a condition: there, -e would not count.
	set +e
	(set -e -o pipefail; "$@") >"$dir/out" 2>&1
	status=$?
	set -e
	if [ $status = 0 ]; then
		echo "ok $name"
	else
		echo "FAIL $name"
		sed 's/^/    /' "$dir/out" "$dir/server.err" | tail -30
		failed=1
	fi
}

skip() { # NAME WHY
	[[ $label/$1 =~ $PATTERN ]] && echo "SKIP $label/$1: $2" || true
}

refused() { # COMMAND...
	if timeout 60 "$@"; then
		echo "not refused: $*"
		return 1
	elif [ $? = 124 ]; then
		echo "hangs: $*"
		return 1
	fi
}

nbdinfo_tells() {
	nbdinfo "$uri" | tee "$dir/info"
	grep -q "export-size: $size_bytes" "$dir/info"
	grep -q 'can_multi_conn: true' "$dir/info"
	grep -q 'can_fua: true' "$dir/info"
	grep -q 'base:allocation' "$dir/info"
	grep -q 'block_size_maximum: 33554432' "$dir/info"
	nbdinfo --list "$uri" >"$dir/list"
	grep -q 'export="memory"' "$dir/list"
	nbdinfo --map "$uri" >"$dir/map"
	grep -q data "$dir/map"
	nbdinfo --json "$uri" | python3 -m json.tool >/dev/null
	if grep -q 'protocol:.* with TLS' "$dir/info"; then tls=yes; else tls=no; fi
	[ $tls = $expect_tls ]
	# An export that is not there: a clear error, no hang.
	refused nbdinfo "${uri/\/?//nowhere?}"
}

nbdcopy_both_ways() {
	head -c $size_bytes /dev/urandom >"$dir/random"
	nbdcopy "$dir/random" "$uri"
	nbdcopy "$uri" "$dir/back"
	cmp "$dir/random" "$dir/back"
	nbdcopy --synchronous --connections=1 --requests=1 "$uri" "$dir/back"
	cmp "$dir/random" "$dir/back"
	nbdcopy --request-size=33554432 "$uri" "$dir/back"
	cmp "$dir/random" "$dir/back"
	# Sparse: zeroes travel as WRITE_ZEROES, holes stay holes.
	truncate -s $size_bytes "$dir/sparse"
	nbdcopy "$dir/sparse" "$uri"
	nbdcopy "$uri" "$dir/back"
	cmp "$dir/sparse" "$dir/back"
}

# OPTIONS OBJECTS...: the export as --image-opts, and the objects with its keys.
qemu_img_with() {
	local opts=$1
	shift
	head -c $((size_bytes / 2)) /dev/urandom >"$dir/image"
	truncate -s $size_bytes "$dir/image"
	qemu-img convert "$@" --image-opts -n --target-image-opts \
		"driver=raw,file.driver=file,file.filename=$dir/image" "driver=raw,$opts"
	qemu-img compare "$@" --image-opts \
		"driver=raw,file.driver=file,file.filename=$dir/image" "driver=raw,$opts"
	rm -f "$dir/image2"
	qemu-img convert "$@" --image-opts "driver=raw,$opts" -O raw "$dir/image2"
	cmp "$dir/image" "$dir/image2"
	qemu-img map "$@" --image-opts "driver=raw,$opts" --output=json | python3 -m json.tool >/dev/null
}

qemu_io_with() {
	local opts=$1 before
	shift
	qemu-io "$@" --image-opts "driver=raw,$opts" \
		-c 'write -P 0xaa 0 1M' -c 'write -P 0xbb 3 1001' -c 'read -P 0xbb 3 1001' \
		-c 'read -P 0xaa 1004 3k' -c 'read -P 0xaa 0 3' \
		-c 'write -f -P 0xcc 64k 4k' -c 'read -P 0xcc 64k 4k' \
		-c 'write -z 128k 64k' -c 'read -P 0 128k 64k' \
		-c 'write -z -u 192k 64k' -c 'read -P 0 192k 64k' \
		-c 'write -z -f 100001 17' -c 'read -P 0 100001 17' \
		-c 'discard 256k 64k' -c flush \
		-c 'write -P 0x11 1M 9M' -c 'read -P 0x11 1M 9M' \
		-c 'aio_write -P 0x22 10M 1M' -c 'aio_write -P 0x33 11M 1M' -c aio_flush \
		-c 'read -P 0x22 10M 1M' -c 'read -P 0x33 11M 1M' | tee "$dir/qemu-io"
	refused grep -i 'fail\|error\|pattern verification' "$dir/qemu-io"
}

fio_verifies() { # [COMMAND TO RUN IT AS SOMEBODY]
	(cd "$dir/work" && "$@" fio --name=random --ioengine=nbd --uri="$uri" --rw=randrw \
		--bsrange=512-128k --size=$size_bytes --io_size=32M --iodepth=32 --verify=crc32c \
		--verify_fatal=1 --randseed=7 --fsync=64 --output="$dir/work/fio")
	(cd "$dir/work" && "$@" fio --name=large --ioengine=nbd --uri="$uri" --rw=write --bs=4M \
		--size=$size_bytes --iodepth=8 --verify=crc32c --verify_fatal=1 \
		--output="$dir/work/fio")
	rm -f "$dir/work/"*
}

nbdfuse_exposes() {
	local pid file=$dir/fuse/nbd
	mkdir -p "$dir/fuse"
	nbdfuse "$file" "$uri" &
	pid=$!
	until [ -e "$file" ]; do
		kill -0 $pid
		sleep 0.05
	done
	head -c 8M /dev/urandom >"$dir/part"
	dd if="$dir/part" of="$file" bs=1M conv=notrunc,fsync status=none
	cmp -n $((8 << 20)) "$dir/part" "$file"
	dd if="$dir/part" of="$file" bs=777 count=1000 seek=12345 conv=notrunc,fsync status=none
	dd if="$file" bs=777 count=1000 skip=12345 status=none | cmp -n 777000 "$dir/part" -
	umount "$dir/fuse"
	wait $pid
	refused mountpoint -q "$dir/fuse"
}

# As root, libnbd looks for certificates in /etc/pki/libnbd, and nbdfuse cannot be told otherwise. So
# that is where they are, in a mount namespace of its own.
nbdfuse_exposes_with_certificates() {
	mkdir -p "$dir/etc/pki"
	cp -r "$dir/pki" "$dir/etc/pki/libnbd"
	export dir uri
	export -f nbdfuse_exposes refused
	# shellcheck disable=SC2016 # for the other shell
	unshare --mount bash -c 'set -e -o pipefail
		mount -t overlay overlay -o lowerdir="$dir/etc:/etc" /etc
		nbdfuse_exposes'
	rm -rf "${dir:?}/etc"
}

wrong_key_is_refused() {
	refused nbdinfo "nbds+unix://alice@/?socket=$dir/socket&tls-psk-file=$dir/wrong.psk"
	nbdinfo "$uri" >/dev/null # the server goes on
}

no_certificate_is_refused() {
	mkdir -p "$dir/anonymous"
	cp "$dir/pki/ca-cert.pem" "$dir/anonymous/"
	# The name is verified too: libnbd asks for localhost over TCP.
	refused nbdinfo "nbds://localhost:$port/?tls-certificates=$dir/anonymous"
	nbdinfo "$uri" >/dev/null
}

plain_is_refused() {
	refused nbdinfo "nbd+unix:///?socket=$dir/socket"
	refused nbdinfo --size "nbd+unix:///?socket=$dir/socket"
}

unaligned_is_refused() {
	nbdinfo "$uri" >"$dir/info"
	grep -q 'block_size_minimum: 4096' "$dir/info"
	# A client that respects it works, one that does not gets an error.
	nbdcopy "$uri" "$dir/back"
	refused fio --name=small --ioengine=nbd --uri="$uri" --rw=write --bs=512 --size=1M \
		--output="$dir/fio"
	qemu-io --image-opts "driver=raw,$qemu_opts" -c 'write -P 7 3 1001' -c 'read -P 7 3 1001'
}

clients() {
	if command -v nbdinfo >/dev/null; then
		check nbdinfo nbdinfo_tells
		check nbdcopy nbdcopy_both_ways
	else
		skip nbdinfo 'no libnbd tools'
	fi
	if command -v qemu-img >/dev/null; then
		check qemu-img qemu_img_with "$qemu_opts" "${qemu_objects[@]}"
		check qemu-io qemu_io_with "$qemu_opts" "${qemu_objects[@]}"
	else
		skip qemu-img 'no qemu-utils'
	fi
	# fio and nbdfuse allow no key file in their URI and have no option for one.
	[[ $uri != *tls-psk-file* ]] || return 0
	# Neither do they take a folder of certificates there, but the one below HOME, and that not as
	# root.
	local uri=$uri as=()
	if [[ $uri == *tls-certificates* ]]; then
		uri=${uri%\?tls-certificates=*}
		as=(env "HOME=$dir/home")
		[ "$(id -u)" != 0 ] || as=(setpriv --reuid=65534 --regid=65534 --clear-groups "${as[@]}")
	fi
	if fio --enghelp 2>/dev/null | grep -qw nbd; then
		check fio fio_verifies "${as[@]}"
	else
		skip fio 'no nbd engine in fio'
	fi
	if [ -n "${as:+x}" ] && [ "$(id -u)" != 0 ]; then
		skip nbdfuse 'not root: no mount namespace to put the certificates in'
	elif [ -n "${as:+x}" ] && ! unshare --mount true 2>/dev/null; then
		skip nbdfuse 'no mount namespace here (a chroot whose root is no mount point?)'
	elif [ ! -c /dev/fuse ] || ! command -v nbdfuse >/dev/null; then
		skip nbdfuse 'no /dev/fuse or no nbdfuse'
	else
		check nbdfuse nbdfuse_exposes${as:+_with_certificates}
	fi
}

size_bytes=$((64 << 20))
label=keys
command -v certtool >/dev/null && command -v psktool >/dev/null ||
	{ echo 'SKIP all: no gnutls-bin'; exit 0; }
make_keys >"$dir/out" 2>&1 || { cat "$dir/out"; echo 'FAIL keys'; exit 1; }

for io in uring aio; do
	label=$io/plain expect_tls=no
	start_server --io=$io --size $size_bytes
	uri="nbd+unix:///?socket=$dir/socket"
	qemu_opts="file.driver=nbd,file.server.type=unix,file.server.path=$dir/socket"
	qemu_objects=()
	clients
	stop_server

	label=$io/file
	start_server --io=$io --size $size_bytes --file "$dir/disk" --direct
	check nbdcopy nbdcopy_both_ways
	check qemu-img qemu_img_with "$qemu_opts"
	stop_server
	rm -f "$dir/disk"

	label=$io/block-min
	start_server --io=$io --size $size_bytes --block-min 4096
	check unaligned unaligned_is_refused
	stop_server

	label=$io/x509 expect_tls=yes
	start_server --io=$io --size $size_bytes --require-tls --tls-cert "$dir/pki/server-cert.pem" \
		--tls-key "$dir/pki/server-key.pem" --tls-ca "$dir/pki/ca-cert.pem"
	# nbds over a unix socket knows no host name to verify: TCP is the way to certificates.
	uri="nbds://localhost:$port/?tls-certificates=$dir/pki"
	qemu_opts="file.driver=nbd,file.server.type=inet,file.server.host=localhost"
	qemu_opts+=",file.server.port=$port,file.tls-creds=tls0"
	qemu_objects=(--object "tls-creds-x509,id=tls0,endpoint=client,dir=$dir/pki")
	clients
	check no-certificate no_certificate_is_refused
	check plain plain_is_refused
	stop_server

	label=$io/psk
	start_server --io=$io --size $size_bytes --require-tls --tls-psk "$dir/psk/keys.psk"
	uri="nbds+unix://alice@/?socket=$dir/socket&tls-psk-file=$dir/psk/keys.psk"
	qemu_opts="file.driver=nbd,file.server.type=unix,file.server.path=$dir/socket"
	qemu_opts+=",file.tls-creds=tls0"
	qemu_objects=(--object "tls-creds-psk,id=tls0,endpoint=client,dir=$dir/psk,username=alice")
	clients
	check wrong-key wrong_key_is_refused
	check plain plain_is_refused
	stop_server
done
exit $failed
