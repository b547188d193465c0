/* SPDX-License-Identifier: Apache-2.0 */
/*
 * render: a snapshot as JSON (docs/API.md has the members), as the API and the command without a daemon say it; and the
 * words that JSON is made of.
 */
#ifndef OFFSITE_SNAPSHOT_RENDER_H
#define OFFSITE_SNAPSHOT_RENDER_H

#include <jansson.h>

#include "daemon/snapshot/snapshot.h"

json_t *render_text(const char *text);     /* bytes that are no UTF-8 become '?' */
json_t *render_time(uint64_t realtime_ns); /* "2026-11-21T08:12:20Z"; null for 0 */
json_t *render_id(const struct id128 *id); /* 32 digits; null for zero */
json_t *render_number(uint64_t value);     /* INT64_MAX at most */
json_t *render_lock(enum store_lock lock); /* "governance", "compliance"; null: none */
json_t *render_snapshot(const struct snapshot_info *info);

#endif
