#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# For bench.py: a real S3 service (Ceph's radosgw, as the tests have it) that lives until standard input ends.
# Prints a line of JSON when it is up: endpoint, bucket, and the keys.
test_dir=$(cd "$(dirname "$0")/../tests/system" && pwd)
. "$test_dir/lib.sh"
. "$test_dir/s3_lib.sh"
begin
s3_up >&2
jq -cn --arg endpoint "$S3_ENDPOINT" --arg bucket "$bucket" --arg key "$AWS_ACCESS_KEY_ID" \
	--arg secret "$AWS_SECRET_ACCESS_KEY" '{$endpoint, $bucket, $key, $secret}'
cat >/dev/null
