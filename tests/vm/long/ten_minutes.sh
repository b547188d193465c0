#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The README's "In production, in ten minutes", word for word: two machines with systemd, Debian's PostgreSQL and
# its cluster "main", and a real S3 service (radosgw) that answers as s3.eu-central-1.amazonaws.com. Every command
# that is typed, the configuration and the line in fstab are taken out of the README when the test runs. What it
# stands for: the programs were built on the host (make finds nothing to do), and packages are there already.
# time limit: 2400 s
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/../../system/s3_lib.sh"
need radosgw ceph-mon ceph-osd curl openssl
vm_begin
current=$test_name
S3_VHOST=s3.eu-central-1.amazonaws.com
s3_up
[ "$(s3_curl PUT /backup -o /dev/null -w '%{http_code}')" = 200 ] || die "no bucket"

# ---- what the README says ------------------------------------------------------------------------

awk '/^## /{ on = /in ten minutes/ } on' "$TOP/README.md" >"$dir/section.md"
block() { # NUMBER: of the fenced blocks
	awk -v n="$1" '/^```/ { if (!inside) number++; inside = !inside; next } inside && number == n' "$dir/section.md"
}
spans() { # PATTERN: the code of the line with it, one a line
	grep -m1 -F -- "$1" "$dir/section.md" | grep -o '`[^`]*`' | tr -d '`'
}
[ "$(grep -c '^```' "$dir/section.md")" = 12 ] || die "the README has other blocks than this test knows"
install=$(block 1) key=$(block 2) config=$(block 3) use=$(block 4) snapshot=$(block 5) fstab=$(block 6)
start=$(spans '**3. Start.**' | sed -n 1p) status=$(spans '**3. Start.**' | sed -n 2p)
check=$(spans 'config check FILE' | grep 'config check')
attach=$(spans 'attaches it by itself' | tail -n 1)
restore=$(spans '| both are gone |') promote=$(spans '| alpha is gone' | head -n 1)
for word in install key config use snapshot fstab start status check attach restore promote; do
	[ -n "${!word}" ] || die "the README no longer says: $word"
done

# What it says of beta's configuration, done to alpha's.
echo "$config" >"$dir/alpha.conf"
sed -e 's/^name = alpha$/name = beta/' -e 's/^peer-listen = 10.0.0.1:7790$/peer-listen = 10.0.0.2:7790/' \
	-e 's/^role = primary$/role = secondary/' -e 's/^peer = 10.0.0.2:7790$/peer = 10.0.0.1:7790/' \
	"$dir/alpha.conf" >"$dir/beta.conf"
for node in alpha beta; do
	mkdir -p "$dir/$node.out"
	cp "$dir/$node.conf" "$S3_CA" "$dir/$node.out/"
done
tr -d '\n' <"$dir/section.md" | grep -qF 'the same with `name = beta`, `peer-listen = 10.0.0.2:7790`, `role = secondary`,`peer = 10.0.0.1:7790`' ||
	die "the README says something else of beta's configuration"

# ---- two hosts as they are before ----------------------------------------------------------------

machine beta -s -m 1024 -u -l 10.0.0.2/24 -r disk=4G -a vm.bare=1
machine alpha -s -m 1024 -u -j 10.0.0.1/24 -r disk=4G -a vm.bare=1
boot beta alpha
for node in alpha beta; do
	on $node <<END || die "host $node"
[ ! -e /usr/sbin/offsited ] || fail "it is installed already"
echo '10.0.0.1 alpha
10.0.0.2 beta
127.0.0.1 $S3_VHOST backup.$S3_VHOST' >>/etc/hosts
# The service: port 443 here is radosgw's on the host.
mkdir -p /etc/ssl/certs && cat /out/tls.crt >>/etc/ssl/certs/ca-certificates.crt
systemd-run -q --socket-property=ListenStream=127.0.0.1:443 /lib/systemd/systemd-socket-proxyd 10.0.2.2:${S3_ENDPOINT_TLS##*:} ||
	fail "the way to the service"
[ \$(curl -s -o /dev/null -w '%{http_code}' https://backup.$S3_VHOST/) = 403 ] || fail "no service at backup.$S3_VHOST"
mkdir -p /root/.aws
printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' $AWS_ACCESS_KEY_ID $AWS_SECRET_ACCESS_KEY >/root/.aws/credentials
# Room; the README takes a host with a disk for granted.
mkfs.ext4 -q -E nodiscard,lazy_itable_init=1 /dev/disk/by-id/virtio-disk && mount /dev/disk/by-id/virtio-disk /srv || fail disk
# What installing PostgreSQL does.
version=\${pg%/bin} version=\${version##*/}
mkdir -p /var/lib/postgresql/\$version /etc/postgresql /etc/postgresql-common /var/log/postgresql
cp -r /var/lib/vm/database /var/lib/postgresql/\$version/main
chown -R postgres: /var/lib/postgresql /etc/postgresql /var/log/postgresql && chmod 700 /var/lib/postgresql/\$version/main
pg_createcluster \$version main >/root/createcluster 2>&1 || fail "\$(cat /root/createcluster)"
systemctl daemon-reload
systemctl start postgresql || fail postgresql
wait_for 240 PostgreSQL sql -c 'SELECT 1'
END
done
on alpha "sql -c 'CREATE TABLE before AS SELECT generate_series(1, 1000) i'" || die "the database as it was"

# ---- the path --------------------------------------------------------------------------------------

type_in() { # STEP NODE COMMANDS
	note "$2# ${3//$'\n'/$'\n'"# $2# "}"
	# As root; sudo is optional, as the README says. make's output is kept out of the source tree.
	limit=600 on "$2" "export BUILD=/build OFFSITE_DEPS=skip
type sudo >/dev/null 2>&1 || sudo() { \"\$@\"; }
cd /src
while IFS= read -r line; do
	eval \"\$line\" </dev/null || fail \"status \$?: \$line\"
done <<'TYPED'
$3
TYPED" >"$dir/typed" 2>&1 || {
		tail -n 20 "$dir/typed"
		die "step $1 on $2"
	}
}
typed() { cat "$dir/typed"; }

current=step_1
for node in alpha beta; do type_in 1 $node "$install"; done
on alpha 'offsite --version && offsited --version' >/dev/null || die "make install"
type_in 1 alpha "$key"
file=${key##* }
on alpha "cp $file /out/key" && cp "$dir/alpha.out/key" "$dir/beta.out/key" && on beta "install -m 600 /out/key $file" ||
	die "the key"
ok $current

current=step_2
for node in alpha beta; do
	on $node "cp /out/$node.conf /etc/offsite/offsite.conf"
	type_in 2 $node "${check/FILE//etc/offsite/offsite.conf}"
done
ok $current

current=step_3
for node in beta alpha; do type_in 3 $node "$start"; done
on alpha <<'END' || die "not in sync: $(on alpha 'offsite status')"
offsite wait pgdata --timeout 240s || fail "no first sync"
END
type_in 3 alpha "$status"
typed
ok $current

current=step_4
type_in 4 alpha "$use"
on alpha <<'END' || die "PostgreSQL is not on the volume"
[ "$(findmnt -no SOURCE -T /var/lib/postgresql/*/main)" = "$(readlink -f /dev/offsite/pgdata)" ] || fail "$(findmnt -T /var/lib/postgresql)"
wait_for 240 PostgreSQL sql -c 'SELECT 1'
[ "$(sql -c 'SELECT count(*) FROM before')" = 1000 ] || fail "the old data"
sql -c 'CREATE TABLE behind AS SELECT generate_series(1, 2000) i' -c CHECKPOINT || fail "new data"
END
type_in 4 alpha "$snapshot"
typed
[ "$(on alpha 'offsite snapshot list pgdata --json | jq ".snapshots | length"')" = 1 ] || die "no snapshot in the list"
ok $current

# By configuration, on both: the next start of PostgreSQL mounts what it needs.
current=step_4_by_itself
on beta 'systemctl stop "postgresql*"'
for node in beta alpha; do
	on $node "sed -i '/^role = /a $attach' /etc/offsite/offsite.conf && echo '$fstab' >>/etc/fstab && systemctl daemon-reload &&
		systemctl restart offsited" || die "configuration of $node"
done
on alpha <<'END' && ok $current || fail $current "see above"
sql -c 'INSERT INTO behind VALUES (0)' || fail "over a restart of the daemon"
systemctl stop "postgresql*" && umount /var/lib/postgresql || fail umount
systemctl start postgresql && mountpoint -q /var/lib/postgresql || fail "not mounted with PostgreSQL"
END

current=replication_in_sync
on alpha <<'END' && ok $current || fail $current "$(on alpha 'offsite status')"
wait_for 240 "in sync" eval 'offsite status --json | jq -e ".volumes[0].replication | .state == \"streaming\" and .out_of_sync_bytes == 0 and .lag_bytes == 0"'
END

# ---- the bad day -----------------------------------------------------------------------------------

counts() { # NODE BEFORE BEHIND: of the database there
	on "$1" <<END
wait_for 240 PostgreSQL sql -c 'SELECT 1'
got=\$(sql -c 'SELECT count(*) FROM before' -c 'SELECT count(*) FROM behind' | tr '\n' ' ')
[ "\$got" = "$2 $3 " ] || fail "before and behind: \$got"
END
}

current=alpha_is_gone
power_cut alpha
# Nobody tells beta: it takes peer-timeout.
on beta "wait_for 120 'the end of the link' eval '! offsite status --json | jq -e \".volumes[0].replication.state == \\\"streaming\\\"\"'"
type_in 5 beta "$promote"
on beta "wait_for 60 'the device' test -b /dev/offsite/pgdata; systemctl start postgresql && mountpoint -q /var/lib/postgresql" ||
	die "beta does not take over"
counts beta 1000 2001 && ok $current || fail $current "see above"

current=both_are_gone
on beta 'systemctl stop "postgresql*" && umount /var/lib/postgresql && systemctl stop offsited &&
	: >/etc/fstab && systemctl daemon-reload' || die "the end of beta"
type_in 5 beta "$restore"
typed
on beta "mount -o loop ${restore##* } /var/lib/postgresql && systemctl start postgresql" || die "what was restored"
counts beta 1000 2000 && ok $current || fail $current "see above"
on beta 'systemctl stop "postgresql*" && umount /var/lib/postgresql'
