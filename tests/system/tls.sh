#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# TLS: between the nodes by key and by certificate, and what is refused there; for NBD clients by
# key and by certificate with TLS required. (Every NBD client with and without TLS: nbd_clients.sh.)
# time limit: 240 s
. "$(dirname "$0")/lib.sh"
need jq nbdinfo nbdcopy openssl
begin
seed_random

authority() {
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$1" \
		-keyout "$dir/$1.key" -out "$dir/$1.crt" 2>/dev/null || die "openssl"
}
leaf() { # NAME CA: openssl 3.0 has no -CA for req
	openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" \
		-keyout "$dir/$1.key" -out "$dir/$1.csr" 2>/dev/null &&
		printf 'subjectAltName=DNS:localhost,IP:127.0.0.1,DNS:%s.test\n' "$1" >"$dir/ext" &&
		openssl x509 -req -in "$dir/$1.csr" -CA "$dir/$2.crt" -CAkey "$dir/$2.key" -CAcreateserial \
			-days 2 -extfile "$dir/ext" -out "$dir/$1.crt" 2>/dev/null || die "openssl"
}
with_certificates() { # NODE NAME CA PEER-NAME
	sed -i "s|^psk-file = .*|tls-cert = $dir/$2.crt\ntls-key = $dir/$2.key\ntls-ca = $dir/$3.crt|" "$dir/$1.conf"
	[ -z "${4:-}" ] || echo "peer-name = $4" >>"$dir/$1.conf"
}
fresh() {
	rm -rf "$dir"/[ab].state "$dir"/[ab].img "$dir"/[ab].log
	pair_config 8
}
replicates() { # what is written at a is at b
	start b
	start a
	wait_state 30 "the first sync" a in-sync
	volume_is a .replication.tls >/dev/null || die "no TLS between the nodes"
	nbdcopy "$dir/want" "$(uri a)" || die "nbdcopy"
	cmp "$dir/want" "$dir/b.img" || die "not at the peer"
	stop a
	stop b
	ok "$current"
}
# The connection is refused, one line says why, and neither side suffers.
refused() { # PATTERN in one of the logs
	start b
	start a
	wait_for 30 "a refusal in the log" grep -qiE "$1" "$dir/a.log" "$dir/b.log"
	streaming a >/dev/null && die "replicates all the same"
	volume_get a .replication.refusal >"$dir/refusal.out"
	note "$current: $(cat "$dir/refusal.out")"
	stop a
	stop b
	ok "$current"
}

authority ca
authority otherca
leaf one ca
leaf two ca
leaf stranger otherca

peers_by_key() {
	current=peers_by_key_$io
	fresh
	replicates
}

peers_by_certificate() {
	current=peers_by_certificate_$io
	fresh
	with_certificates a one ca
	with_certificates b two ca one.test
	replicates
}

wrong_key_is_refused() {
	current=wrong_key_is_refused_$io
	fresh
	rm -f "$dir/psk2"
	"$build/offsite" keygen "$dir/psk2" >/dev/null
	sed -i "s|^psk-file = .*|psk-file = $dir/psk2|" "$dir/a.conf"
	refused 'wrong pre-shared key'
}

foreign_certificate_is_refused() {
	current=foreign_certificate_is_refused_$io
	fresh
	with_certificates a stranger ca
	with_certificates b two ca one.test
	refused 'certificate'
}

# The right authority is not enough: it signs for others, too.
other_name_is_refused_by_the_listener() {
	current=other_name_is_refused_by_the_listener_$io
	fresh
	with_certificates a one ca
	with_certificates b two ca two.test
	refused "certificate '.*one.*' does not carry the peer's name"
}

other_name_is_refused_by_the_caller() {
	current=other_name_is_refused_by_the_caller_$io
	fresh
	with_certificates a one ca one.test
	with_certificates b two ca one.test
	refused 'certificate'
}

plaintext_peer_is_refused() {
	current=plaintext_peer_is_refused_$io
	fresh
	sed -i 's|^psk-file = .*|peer-plaintext = yes|' "$dir/a.conf"
	refused 'not TLS|closed|handshake'
}

nbd_by_key() {
	current=nbd_by_key_$io
	fresh
	printf 'alice:%s\n' "$(openssl rand -hex 32)" >"$dir/nbd.psk"
	sed -i "s|^nbd-listen = .*|nbd-listen = unix:$dir/a.nbd 127.0.0.1:0\nnbd-tls = require\nnbd-psk-file = $dir/nbd.psk|" "$dir/a.conf"
	start b
	start a
	wait_state 30 "the first sync" a in-sync
	nbdcopy "$dir/want" "nbds+unix://alice@/v?socket=$dir/a.nbd&tls-psk-file=$dir/nbd.psk" ||
		die "nbdcopy over TLS"
	cmp "$dir/want" "$dir/b.img" || die "not at the peer"
	port=$(off a status --json | jq -r '.nbd.addresses[]' | sed -n 's/.*127.0.0.1://p')
	nbdinfo "nbds://alice@127.0.0.1:$port/v?tls-psk-file=$dir/nbd.psk" >/dev/null ||
		die "nbdinfo over TLS and TCP"
	nbdinfo "$(uri a)" >"$dir/nbdinfo.out" 2>&1 && die "a client in the clear was served"
	printf 'alice:%s\n' "$(openssl rand -hex 32)" >"$dir/wrong.psk"
	timeout 60 nbdinfo "nbds+unix://alice@/v?socket=$dir/a.nbd&tls-psk-file=$dir/wrong.psk" \
		>"$dir/nbdinfo.out" 2>&1
	[ $? -eq 1 ] || die "a wrong key was not refused at once"
	printf 'mallory:%s\n' "$(openssl rand -hex 32)" >"$dir/wrong.psk"
	timeout 60 nbdinfo "nbds+unix://mallory@/v?socket=$dir/a.nbd&tls-psk-file=$dir/wrong.psk" \
		>"$dir/nbdinfo.out" 2>&1
	[ $? -eq 1 ] || die "an unknown identity was not refused at once"
	alive a || die "the daemon is gone"
	stop a
	stop b
	ok "$current"
}

nbd_by_certificate() {
	current=nbd_by_certificate_$io
	fresh
	with_certificates a one ca
	with_certificates b two ca one.test
	sed -i "s|^nbd-listen = .*|&\nnbd-tls = require\nnbd-verify-client = yes|" "$dir/a.conf"
	"$build/offsite" config check "$dir/a.conf" >"$dir/check.out" 2>&1 &&
		die "the peers' authority was taken for NBD clients"
	sed -i "s|^nbd-verify-client = .*|&\nnbd-ca = $dir/otherca.crt|" "$dir/a.conf"
	rm -rf "$dir/pki"
	mkdir "$dir/pki"
	cp "$dir/ca.crt" "$dir/pki/ca-cert.pem"
	cp "$dir/stranger.crt" "$dir/pki/client-cert.pem"
	cp "$dir/stranger.key" "$dir/pki/client-key.pem"
	start b
	start a
	wait_state 30 "the first sync" a in-sync
	nbdinfo "nbds+unix:///v?socket=$dir/a.nbd&tls-certificates=$dir/pki&tls-hostname=localhost" \
		>"$dir/nbdinfo.out" 2>&1 ||
		nbdinfo "nbds+unix://localhost/v?socket=$dir/a.nbd&tls-certificates=$dir/pki" \
			>"$dir/nbdinfo.out" 2>&1 || die "nbdinfo: $(tail -n 1 "$dir/nbdinfo.out")"
	cp "$dir/two.crt" "$dir/pki/client-cert.pem"
	cp "$dir/two.key" "$dir/pki/client-key.pem"
	timeout 60 nbdinfo "nbds+unix://localhost/v?socket=$dir/a.nbd&tls-certificates=$dir/pki" \
		>"$dir/nbdinfo.out" 2>&1
	[ $? -eq 1 ] || die "a foreign certificate was not refused at once"
	alive a || die "the daemon is gone"
	stop a
	stop b
	ok "$current"
}

head -c 8M /dev/urandom >"$dir/want"
for io in $(backends); do
	for one in peers_by_key peers_by_certificate wrong_key_is_refused foreign_certificate_is_refused other_name_is_refused_by_the_listener other_name_is_refused_by_the_caller plaintext_peer_is_refused nbd_by_key nbd_by_certificate; do
		part "$one"
	done
done
