/* SPDX-License-Identifier: Apache-2.0 */
/* The steps of an operation. See s3_internal.h. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "daemon/store/s3_internal.h"
#include "daemon/store/s3_verdict.h"
#include "daemon/store/s3_xml.h"

#define CHANGES_MAX    4
#define PAUSE_FIRST_MS 100u
#define PAUSE_MAX_MS   20000u
#define PROBE_RETRY_S  6u
#define ABORT_RETRY_S  10u
#define PROGRESS_BYTES 65536u
#define PARTS_MAX      10000u

uint64_t s3_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* ---- life ------------------------------------------------------------------------------------ */

/* Without memory for an operation of some hundred bytes there is nothing to answer with. */
struct s3_op *s3_op_new(struct s3_store *s3, enum s3_op_type type, const char *name)
{
	struct s3_op *op = calloc(1, sizeof(*op));

	assert(op);
	op->s3 = s3;
	op->type = type;
	if (asprintf(&op->key, "%s%s", s3->url.prefix, name) < 0)
		abort();
	return op;
}

static void found_free(struct s3_op *op)
{
	for (size_t i = 0; i < op->found_count; i++)
		free(op->found[i].name);
	op->found_count = 0;
}

void s3_op_free(struct s3_op *op)
{
	found_free(op);
	free(op->found);
	free(op->key);
	free(op->query);
	free(op->upload);
	free(op->parts);
	free(op->body.iov_base);
	free(op->more);
	free(op->after);
	free(op->from);
	free(op);
}

static uint64_t part_bytes(const struct s3_op *op)
{
	uint64_t bytes = (uint64_t)op->s3->url.part_mib << 20;

	while (op->size_bytes / bytes >= PARTS_MAX)
		bytes *= 2;
	return bytes;
}

static bool is_multipart(const struct s3_op *op)
{
	return op->type == S3_OP_PUT && op->size_bytes > part_bytes(op);
}

static void set_step(struct s3_op *op, enum s3_step step)
{
	op->step = step;
	op->tries = op->changes = 0;
	op->first_try_ms = 0;
}

static enum s3_step first_step(const struct s3_op *op)
{
	if (op->type == S3_OP_PUT && !op->looked)
		return S3_STEP_LOOK;
	if (op->type == S3_OP_DELETE && op->s3->versioned != S3_VERSIONED_NO)
		return S3_STEP_VERSIONS;
	if (op->type == S3_OP_RETAINED)
		return S3_STEP_RETAINED;
	return op->type == S3_OP_RETAIN ? S3_STEP_RETAIN : S3_STEP_PLAIN;
}

void s3_op_begin(struct s3_op *op)
{
	op->plain = op->s3->plain;
	op->looked = op->type != S3_OP_PUT || (op->plain < 2 && !is_multipart(op));
	set_step(op, first_step(op));
	if (!op->begun_ms)
		op->begun_ms = s3_now_ms();
}

/* ---- requests ------------------------------------------------------------------------------------ */

/* Takes the list along; NULL once memory is out. */
void s3_op_add(struct curl_slist **list, bool *ok, const char *name, const char *value)
{
	if (!*ok || !value)
		return;
	*list = s3_header(*list, name, value);
	*ok = *list != NULL;
}

/* KEY:VALUE,KEY:VALUE as a query string. */
static char *tags_text(const char *tags)
{
	char *copy = strdup(tags), *next = copy, *text = NULL, *tag;

	while (copy && (tag = strsep(&next, ","))) {
		char *value = strchr(tag, ':');
		char *key_text, *value_text, *joined = NULL;

		*value++ = '\0';
		key_text = curl_easy_escape(NULL, tag, 0);
		value_text = curl_easy_escape(NULL, value, 0);
		if (!key_text || !value_text ||
		    asprintf(&joined, "%s%s%s=%s", text ? text : "", text ? "&" : "", key_text,
			     value_text) < 0)
			joined = NULL;
		curl_free(key_text);
		curl_free(value_text);
		free(text);
		text = joined;
		if (!text)
			break;
	}
	free(copy);
	return text;
}

/* By the folder in VOLUME/FOLDER/...; other objects go to the bucket's default. */
static const char *class_of(const struct s3_op *op)
{
	const struct s3_url *url = &op->s3->url;
	const char *folder = strchr(op->key + strlen(url->prefix), '/');

	if (folder && !strncmp(folder, "/packs/", 7))
		return url->class_packs;
	if (folder && !strncmp(folder, "/maps/", 6))
		return url->class_maps;
	if (folder && !strncmp(folder, "/snapshots/", 11))
		return url->class_snapshots;
	return NULL;
}

void s3_op_add_key(const struct s3_op *op, struct curl_slist **list, bool *ok)
{
	const struct s3_access *access = &op->s3->access;

	if (!access->sse_key)
		return;
	s3_op_add(list, ok, "x-amz-server-side-encryption-customer-algorithm", "AES256");
	s3_op_add(list, ok, "x-amz-server-side-encryption-customer-key", access->sse_key);
	s3_op_add(list, ok, "x-amz-server-side-encryption-customer-key-MD5", access->sse_key_md5);
}

/* Of a new object, whole or in parts. */
static void add_new(const struct s3_op *op, struct curl_slist **list, bool *ok)
{
	const struct s3_url *url = &op->s3->url;
	char *tags = url->tags ? tags_text(url->tags) : NULL;

	s3_op_add(list, ok, "Content-Type", "application/octet-stream");
	s3_op_add(list, ok, "x-amz-meta-offsite-put", op->token);
	s3_op_add(list, ok, "x-amz-storage-class", class_of(op));
	if (url->sse == S3_SSE_S3 || url->sse == S3_SSE_KMS)
		s3_op_add(list, ok, "x-amz-server-side-encryption",
			  url->sse == S3_SSE_S3 ? "AES256" : "aws:kms");
	s3_op_add(list, ok, "x-amz-server-side-encryption-aws-kms-key-id", url->sse_key);
	s3_op_add_key(op, list, ok);
	if (url->tags && !tags)
		*ok = false;
	s3_op_add(list, ok, "x-amz-tagging", tags);
	s3_keep_add(op, list, ok);
	free(tags);
}

static enum s3_checksum checksum_of(const struct s3_op *op)
{
	enum s3_checksum wanted = op->s3->url.checksum;

	/* What is to be locked has to have one. */
	if (wanted == S3_CHECKSUM_NONE && op->retention.lock)
		return S3_CHECKSUM_MD5;
	return wanted == S3_CHECKSUM_CRC32C && op->plain ? S3_CHECKSUM_MD5 : wanted;
}

/* Of the body; text keeps it. */
static void add_checksum(const struct s3_op *op, const struct s3_request *r, char text[40],
			 struct curl_slist **list, bool *ok)
{
	text[0] = '\0';
	switch (checksum_of(op)) {
	case S3_CHECKSUM_CRC32C:
		s3_crc32c(r->iov, r->iov_count, r->body_offset, r->body_length, text);
		s3_op_add(list, ok, "x-amz-checksum-crc32c", text);
		break;
	case S3_CHECKSUM_MD5:
		s3_md5(r->iov, r->iov_count, r->body_offset, r->body_length, text);
		s3_op_add(list, ok, "Content-MD5", text);
		break;
	case S3_CHECKSUM_NONE:
		break;
	}
}

bool s3_op_query(struct s3_op *op, const char *format, const char *a, const char *b)
{
	char *a_text = curl_easy_escape(NULL, a, 0), *b_text = curl_easy_escape(NULL, b, 0);

	free(op->query);
	op->query = NULL;
	if (!a_text || !b_text || asprintf(&op->query, format, a_text, b_text) < 0)
		op->query = NULL;
	curl_free(a_text);
	curl_free(b_text);
	return op->query != NULL;
}

static bool list_request(struct s3_op *op, struct s3_request *r)
{
	bool ok;

	r->method = S3_GET;
	r->key = NULL;
	if (op->type == S3_OP_SWEEP)
		ok = s3_sweep_query(op);
	else if (op->type == S3_OP_PROBE)
		ok = s3_op_query(op, "list-type=2&max-keys=1&prefix=%s%s", op->key, "");
	else if (op->more)
		ok = s3_op_query(op, "continuation-token=%s&list-type=2&prefix=%s", op->more,
				 op->key);
	else if (op->from)
		ok = s3_op_query(op, "list-type=2&prefix=%s&start-after=%s", op->key, op->from);
	else
		ok = s3_op_query(op, "list-type=2&prefix=%s%s", op->key, "");
	r->query = op->query;
	return ok;
}

static void put_request(struct s3_op *op, struct s3_request *r, bool *ok)
{
	char text[40];

	r->method = S3_PUT;
	r->iov = op->iov;
	r->iov_count = op->iov_count;
	r->body_length = op->size_bytes;
	add_new(op, &r->headers, ok);
	add_checksum(op, r, text, &r->headers, ok);
	if (op->plain < 2)
		s3_op_add(&r->headers, ok, "If-None-Match", "*");
}

static void read_request(struct s3_op *op, struct s3_request *r, bool *ok)
{
	char range[64];

	snprintf(range, sizeof(range), "bytes=%llu-%llu",
		 (unsigned long long)(op->offset + op->got),
		 (unsigned long long)(op->offset + op->length - 1));
	r->method = S3_GET;
	r->sink = (char *)op->buf + op->got;
	r->sink_room = op->length - op->got;
	s3_op_add_key(op, &r->headers, ok);
	s3_op_add(&r->headers, ok, "Range", range);
}

static bool plain_request(struct s3_op *op, struct s3_request *r)
{
	bool ok = true;

	switch (op->type) {
	case S3_OP_PUT:
		put_request(op, r, &ok);
		break;
	case S3_OP_READ:
		read_request(op, r, &ok);
		break;
	case S3_OP_SIZE:
		r->method = S3_HEAD;
		s3_op_add_key(op, &r->headers, &ok);
		break;
	case S3_OP_DELETE:
		r->method = S3_DELETE;
		break;
	case S3_OP_LIST:
	case S3_OP_PROBE:
	case S3_OP_SWEEP:
		ok = list_request(op, r);
		break;
	case S3_OP_RETAIN:
	case S3_OP_RETAINED:
	case S3_OP_THAW:
	case S3_OP_THAWED:
		ok = s3_keep_request(op, r);
		break;
	}
	return ok;
}

static bool part_request(struct s3_op *op, struct s3_request *r)
{
	uint64_t bytes = part_bytes(op);
	char number[12];
	bool ok;

	snprintf(number, sizeof(number), "%u", op->part + 1);
	ok = s3_op_query(op, "partNumber=%s&uploadId=%s", number, op->upload);
	r->method = S3_PUT;
	r->query = op->query;
	r->iov = op->iov;
	r->iov_count = op->iov_count;
	r->body_offset = op->part * bytes;
	r->body_length = op->size_bytes - r->body_offset;
	if (r->body_length > bytes)
		r->body_length = bytes;
	s3_op_add_key(op, &r->headers, &ok);
	if (ok)
		add_checksum(op, r, op->parts[op->part].checksum, &r->headers, &ok);
	return ok;
}

/* The list of parts. */
static bool complete_body(struct s3_op *op)
{
	bool crc = checksum_of(op) == S3_CHECKSUM_CRC32C;
	char *text = NULL;
	size_t length = 0;
	FILE *out = open_memstream(&text, &length);

	if (!out)
		return false;
	fputs("<CompleteMultipartUpload>", out);
	for (unsigned i = 0; i < op->part_count; i++) {
		fprintf(out, "<Part><PartNumber>%u</PartNumber><ETag>%s</ETag>", i + 1,
			op->parts[i].etag);
		if (crc)
			fprintf(out, "<ChecksumCRC32C>%s</ChecksumCRC32C>", op->parts[i].checksum);
		fputs("</Part>", out);
	}
	fputs("</CompleteMultipartUpload>", out);
	if (fclose(out)) {
		free(text);
		return false;
	}
	free(op->body.iov_base);
	op->body = (struct iovec){text, length};
	return true;
}

static bool complete_request(struct s3_op *op, struct s3_request *r)
{
	bool ok = complete_body(op) && s3_op_query(op, "uploadId=%s%s", op->upload, "");

	r->method = S3_POST;
	r->query = op->query;
	r->iov = &op->body;
	r->iov_count = 1;
	r->body_length = op->body.iov_len;
	s3_op_add(&r->headers, &ok, "Content-Type", "application/xml");
	s3_op_add_key(op, &r->headers, &ok); /* Amazon: where the parts have checksums */
	if (op->plain < 2)
		s3_op_add(&r->headers, &ok, "If-None-Match", "*");
	return ok;
}

static bool create_request(struct s3_op *op, struct s3_request *r)
{
	bool ok = true;

	r->method = S3_POST;
	r->query = "uploads=";
	add_new(op, &r->headers, &ok);
	if (checksum_of(op) == S3_CHECKSUM_CRC32C)
		s3_op_add(&r->headers, &ok, "x-amz-checksum-algorithm", "CRC32C");
	return ok;
}

int s3_op_request(struct s3_op *op, struct s3_request *r)
{
	bool ok = true;

	*r = (struct s3_request){.key = op->key, .query = ""};
	op->generation = op->s3->access.generation;
	if (!op->first_try_ms)
		op->first_try_ms = s3_now_ms();
	op->tries++;
	switch (op->step) {
	case S3_STEP_PLAIN:
		ok = plain_request(op, r);
		break;
	case S3_STEP_LOOK:
		r->method = S3_HEAD;
		s3_op_add_key(op, &r->headers, &ok);
		break;
	case S3_STEP_CREATE:
		ok = create_request(op, r);
		break;
	case S3_STEP_PART:
		ok = part_request(op, r);
		break;
	case S3_STEP_COMPLETE:
		ok = complete_request(op, r);
		break;
	case S3_STEP_ABORT:
		r->method = S3_DELETE;
		if (op->type == S3_OP_SWEEP)
			r->key = s3_sweep_key(op);
		ok = s3_op_query(op, "uploadId=%s%s", op->upload, "");
		r->query = op->query;
		break;
	case S3_STEP_VERSIONS:
	case S3_STEP_ERASE:
	case S3_STEP_RETAIN:
	case S3_STEP_RETAINED:
		ok = s3_keep_request(op, r);
		break;
	}
	if (ok)
		return 0;
	curl_slist_free_all(r->headers);
	return -ENOMEM;
}

static enum s3_method method_of(const struct s3_op *op)
{
	switch (op->step) {
	case S3_STEP_LOOK:
		return S3_HEAD;
	case S3_STEP_PLAIN:
		return op->type == S3_OP_SIZE || op->type == S3_OP_THAWED ? S3_HEAD : S3_GET;
	default:
		return S3_GET; /* nothing depends on which of the others */
	}
}

/* ---- answers ------------------------------------------------------------------------------------------ */

enum s3_next s3_op_done(struct s3_op *op, int64_t result)
{
	op->result = result;
	return S3_NEXT_DONE;
}

/* The operation cannot go on; parts that were put are not left behind. */
static enum s3_next give_up(struct s3_op *op, int error)
{
	if (op->type != S3_OP_PUT || !op->upload)
		return s3_op_done(op, error);
	op->abort_error = error;
	set_step(op, S3_STEP_ABORT);
	return S3_NEXT_STEP;
}

bool s3_op_drop(struct s3_op *op, int error)
{
	return give_up(op, error) == S3_NEXT_STEP;
}

enum s3_next s3_op_go(struct s3_op *op, enum s3_step step)
{
	set_step(op, step);
	return S3_NEXT_STEP;
}

bool s3_op_found(struct s3_op *op, const char *name, uint64_t size_bytes, const char *archive)
{
	if (op->found_count == op->found_room) {
		size_t room = op->found_room ? op->found_room * 2 : 1024;
		struct s3_found *more = realloc(op->found, room * sizeof(*more));

		if (!more)
			return false;
		op->found = more;
		op->found_room = room;
	}
	op->found[op->found_count].size_bytes = size_bytes;
	op->found[op->found_count].archive = archive;
	op->found[op->found_count].name = strdup(name);
	return op->found[op->found_count++].name != NULL;
}

/* The classes from which an object has to be brought back. Which objects of INTELLIGENT_TIERING are
 * archived no listing tells. */
static const char *archive_of(struct s3_xml entry)
{
	static const char *const archives[] = {"GLACIER", "DEEP_ARCHIVE"};
	char class[32];

	s3_xml_text(entry, "StorageClass", class, sizeof(class));
	for (size_t i = 0; i < sizeof(archives) / sizeof(archives[0]); i++)
		if (!strcmp(class, archives[i]))
			return archives[i];
	return NULL;
}

/* One object of a listing. 0, or -errno. */
static int list_entry(struct s3_op *op, struct s3_xml entry)
{
	size_t prefix = strlen(op->s3->url.prefix);
	char key[1100], size[24];
	char *end;

	/* No name of ours: too long, or not printable. */
	if (!s3_xml_text(entry, "Key", key, sizeof(key)))
		return 0;
	if (op->from && strcmp(key, op->from) <= 0)
		return 0; /* a service that does not know start-after */
	if (strncmp(key, op->key, strlen(op->key)) || (op->after && strcmp(key, op->after) <= 0)) {
		snprintf(op->message, sizeof(op->message), "the listing of %s is not in order",
			 op->key);
		return -EREMOTEIO;
	}
	free(op->after);
	op->after = strdup(key);
	if (!op->after)
		return -ENOMEM;
	if (!store_name_valid(key + prefix))
		return 0;
	if (!s3_xml_text(entry, "Size", size, sizeof(size)) || !*size)
		return -EREMOTEIO;
	errno = 0;
	unsigned long long bytes = strtoull(size, &end, 10);
	if (*end || errno || bytes > INT64_MAX)
		return -EREMOTEIO;
	return s3_op_found(op, key + prefix, bytes, archive_of(entry)) ? 0 : -ENOMEM;
}

/* The whole page has to be there: one that was cut off has no end tag. */
static enum s3_next list_page(struct s3_op *op, const struct s3_answer *a)
{
	struct s3_xml page = {a->text, a->text_length}, entry;
	char truncated[8], more[2048];
	int error = 0;

	if (!s3_xml_next(&page, "ListBucketResult", &page))
		return s3_op_again(op, a, -EREMOTEIO);
	s3_xml_text(page, "IsTruncated", truncated, sizeof(truncated));
	s3_xml_text(page, "NextContinuationToken", more, sizeof(more));
	free(op->more);
	op->more = NULL;
	if (op->type == S3_OP_PROBE)
		return s3_op_done(op, 0);
	while (!error && s3_xml_next(&page, "Contents", &entry))
		error = list_entry(op, entry);
	if (!error && !strcmp(truncated, "true")) {
		op->more = *more ? strdup(more) : NULL;
		if (!op->more)
			error = *more ? -ENOMEM : -EREMOTEIO;
	}
	return s3_op_done(op, error);
}

/* Some or all of what was asked for has come. */
static enum s3_next read_more(struct s3_op *op, const struct s3_answer *a)
{
	uint64_t begin = op->offset + op->got;
	uint64_t total = a->ranged ? a->range_total : a->received;
	uint64_t want;

	if ((a->ranged ? a->range_begin : 0) != begin) {
		snprintf(op->message, sizeof(op->message),
			 "%s: another range came than was asked for", op->key);
		return s3_op_done(op, -EREMOTEIO);
	}
	op->got += a->received;
	want = total > op->offset ? total - op->offset : 0;
	if (want > op->length)
		want = op->length;
	if (op->got >= want)
		return s3_op_done(op, (int64_t)op->got);
	return a->received ? s3_op_go(op, S3_STEP_PLAIN) : s3_op_done(op, -EREMOTEIO);
}

static enum s3_next plain_fine(struct s3_op *op, const struct s3_answer *a)
{
	switch (op->type) {
	case S3_OP_READ:
		return read_more(op, a);
	case S3_OP_SIZE:
		return s3_op_done(op, (int64_t)a->length);
	case S3_OP_LIST:
	case S3_OP_PROBE:
		return list_page(op, a);
	case S3_OP_SWEEP:
		return s3_sweep_page(op, a);
	case S3_OP_PUT:
		op->s3->versioned = s3_versioned_of(a);
		return s3_keep_put(op, false);
	case S3_OP_DELETE:
		return s3_keep_deleted(op, a);
	case S3_OP_RETAIN:
	case S3_OP_RETAINED:
	case S3_OP_THAW:
	case S3_OP_THAWED:
		break; /* s3_keep.c's */
	}
	abort();
}

static enum s3_next look_fine(struct s3_op *op, const struct s3_answer *a)
{
	if (!strcmp(a->token, op->token) && a->length == op->size_bytes) {
		free(op->upload); /* is no more */
		op->upload = NULL;
		return s3_keep_put(op, true);
	}
	return give_up(op, -EEXIST);
}

static enum s3_next create_fine(struct s3_op *op, const struct s3_answer *a)
{
	struct s3_xml text = {a->text, a->text_length};
	uint64_t bytes = part_bytes(op);
	char id[1024];

	if (!s3_xml_text(text, "UploadId", id, sizeof(id)) || !*id)
		return s3_op_done(op, -EREMOTEIO);
	op->part_count = (unsigned)((op->size_bytes + bytes - 1) / bytes);
	op->upload = strdup(id);
	op->parts = calloc(op->part_count, sizeof(*op->parts));
	if (!op->upload || !op->parts)
		return give_up(op, -ENOMEM);
	return s3_op_go(op, S3_STEP_PART);
}

static enum s3_next part_fine(struct s3_op *op, const struct s3_answer *a)
{
	struct s3_part *part = &op->parts[op->part];

	if (!a->etag[0] || strpbrk(a->etag, "<&>"))
		return give_up(op, -EREMOTEIO);
	memcpy(part->etag, a->etag, sizeof(part->etag));
	return s3_op_go(op, ++op->part == op->part_count ? S3_STEP_COMPLETE : S3_STEP_PART);
}

static enum s3_next abort_ended(struct s3_op *op)
{
	if (op->type == S3_OP_PUT)
		return s3_op_done(op, op->abort_error);
	return s3_sweep_aborted(op);
}

static enum s3_next fine(struct s3_op *op, const struct s3_answer *a)
{
	if (op->plain > op->s3->plain)
		op->s3->plain = op->plain;
	switch (op->step) {
	case S3_STEP_PLAIN:
		return plain_fine(op, a);
	case S3_STEP_LOOK:
		return look_fine(op, a);
	case S3_STEP_CREATE:
		return create_fine(op, a);
	case S3_STEP_PART:
		return part_fine(op, a);
	case S3_STEP_COMPLETE:
		free(op->upload); /* is no more */
		op->upload = NULL;
		return s3_keep_put(op, true);
	case S3_STEP_ABORT:
		return abort_ended(op);
	case S3_STEP_VERSIONS:
	case S3_STEP_ERASE:
	case S3_STEP_RETAIN:
	case S3_STEP_RETAINED:
		break; /* s3_keep.c's */
	}
	abort();
}

/* What is no failure for this step. True: *next says how it goes on. */
static bool is_expected(struct s3_op *op, const struct s3_answer *a, enum s3_next *next)
{
	bool gone = a->status == 404;

	if (op->step == S3_STEP_PLAIN && op->type == S3_OP_READ && a->status == 416)
		*next = s3_op_done(op, (int64_t)op->got);
	else if (op->step == S3_STEP_PLAIN && op->type == S3_OP_DELETE && gone &&
		 strcmp(a->code, "NoSuchBucket"))
		*next = s3_op_done(op, 0);
	else if (op->type == S3_OP_PUT && a->status == 412)
		*next = s3_op_go(
			op, S3_STEP_LOOK); /* perhaps our own, put by a try whose answer was lost */
	else if (op->step == S3_STEP_COMPLETE && gone)
		*next = s3_op_go(op, S3_STEP_LOOK);
	else if (op->step == S3_STEP_LOOK && gone && !op->looked) {
		op->looked = true;
		*next = s3_op_go(op, is_multipart(op) ? S3_STEP_CREATE : S3_STEP_PLAIN);
	} else
		return false;
	return true;
}

enum s3_next s3_op_failed(struct s3_op *op, const struct s3_answer *a, int error)
{
	if (op->step == S3_STEP_ABORT)
		return abort_ended(op);
	if (op->type == S3_OP_SWEEP)
		return s3_sweep_over(op);
	if (error == -ENOENT && (op->type == S3_OP_PUT || op->type == S3_OP_LIST))
		error = -EREMOTEIO;
	op->message[0] = '\0';
	if (error != -ENOENT && error != -EEXIST)
		s3_verdict_text(a, error, op->message, sizeof(op->message));
	return give_up(op, error);
}

static uint64_t jitter(uint64_t limit)
{
	uint32_t random;

	if (getrandom(&random, sizeof(random), GRND_NONBLOCK) != sizeof(random))
		random = (uint32_t)s3_now_ms() * 2654435761u;
	return limit / 2 + random % (limit / 2 + 1);
}

/* The service wants to be left alone for longer than an operation may take: it says so, and is. */
static enum s3_next refused_for_long(struct s3_op *op, const struct s3_answer *a, int error,
				     uint64_t limit_s)
{
	bool aborting = op->step == S3_STEP_ABORT;
	enum s3_next next = s3_op_failed(op, a, error);
	size_t used = strlen(op->message);

	if (!aborting)
		snprintf(op->message + used, sizeof(op->message) - used,
			 "; it is not to be tried again before %u s (Retry-After), which is longer "
			 "than %llu s (retry)",
			 a->retry_after_s, (unsigned long long)limit_s);
	return next;
}

enum s3_next s3_op_again(struct s3_op *op, const struct s3_answer *a, int error)
{
	uint64_t now = s3_now_ms(), pause, end, limit_s = op->s3->url.retry_s;
	uint64_t told_ms = a->retry_after_s * 1000ull;
	unsigned doublings = op->tries > 8 ? 8 : op->tries - 1;

	if (op->type == S3_OP_PROBE && limit_s > PROBE_RETRY_S)
		limit_s = PROBE_RETRY_S;
	if (op->step == S3_STEP_ABORT && limit_s > ABORT_RETRY_S)
		limit_s = ABORT_RETRY_S;
	end = op->first_try_ms + limit_s * 1000;
	if (now >= end)
		return s3_op_failed(op, a, error);
	if (now + told_ms > end)
		return refused_for_long(op, a, error, limit_s);
	s3_verdict_text(a, error, op->message, sizeof(op->message));
	pause = jitter(PAUSE_FIRST_MS << doublings);
	if (pause > PAUSE_MAX_MS)
		pause = PAUSE_MAX_MS;
	pause += told_ms;
	op->wake_ms = now + pause < end ? now + pause : end;
	return S3_NEXT_AGAIN;
}

/* What came of a transfer that broke off is kept. */
static void keep_received(struct s3_op *op, const struct s3_answer *a)
{
	if (op->type != S3_OP_READ || op->step != S3_STEP_PLAIN || a->status / 100 != 2 ||
	    (a->ranged ? a->range_begin : 0) != op->offset + op->got)
		return;
	op->got += a->received;
	if (a->received >= PROGRESS_BYTES)
		set_step(op, S3_STEP_PLAIN);
	op->tries += !op->tries;
	op->first_try_ms = op->first_try_ms ? op->first_try_ms : s3_now_ms();
}

static bool change(struct s3_op *op, const struct s3_answer *a, enum s3_action action)
{
	struct s3_access *access = &op->s3->access;

	if (op->changes == CHANGES_MAX)
		return false;
	op->changes++;
	if (access->generation != op->generation)
		return true; /* another operation has seen to it */
	if (action == S3_REGION)
		return s3_access_move(access, a->region);
	return s3_access_refresh(access);
}

/* Leaves out what the service may not know. */
static enum s3_next plainer(struct s3_op *op, const struct s3_answer *a, int error)
{
	bool put = op->type == S3_OP_PUT && op->step != S3_STEP_LOOK && op->step != S3_STEP_ABORT;

	if (put && op->plain == 2 && op->retention.lock)
		error = -STORE_CANNOT_LOCK; /* with nothing else left to be the reason */
	if (!put || op->plain == 2 || op->step == S3_STEP_PART)
		return s3_op_failed(op, a, error);
	op->plain++;
	if (op->step == S3_STEP_PLAIN && op->plain == 2) {
		op->looked = false;
		return s3_op_go(op, S3_STEP_LOOK);
	}
	return s3_op_go(op, op->step);
}

enum s3_next s3_op_answer(struct s3_op *op, const struct s3_answer *a)
{
	struct s3_verdict verdict = s3_verdict(a, method_of(op));
	enum s3_next next;

	if ((a->curl == CURLE_OK || a->status >= 300) &&
	    (s3_keep_answer(op, a, &verdict, &next) || is_expected(op, a, &next)))
		return next;
	switch (verdict.action) {
	case S3_FINE:
		return fine(op, a);
	case S3_FAIL:
		return s3_op_failed(op, a, verdict.error);
	case S3_RETRY:
		keep_received(op, a);
		return s3_op_again(op, a, verdict.error);
	case S3_REFRESH:
	case S3_REGION:
		if (change(op, a, verdict.action))
			return S3_NEXT_STEP;
		return s3_op_failed(op, a, verdict.error);
	case S3_PLAIN:
		return plainer(op, a, verdict.error);
	}
	abort();
}
