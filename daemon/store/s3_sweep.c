/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parts that were put and never put together, as whoever put them was killed: they are paid for and listed nowhere
 * else. Once at opening, and each day from then on, all uploads below the prefix are listed, page by page, and
 * those thrown away that were begun more than a day ago. A bucket may have other tenants: only names that a
 * snapshot's objects have are ours. See s3_internal.h.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/store/s3_internal.h"
#include "daemon/store/s3_xml.h"
#include "protocol/snapshot.h"

#define OLD_SEC    (24 * 3600)
#define EVERY_MS   (24u * 3600 * 1000)
#define KEY_MAX    1100
#define UPLOAD_MAX 1024

bool s3_sweep_query(struct s3_op *op)
{
	char *query = NULL;
	bool ok;

	if (!op->more)
		return s3_op_query(op, "prefix=%s%s&uploads=", op->key, "");
	/* In the order of names, as the signature has them. */
	ok = s3_op_query(op, "key-marker=%s&prefix=%s", op->more, op->key);
	if (ok && op->after) {
		char *upload = curl_easy_escape(NULL, op->after, 0);

		ok = upload &&
		     asprintf(&query, "%s&upload-id-marker=%s&uploads=", op->query, upload) >= 0;
		curl_free(upload);
	} else if (ok) {
		ok = asprintf(&query, "%s&uploads=", op->query) >= 0;
	}
	if (!ok)
		return false;
	free(op->query);
	op->query = query;
	return true;
}

const char *s3_sweep_key(const struct s3_op *op)
{
	return op->found[op->found_count - 1].name;
}

static bool is_stale(struct s3_xml upload)
{
	struct tm tm = {0};
	char begun[40];

	return s3_xml_text(upload, "Initiated", begun, sizeof(begun)) &&
	       strptime(begun, "%Y-%m-%dT%H:%M:%S", &tm) && timegm(&tm) < time(NULL) - OLD_SEC;
}

/* Pack, map or manifest, below the prefix: nothing else is ever put in parts. */
static bool is_ours(const struct s3_op *op, const char *key)
{
	size_t prefix = strlen(op->key);
	enum snapfmt_kind kind;
	struct id128 volume;
	struct snapfmt_ref ref;

	return !strncmp(key, op->key, prefix) &&
	       snapfmt_name_parse(key + prefix, &kind, &volume, &ref);
}

static void forget_place(struct s3_op *op)
{
	free(op->more);
	free(op->after);
	op->more = op->after = NULL;
}

/* Until tomorrow. */
enum s3_next s3_sweep_over(struct s3_op *op)
{
	forget_place(op);
	s3_op_go(op, S3_STEP_PLAIN);
	op->wake_ms = s3_now_ms() + EVERY_MS;
	return S3_NEXT_AGAIN;
}

/* Uploads to throw away wait in found, as KEY NUL ID; then the next page. */
static enum s3_next next(struct s3_op *op)
{
	const char *name;

	if (!op->found_count)
		return op->more ? s3_op_go(op, S3_STEP_PLAIN) : s3_sweep_over(op);
	name = s3_sweep_key(op);
	free(op->upload);
	op->upload = strdup(name + strlen(name) + 1);
	return op->upload ? s3_op_go(op, S3_STEP_ABORT) : s3_sweep_over(op);
}

enum s3_next s3_sweep_aborted(struct s3_op *op)
{
	free(op->found[--op->found_count].name);
	return next(op);
}

static bool add(struct s3_op *op, const char *key, const char *id)
{
	struct s3_found *found;
	char *both;

	if (!s3_op_found(op, key, 0, NULL))
		return false;
	found = &op->found[op->found_count - 1];
	both = realloc(found->name, strlen(key) + strlen(id) + 2);
	if (!both) {
		free(found->name);
		op->found_count--;
		return false;
	}
	memcpy(both + strlen(key) + 1, id, strlen(id) + 1);
	found->name = both;
	return true;
}

/* A page that does not say where the next begins, or leads no further, is the last. */
static void take_place(struct s3_op *op, struct s3_xml page)
{
	char truncated[8], key[KEY_MAX], id[UPLOAD_MAX];
	int way;

	s3_xml_text(page, "IsTruncated", truncated, sizeof(truncated));
	if (strcmp(truncated, "true") || !s3_xml_text(page, "NextKeyMarker", key, sizeof(key)) ||
	    !*key) {
		forget_place(op);
		return;
	}
	s3_xml_text(page, "NextUploadIdMarker", id, sizeof(id));
	way = op->more ? strcmp(key, op->more) : 1;
	if (way == 0)
		way = strcmp(id, op->after ? op->after : "") != 0;
	forget_place(op);
	if (way <= 0)
		return;
	op->more = strdup(key);
	op->after = *id ? strdup(id) : NULL;
}

enum s3_next s3_sweep_page(struct s3_op *op, const struct s3_answer *a)
{
	struct s3_xml page = {a->text, a->text_length}, upload;
	char key[KEY_MAX], id[UPLOAD_MAX];

	if (!s3_xml_next(&page, "ListMultipartUploadsResult", &page))
		return s3_sweep_over(op);
	take_place(op, page);
	while (s3_xml_next(&page, "Upload", &upload))
		if (is_stale(upload) && s3_xml_text(upload, "Key", key, sizeof(key)) &&
		    s3_xml_text(upload, "UploadId", id, sizeof(id)) && is_ours(op, key) &&
		    !add(op, key, id))
			break;
	return next(op);
}
