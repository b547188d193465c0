# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# s3_up: a real S3 service on this machine for one test: Ceph's radosgw with a monitor and one OSD in memory,
# everything below $dir/ceph, gone with the test. Sets S3_ENDPOINT, S3_ENDPOINT_TLS, S3_CA, S3_VHOST (a name
# under which buckets are hosts; s3.localhost if it is not set before), S3_PORT, the keys in the environment, and makes $bucket.
# s3_curl METHOD PATH ARGS...: a signed request to it.
# s3_kill / s3_start: the gateway alone (what it acknowledged stays).

s3_conf() {
	cat >ceph.conf <<-END
		[global]
		fsid = $1
		mon host = [v2:127.0.0.1:$mon_port]
		ms bind msgr1 = false
		public addr = 127.0.0.1
		cluster addr = 127.0.0.1
		auth cluster required = none
		auth service required = none
		auth client required = none
		ms mon client mode = crc
		auth allow insecure global id reclaim = false
		run dir = $PWD/run
		admin socket = $PWD/run/\$name.asok
		log file = $PWD/log/\$name.log
		pid file =
		crash dir = $PWD/log
		mon allow pool size one = true
		mon warn on pool no redundancy = false
		osd pool default size = 1
		osd pool default min size = 1
		osd pool default pg num = 4
		osd pool default pgp num = 4
		osd pool default pg autoscale mode = off
		osd crush chooseleaf type = 0
		mon max pg per osd = 10000
		paxos propose interval = 0.05
		paxos min wait = 0.01
		mon data avail warn = 2
		mon data avail crit = 1
		[mon]
		mon data = $PWD/mon
		[osd]
		osd data = $PWD/osd
		osd objectstore = memstore
		memstore device bytes = 2147483648
		[client]
		rgw data = $PWD/rgw
		rgw frontends = beast endpoint=127.0.0.1:$S3_PORT ssl_endpoint=127.0.0.1:$tls_port ssl_certificate=$PWD/tls.crt ssl_private_key=$PWD/tls.key tcp_nodelay=1
		rgw dns name = $S3_VHOST
		rgw enable usage log = false
		rgw enable ops log = false
		rgw rados pool pg num min = 4
		rgw crypt require ssl = false
		rgw crypt s3 kms backend = testing
		rgw crypt s3 kms encryption keys = testkey=$2
	END
}

s3_spawn() { # NAME COMMAND...: a session of its own, ended by s3_down
	local name=$1
	shift
	setsid "$@" >"log/$name.out" 2>&1 </dev/null &
	echo $! >"run/$name.pid"
	disown
}

# Whatever part of the test started it last. Only what runs in our folder: a number may be another's by now.
s3_down() {
	local name pid
	for name in rgw osd mon; do
		pid=$(cat "$dir/ceph/run/$name.pid" 2>/dev/null) || continue
		[ "$(readlink "/proc/$pid/cwd")" = "$dir/ceph" ] && kill -KILL "$pid"
	done
}

s3_curl() { # METHOD PATH ARGS...
	local method=$1 path=$2
	shift 2
	curl -s --max-time 60 -X "$method" --aws-sigv4 aws:amz:us-east-1:s3 \
		-H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' \
		--user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" "$S3_ENDPOINT$path" "$@"
}
s3_answers() { [ "$(s3_curl GET / -o /dev/null -w '%{http_code}')" = 200 ]; }
s3_start() {
	(cd "$dir/ceph" && s3_spawn rgw radosgw -n client.rgw -c ceph.conf -f)
	wait_for 30 radosgw s3_answers
}
s3_kill() { kill -KILL "$(cat "$dir/ceph/run/rgw.pid")"; }
s3_osd_up() { ceph -c ceph.conf osd stat 2>/dev/null | found ' 1 up'; }

s3_cluster() {
	local fsid osd_id class
	mkdir -p mon osd rgw run log
	fsid=$(cat /proc/sys/kernel/random/uuid)
	osd_id=$(cat /proc/sys/kernel/random/uuid)
	openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj "/CN=$S3_VHOST" \
		-addext "subjectAltName=DNS:localhost,DNS:$S3_VHOST,DNS:*.$S3_VHOST,IP:127.0.0.1" \
		-keyout tls.key -out tls.crt >/dev/null 2>&1
	s3_conf "$fsid" "$(head -c 32 /dev/urandom | base64)"
	monmaptool --create --addv a "[v2:127.0.0.1:$mon_port]" --fsid "$fsid" monmap >/dev/null
	ceph-mon --mkfs -i a --monmap monmap -c ceph.conf
	s3_spawn mon ceph-mon -i a -c ceph.conf -f
	ceph --connect-timeout 30 -c ceph.conf osd new "$osd_id" >/dev/null
	ceph-osd -i 0 -c ceph.conf --no-mon-config --mkfs --osd-uuid "$osd_id" >log/mkfs.out 2>&1
	s3_spawn osd ceph-osd -i 0 -c ceph.conf -f
	wait_for 30 "the OSD" s3_osd_up
	radosgw-admin -c ceph.conf user create --uid=test --display-name=test \
		--access-key="$AWS_ACCESS_KEY_ID" --secret="$AWS_SECRET_ACCESS_KEY" >log/user.out 2>&1
	for class in STANDARD_IA GLACIER; do
		radosgw-admin -c ceph.conf zonegroup placement add --rgw-zonegroup default \
			--placement-id default-placement --storage-class $class
		radosgw-admin -c ceph.conf zone placement add --rgw-zone default \
			--placement-id default-placement --storage-class $class --data-pool cold
	done >log/classes.out 2>&1
	s3_spawn rgw radosgw -n client.rgw -c ceph.conf -f
}

s3_up() {
	local mon_port tls_port
	export CEPH_ARGS=
	export AWS_ACCESS_KEY_ID=AKIATESTTESTTESTTEST AWS_SECRET_ACCESS_KEY=testsecrettestsecrettestsecret
	unset AWS_SESSION_TOKEN AWS_PROFILE AWS_REGION AWS_DEFAULT_REGION AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3
	S3_PORT=$(free_port) tls_port=$(free_port) mon_port=$(free_port)
	S3_VHOST=${S3_VHOST:-s3.localhost}
	S3_ENDPOINT=http://127.0.0.1:$S3_PORT
	S3_ENDPOINT_TLS=https://127.0.0.1:$tls_port
	S3_CA=$dir/ceph/tls.crt
	bucket=offsite-test
	mkdir -p "$dir/ceph"
	at_end s3_down
	pushd "$dir/ceph" >/dev/null || die "no folder"
	s3_cluster
	popd >/dev/null || die "no folder"
	wait_for 60 radosgw s3_answers
	[ "$(s3_curl PUT "/$bucket" -o /dev/null -w '%{http_code}')" = 200 ] || die "no bucket"
}
