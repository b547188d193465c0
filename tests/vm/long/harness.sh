#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The machines themselves: commands and their status, two of them on one link, a power cut that loses
# what was not flushed and nothing else, an orderly end that loses nothing.
# time limit: 400 s
. "$(dirname "$0")/../lib.sh"
vm_begin
current=$test_name
machine b -l 10.1.0.2/24
machine a -j 10.1.0.1/24 -d data=64M
boot b a

out=$(on a 'echo here; exit 3')
[ $? -eq 3 ] && [ "$out" = here ] && ok status || fail status "got '$out'"
on a 'ping -c 1 -w 30 10.1.0.2' >/dev/null && ok link || fail link "a does not reach b"
on a 'modprobe nbd && [ -b /dev/nbd0 ]' && ok nbd || fail nbd "no nbd devices"

disk=/dev/disk/by-serial/data
on a "echo flushed | dd of=$disk bs=512 conv=notrunc,sync,fsync status=none" || fail write "flushed block"
on a "echo not-flushed | dd of=$disk bs=4096 seek=4 conv=notrunc,sync oflag=direct status=none" || fail write "other block"
on a "dd if=$disk bs=4096 skip=4 count=1 iflag=direct status=none" | found -a not-flushed || fail write "is not there to be read"
power_cut a
got=$(tr -d '\0' <"$dir/a.data.img")
[ "$got" = flushed ] && ok power_cut_loses || fail power_cut_loses "the disk has: $got"
boot a
got=$(on a "tr -d '\\0' <$disk")
[ "$got" = flushed ] && ok disk_again || fail disk_again "the disk has: $got"
on b 'ping -c 1 -w 30 10.1.0.1' >/dev/null && ok link_again || fail link_again "b does not reach a"

on a "echo last | dd of=$disk bs=4096 seek=4 conv=notrunc,sync oflag=direct status=none" || fail write "third"
power_off a
got=$(tr -d '\0' <"$dir/a.data.img")
[ "$got" = "flushed"$'\n'"last" ] && ok power_off || fail power_off "the disk has: $got"
