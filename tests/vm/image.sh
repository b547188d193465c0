#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# image.sh DIRECTORY: makes what a virtual machine of the tests starts from, in DIRECTORY:
#
#   vmlinux, modules/   Debian's own kernel, out of its package (downloaded once, never installed), unpacked:
#                       under emulation its own way to unpack itself takes seconds
#   root.img            an ext4 image of this host's own installed packages: those in packages below
#                       and what they depend on, nothing of the host's configuration or data
#   initrd              a busybox that loads the modules of disks, network and shared folders, mounts them, and
#                       goes on on the root disk (guest/first)
#
# Nothing is mounted and nothing is installed. Done again only when the packages of the host, these
# scripts or the libraries of the programs under test change (stamp). Exit status 77: cannot be done
# here, the reason is the last line.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
build=${BUILD:-$here/../../build}
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C

packages="base-files base-passwd passwd bash dash coreutils util-linux mount procps iproute2 kmod
	e2fsprogs xfsprogs grep sed findutils mawk tar gzip hostname bsdutils debianutils diffutils login
	systemd udev
	iputils-ping fio nbd-client nbdkit libnbd-bin drbd-utils postgresql jq curl strace python3-minimal perl-base make"

# Kernel modules by name; what they need comes along.
root_modules="virtio_pci virtio_blk ext4 9p 9pnet_virtio virtio_net"
modules="$root_modules virtio_rng virtio_balloon nbd drbd xfs btrfs loop brd
	null_blk fuse dm-mod dm-flakey dm-log-writes sch_netem sch_tbf sch_ingress tls configfs autofs4 unix
	ip_tables iptable_filter x_tables xt_tcpudp nf_tables crc32c_generic crc32c_intel af_packet vfat"

cannot() {
	echo "$*" >&2
	exit 77
}
for tool in dpkg-query dpkg-deb apt-get mke2fs busybox cpio depmod modprobe qemu-img xz; do
	command -v $tool >/dev/null || cannot "$tool is missing"
done
exec 9>"$out/lock"
flock 9

libraries() {
	ldd "$build/offsited" "$build/offsite" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
		while read -r file; do printf '%s\n' "$file" "$(readlink -f "$file")"; done
}
stamp() {
	dpkg-query -W
	libraries
	cat "$here/image.sh" "$here"/guest/*
}

# ---- the kernel ----------------------------------------------------------------------------------

# linux-image-amd64 depends on the package that has the kernel.
kernel_package() {
	apt-cache depends --no-recommends --no-suggests linux-image-amd64 2>/dev/null |
		sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1
}
fetch_kernel() {
	local package
	package=$(kernel_package)
	[ -n "$package" ] && (cd "$out/deb" && apt-get -q download "$package")
}
# The kernel as a program for the PVH entry, from the compressed one within vmlinuz (the kernel's own
# scripts/extract-vmlinux does the same).
unpack_kernel() { # VMLINUZ VMLINUX
	local at
	# shellcheck disable=SC2013 # numbers
	for at in $(LC_ALL=C grep -aboP '\xFD7zXZ\x00' "$1" | cut -d: -f1); do
		tail -c +$((at + 1)) "$1" | xz -qdc --single-stream >"$2.new" 2>/dev/null || true
		[ "$(head -c 4 "$2.new" | tail -c 3)" = ELF ] && mv "$2.new" "$2" && return 0
	done
	return 1
}
if [ ! -f "$out/vmlinux" ]; then
	rm -rf "$out/deb" "$out/kernel"
	mkdir "$out/deb"
	# Package lists that are missing or old: the first try fails.
	fetch_kernel >"$out/log" 2>&1 || { apt-get update && fetch_kernel; } >"$out/log" 2>&1 || {
		tail -n 5 "$out/log" >&2
		cannot "Debian's kernel package cannot be downloaded"
	}
	dpkg-deb -x "$out"/deb/linux-image-*.deb "$out/kernel"
	rm -rf "$out/deb" "$out/modules"
	mv "$out/kernel/lib/modules" "$out/modules"
	unpack_kernel "$out"/kernel/boot/vmlinuz-* "$out/vmlinux" || cannot "Debian's kernel is not compressed with xz"
	rm -rf "$out/kernel"
fi
version=$(ls "$out/modules")
now=$(stamp | sha256sum)
[ "$now" != "$(cat "$out/stamp" 2>/dev/null)" ] || exit 0
echo "tests/vm: building the root image in $out" >&2

root=$out/root
rm -rf "$root" "$out/initramfs"
trap 'rm -rf "$root" "$out/initramfs" "$out/files"' EXIT

# ---- the root file system --------------------------------------------------------------------------

# The files of the packages and of what they depend on, as paths without the leading slash, /bin and
# /lib being links into /usr.
package_files() {
	local closure
	closure=$(apt-cache depends --recurse --installed --no-recommends --no-suggests --no-conflicts \
		--no-breaks --no-replaces --no-enhances $packages 2>/dev/null |
		sed -n 's/^\([a-z0-9][^ :]*\).*/\1/p' | sort -u)
	closure=$({ dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' $closure 2>/dev/null || true; } |
		awk '$1 == "ii" && !seen[$2]++ && $2 !~ /^(linux-image|gcc|cpp|binutils|dpkg-dev|perl-modules)/ { print $2 }')
	dpkg-query -L $closure | sort -u |
		grep -E '^/(usr|etc|bin|sbin|lib|lib32|lib64|var)/' |
		grep -vE '^/(bin|sbin|lib|lib64)$|^/usr/share/(doc|man|locale|info|lintian|bug|i18n|zoneinfo/(posix|right))/|/__pycache__|^/usr/lib/udev/hwdb|^/etc/(ssl/private|apt|drbd.d/.*[.]res)' |
		sed -E 's,^/(bin|sbin|lib|lib64)/,/usr/\1/,'
	libraries | sed -E 's,^/(bin|sbin|lib|lib64)/,/usr/\1/,'
}
mkdir -p "$root"/{proc,sys,dev,run,tmp,root,etc,var/tmp,usr,mnt,src,build,installed,out}
for link in bin sbin lib lib64; do ln -s usr/$link "$root/$link"; done
package_files | sort -u | while read -r file; do
	[ -e "$file" ] || [ -L "$file" ] || continue
	echo ".$file"
done >"$out/files"
# What the user may not read is not needed.
tar -C / --no-recursion -cf - -T "$out/files" 2>/dev/null | tar -C "$root" -xpf - --keep-directory-symlink || true
for file in passwd group nsswitch.conf ld.so.conf ld.so.conf.d; do cp -a "/etc/$file" "$root/etc/"; done
sed 's/^\([^:]*\):.*/\1:*:19000:0:99999:7:::/' "$root/etc/passwd" >"$root/etc/shadow"
chmod 600 "$root/etc/shadow"
for link in awk which; do
	[ -e "$root/usr/bin/$link" ] || ln -s "$(readlink -f "$(command -v $link)")" "$root/usr/bin/$link"
done
echo '127.0.0.1 localhost' >"$root/etc/hosts"
echo vm >"$root/etc/hostname"
: >"$root/etc/fstab"
: >"$root/etc/machine-id"

# A new database, made here: in a machine it would take half a minute, and without its templates, to copy which
# would take as long again.
initdb=$(for file in /usr/lib/postgresql/*/bin/initdb; do echo "$file"; done | sort -V | tail -n 1)
if [ -x "$initdb" ]; then
	mkdir -p "$root/var/lib/vm/database"
	as_postgres=
	if [ "$(id -u)" = 0 ]; then
		chmod 755 "$out" "$root" # so that another user gets there
		chown postgres "$root/var/lib/vm/database"
		as_postgres="setpriv --reuid=postgres --regid=postgres --clear-groups --reset-env"
	fi
	(cd / && $as_postgres "$initdb" -D "$root/var/lib/vm/database" -U postgres -A trust -N --no-instructions --wal-segsize=1 \
		--locale=C.UTF-8 >/dev/null
	printf '%s\n' 'UPDATE pg_database SET datistemplate = false, datallowconn = true' 'DROP DATABASE template0' \
		'DROP DATABASE template1' |
		$as_postgres "${initdb%initdb}postgres" --single -F -c min_wal_size=2MB -D "$root/var/lib/vm/database" \
			postgres >/dev/null 2>&1) || { echo "initdb failed" >&2; exit 1; }
	echo 'host all all 10.1.0.0/24 trust' >>"$root/var/lib/vm/database/pg_hba.conf"
fi

install -m 755 "$here/guest/init" "$here/guest/agent" "$root/usr/sbin/"
mv "$root/usr/sbin/init" "$root/usr/sbin/vm-init" # /sbin/init is systemd
mv "$root/usr/sbin/agent" "$root/usr/sbin/vm-agent"
ln -sf ../lib/systemd/systemd "$root/usr/sbin/init"
for link in poweroff reboot; do ln -sf ../bin/systemctl "$root/usr/sbin/$link"; done
install -D -m 644 "$here/guest/agent.service" "$root/etc/systemd/system/vm-agent.service"
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -s ../vm-agent.service "$root/etc/systemd/system/multi-user.target.wants/"
ln -sf /usr/lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
# What Debian's systemd does when it is installed: mounts of devices on the network, and a journal that stays.
ln -s /usr/lib/systemd/system/remote-fs.target "$root/etc/systemd/system/multi-user.target.wants/"
mkdir -p "$root/var/log/journal"
for unit in serial-getty@ttyS0 getty@tty1 systemd-timesyncd systemd-networkd systemd-resolved \
	systemd-firstboot e2scrub_reap nbd-client drbd systemd-binfmt getty-static systemd-update-utmp \
	systemd-update-utmp-runlevel systemd-pstore systemd-hwdb-update systemd-journal-catalog-update; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit.service"
done
for timer in apt-daily apt-daily-upgrade e2scrub_all fstrim man-db dpkg-db-backup logrotate; do
	ln -sf /dev/null "$root/etc/systemd/system/$timer.timer"
done
# What nothing here needs and takes seconds of a start under emulation.
for unit in proc-sys-fs-binfmt_misc.automount dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount \
	sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount modprobe@loop.service \
	modprobe@dm_mod.service systemd-repart.service \
	systemd-modules-load.service systemd-user-sessions.service systemd-logind.service systemd-sysusers.service \
	systemd-pcrphase.service systemd-pcrphase-sysinit.service getty.target systemd-ask-password-wall.path \
	systemd-ask-password-console.path systemd-random-seed.service systemd-tmpfiles-clean.timer; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit"
done

target=$root/usr/lib/modules/$version
mkdir -p "$target"
needed() { # MODULE...: paths of its files, in the order of loading
	local name
	for name in "$@"; do
		modprobe -d "$out/tree" -S "$version" --show-depends -q "$name" 2>/dev/null || true
	done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }'
}
rm -rf "$out/tree"
mkdir -p "$out/tree/lib"
ln -s "$out/modules" "$out/tree/lib/modules"
[ -f "$out/modules/$version/modules.dep" ] || depmod -b "$out/tree" "$version"
for module in $(needed $modules); do
	install -D -m 644 "$module" "$target/${module#*"/modules/$version/"}"
done
cp "$out/modules/$version"/modules.{order,builtin,builtin.modinfo} "$target/"
depmod -b "$root" "$version"
ldconfig -r "$root" 2>/dev/null

rm -f "$out/root.img.new"
mke2fs -F -q -t ext4 -J size=8 -m 0 -E root_owner=0:0,lazy_itable_init=0 -d "$root" "$out/root.img.new" \
	"$(($(du -sm "$root" | cut -f1) * 11 / 10 + 600))M" >/dev/null

# ---- the first steps ----------------------------------------------------------------------------------

first=$out/initramfs
mkdir -p "$first"/{bin,modules,proc,sys,dev,new}
cp "$(command -v busybox)" "$first/bin/busybox"
install -m 755 "$here/guest/first" "$first/init"
number=10
for module in $(needed $root_modules crc32c_generic); do
	cp "$module" "$first/modules/$number-${module##*/}"
	number=$((number + 1))
done
(cd "$first" && find . | cpio -o -H newc --quiet | gzip -1) >"$out/initrd.new"
mv "$out/root.img.new" "$out/root.img"
mv "$out/initrd.new" "$out/initrd"
rm -rf "$out/tree"
echo "$now" >"$out/stamp"
