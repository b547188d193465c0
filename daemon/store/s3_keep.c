/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a bucket does with objects by itself: it keeps versions (a delete then has to name each of them,
 * else it takes no byte away and hides what is locked), locks them, and archives them. See s3_internal.h.
 *
 * That a service locks objects is not taken on trust: not every one that takes the headers does so, and
 * Ceph's gateway drops those of multipart uploads. The first object that is put locked is looked at, and
 * what was put in parts is locked once more explicitly.
 */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/store/s3_internal.h"
#include "daemon/store/s3_xml.h"

#define NS_PER_S     1000000000ull
#define CLOCK_SKEW_S 900u /* more than that the service does not take */

static const char *lock_name(enum store_lock lock)
{
	return lock == STORE_LOCK_COMPLIANCE ? "COMPLIANCE" : "GOVERNANCE";
}

/* Rounded up: never shorter than asked for. */
static void date_text(uint64_t ns, char text[32])
{
	time_t seconds = (time_t)((ns + NS_PER_S - 1) / NS_PER_S);
	struct tm tm;

	strftime(text, 32, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&seconds, &tm));
}

void s3_keep_add(const struct s3_op *op, struct curl_slist **list, bool *ok)
{
	char date[32];

	if (!op->retention.lock)
		return;
	date_text(op->retention.until_ns, date);
	s3_op_add(list, ok, "x-amz-object-lock-mode", lock_name(op->retention.lock));
	s3_op_add(list, ok, "x-amz-object-lock-retain-until-date", date);
}

/* ---- requests ------------------------------------------------------------------------------------ */

/* Takes over text, the body of the request. */
static bool set_body(struct s3_op *op, struct s3_request *r, char *text)
{
	char md5[40];
	bool ok = true;

	free(op->body.iov_base);
	op->body = (struct iovec){text, text ? strlen(text) : 0};
	if (!text)
		return false;
	r->iov = &op->body;
	r->iov_count = 1;
	r->body_length = op->body.iov_len;
	s3_md5(&op->body, 1, 0, op->body.iov_len, md5);
	s3_op_add(&r->headers, &ok, "Content-Type", "application/xml");
	s3_op_add(&r->headers, &ok, "Content-MD5", md5);
	return ok;
}

static bool retain_request(struct s3_op *op, struct s3_request *r)
{
	char *text = NULL, date[32];

	date_text(op->retention.until_ns, date);
	if (asprintf(&text,
		     "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>%s</Mode>"
		     "<RetainUntilDate>%s</RetainUntilDate></Retention>",
		     lock_name(op->retention.lock), date) < 0)
		text = NULL;
	r->method = S3_PUT;
	r->query = "retention=";
	return set_body(op, r, text);
}

static bool thaw_request(struct s3_op *op, struct s3_request *r)
{
	static const char *const tiers[] = {"Standard", "Bulk", "Expedited"};
	const struct s3_url *url = &op->s3->url;
	char *text = NULL, days[32] = "";

	if (!op->dayless)
		snprintf(days, sizeof(days), "<Days>%u</Days>", url->restore_days);
	if (asprintf(
		    &text,
		    "<RestoreRequest xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">%s"
		    "<GlacierJobParameters><Tier>%s</Tier></GlacierJobParameters></RestoreRequest>",
		    days, tiers[url->tier]) < 0)
		text = NULL;
	r->method = S3_POST;
	r->query = "restore=";
	return set_body(op, r, text);
}

/* The version that is being deleted. */
static const char *version_of(const struct s3_op *op)
{
	return op->found[op->found_count - 1].name;
}

bool s3_keep_request(struct s3_op *op, struct s3_request *r)
{
	bool ok = true;

	if (op->step == S3_STEP_PLAIN && op->type == S3_OP_THAW)
		return thaw_request(op, r);
	switch (op->step) {
	case S3_STEP_VERSIONS:
		r->method = S3_GET;
		r->key = NULL;
		ok = s3_op_query(op, "prefix=%s%s&versions=", op->key, "");
		r->query = op->query;
		break;
	case S3_STEP_ERASE:
		r->method = S3_DELETE;
		ok = s3_op_query(op, "versionId=%s%s", version_of(op), "");
		r->query = op->query;
		break;
	case S3_STEP_RETAIN:
		return retain_request(op, r);
	case S3_STEP_RETAINED:
		r->method = S3_GET;
		if (op->type == S3_OP_DELETE)
			ok = s3_op_query(op, "retention=&versionId=%s%s", version_of(op), "");
		r->query = op->type == S3_OP_DELETE ? op->query : "retention=";
		break;
	default: /* S3_OP_THAWED */
		r->method = S3_HEAD;
		s3_op_add_key(op, &r->headers, &ok);
		break;
	}
	return ok;
}

/* ---- deleting versions --------------------------------------------------------------------------- */

enum s3_versioned s3_versioned_of(const struct s3_answer *a)
{
	return a->version[0] && strcmp(a->version, "null") ? S3_VERSIONED_YES : S3_VERSIONED_NO;
}

static bool take_versions(struct s3_op *op, struct s3_xml page, const char *element)
{
	struct s3_xml entry;
	char key[1100], id[1024];

	while (s3_xml_next(&page, element, &entry))
		if (s3_xml_text(entry, "Key", key, sizeof(key)) && !strcmp(key, op->key) &&
		    s3_xml_text(entry, "VersionId", id, sizeof(id)) && *id &&
		    !s3_op_found(op, id, 0, NULL))
			return false;
	return true;
}

static enum s3_next erase_next(struct s3_op *op)
{
	return op->found_count ? s3_op_go(op, S3_STEP_ERASE) : s3_op_done(op, 0);
}

static enum s3_next versions_listed(struct s3_op *op, const struct s3_answer *a)
{
	struct s3_xml page = {a->text, a->text_length};
	bool plain = true;

	if (!s3_xml_next(&page, "ListVersionsResult", &page))
		return s3_op_again(op, a, -EREMOTEIO); /* cut off */
	/* From the last one: of a marker and what it hides, the marker goes last. */
	if (!take_versions(op, page, "DeleteMarker") || !take_versions(op, page, "Version"))
		return s3_op_done(op, -ENOMEM);
	for (size_t i = 0; i < op->found_count; i++)
		plain = plain && !strcmp(op->found[i].name, "null");
	if (!plain || op->s3->versioned == S3_VERSIONED_YES) {
		op->s3->versioned = S3_VERSIONED_YES;
		return erase_next(op);
	}
	if (!op->found_count)
		return s3_op_done(op, 0);
	op->s3->versioned = S3_VERSIONED_NO;
	return s3_op_go(op, S3_STEP_PLAIN);
}

static enum s3_next erased(struct s3_op *op)
{
	free(op->found[--op->found_count].name);
	return erase_next(op);
}

enum s3_next s3_keep_deleted(struct s3_op *op, const struct s3_answer *a)
{
	if (strcmp(a->marker, "true"))
		return s3_op_done(op, 0);
	op->s3->versioned = S3_VERSIONED_YES;
	if (!op->blind)
		return s3_op_go(op, S3_STEP_VERSIONS);
	snprintf(
		op->message, sizeof(op->message),
		"the bucket keeps versions, and may not be asked for them: the space does not come "
		"back (needs s3:ListBucketVersions, s3:DeleteObjectVersion)");
	return s3_op_done(op, -EACCES);
}

/* A refusal in words that speak of a lock: those of Amazon, Ceph, MinIO. */
static bool speaks_of_lock(const struct s3_answer *a)
{
	return strcasestr(a->message, "object lock") || strcasestr(a->message, "legal hold") ||
	       strcasestr(a->message, "WORM") || !strcmp(a->code, "ObjectLocked");
}

/* ---- locks ----------------------------------------------------------------------------------------- */

enum s3_next s3_keep_put(struct s3_op *op, bool explicitly)
{
	if (!op->retention.lock)
		return s3_op_done(op, 0);
	if (explicitly)
		return s3_op_go(op, S3_STEP_RETAIN);
	return op->s3->lock_proven ? s3_op_done(op, 0) : s3_op_go(op, S3_STEP_RETAINED);
}

static uint64_t date_parse(const char *text)
{
	struct tm tm = {0};

	return strptime(text, "%Y-%m-%dT%H:%M:%S", &tm) ? (uint64_t)timegm(&tm) : 0;
}

/* It is not locked for as long as it should be: once more explicitly, then that is that. */
static enum s3_next retain_again(struct s3_op *op, const struct s3_answer *a, const char *found)
{
	if (!op->retain_again) {
		op->retain_again = true;
		return s3_op_go(op, S3_STEP_RETAIN);
	}
	if (!found)
		return s3_op_failed(op, a, -STORE_CANNOT_LOCK);
	snprintf(op->message, sizeof(op->message),
		 "is locked until %s, and the service does not make that longer", found);
	return s3_op_done(op, -EACCES);
}

static enum s3_next retention_seen(struct s3_op *op, const struct s3_answer *a)
{
	struct s3_xml text = {a->text, a->text_length};
	char mode[16], date[48];
	uint64_t until;

	s3_xml_text(text, "Mode", mode, sizeof(mode));
	s3_xml_text(text, "RetainUntilDate", date, sizeof(date));
	until = date_parse(date);
	if (op->type == S3_OP_RETAINED)
		return s3_op_done(op, (int64_t)until);
	if (op->type == S3_OP_DELETE)
		return until + CLOCK_SKEW_S > (uint64_t)time(NULL) ? s3_op_done(op, -STORE_LOCKED)
								   : s3_op_done(op, op->refused);
	if (until >= (op->retention.until_ns + NS_PER_S - 1) / NS_PER_S) {
		op->s3->lock_proven = true;
		op->message[0] = '\0';
		return s3_op_done(op, 0);
	}
	/* How it is locked cannot be changed, only for how long. */
	if (!strcmp(mode, "COMPLIANCE") || !strcmp(mode, "GOVERNANCE"))
		op->retention.lock = *mode == 'C' ? STORE_LOCK_COMPLIANCE : STORE_LOCK_GOVERNANCE;
	return retain_again(op, a, until ? date : NULL);
}

static bool is_missing(const struct s3_answer *a)
{
	return a->status == 404 && (!a->code[0] || !strcmp(a->code, "NoSuchKey"));
}

static enum s3_next retention_refused(struct s3_op *op, const struct s3_answer *a, int error)
{
	if (op->type == S3_OP_DELETE)
		return s3_op_done(op, op->refused);
	if (is_missing(a))
		return s3_op_done(op, op->type == S3_OP_PUT ? -EREMOTEIO : -ENOENT);
	if (op->type == S3_OP_RETAINED && a->status != 403)
		return s3_op_done(op, 0); /* no lock on it, or none in this bucket */
	if (a->status == 404)             /* there is an object, and no lock on it */
		return retain_again(op, a, NULL);
	return s3_op_failed(op, a, a->status == 403 ? error : -STORE_CANNOT_LOCK);
}

/* ---- answers --------------------------------------------------------------------------------------- */

static enum s3_next thawed(struct s3_op *op, const struct s3_answer *a)
{
	bool archive = !strcmp(a->class, "GLACIER") || !strcmp(a->class, "DEEP_ARCHIVE") ||
		       a->archive_status[0];

	if (a->restore[0])
		return s3_op_done(op, strstr(a->restore, "ongoing-request=\"false\"") != NULL);
	return s3_op_done(op, !archive);
}

static bool plain_answer(struct s3_op *op, const struct s3_answer *a, bool fine, enum s3_next *next)
{
	if (op->type == S3_OP_THAWED && fine)
		*next = thawed(op, a);
	else if (op->type != S3_OP_THAW)
		return false;
	else if (fine)
		*next = s3_op_done(op, a->status == 200);
	else if (!strcmp(a->code, "RestoreAlreadyInProgress"))
		*next = s3_op_done(op, 0);
	else if (!strcmp(a->code, "InvalidObjectState"))
		*next = s3_op_done(op, 1); /* of a class that needs no bringing back */
	else if (a->status == 400 && !op->dayless) {
		op->dayless = true;
		*next = s3_op_go(op, S3_STEP_PLAIN);
	} else
		return false;
	return true;
}

static bool refused(const struct s3_verdict *verdict)
{
	return verdict->action == S3_FAIL || verdict->action == S3_PLAIN;
}

static bool version_answer(struct s3_op *op, const struct s3_answer *a,
			   const struct s3_verdict *verdict, bool fine, enum s3_next *next)
{
	if (op->step == S3_STEP_VERSIONS) {
		if (fine) {
			*next = versions_listed(op, a);
		} else if (refused(verdict) && op->s3->versioned == S3_VERSIONED_UNKNOWN &&
			   strcmp(a->code, "NoSuchBucket")) {
			op->blind = true;
			*next = s3_op_go(op, S3_STEP_PLAIN);
		} else
			return false;
	} else if (fine || a->status == 404) {
		*next = erased(op);
	} else if (refused(verdict) && speaks_of_lock(a)) {
		*next = s3_op_done(op, -STORE_LOCKED);
	} else if (refused(verdict)) {
		op->refused = verdict->error;
		s3_verdict_text(a, verdict->error, op->message, sizeof(op->message));
		*next = s3_op_go(op, S3_STEP_RETAINED);
	} else
		return false;
	return true;
}

static bool lock_answer(struct s3_op *op, const struct s3_answer *a,
			const struct s3_verdict *verdict, bool fine, enum s3_next *next)
{
	if (op->step == S3_STEP_RETAIN && fine)
		*next = op->s3->lock_proven ? s3_op_done(op, 0) : s3_op_go(op, S3_STEP_RETAINED);
	else if (fine)
		*next = retention_seen(op, a);
	else if (!refused(verdict))
		return false;
	else if (op->step == S3_STEP_RETAINED)
		*next = retention_refused(op, a, verdict->error);
	else if (is_missing(a))
		*next = s3_op_done(op, op->type == S3_OP_PUT ? -EREMOTEIO : -ENOENT);
	else { /* perhaps it is locked for longer, or in the other way */
		s3_verdict_text(a, verdict->error, op->message, sizeof(op->message));
		*next = s3_op_go(op, S3_STEP_RETAINED);
	}
	return true;
}

bool s3_keep_answer(struct s3_op *op, const struct s3_answer *a, const struct s3_verdict *verdict,
		    enum s3_next *next)
{
	bool fine = verdict->action == S3_FINE;

	switch (op->step) {
	case S3_STEP_PLAIN:
		return plain_answer(op, a, fine, next);
	case S3_STEP_VERSIONS:
	case S3_STEP_ERASE:
		return version_answer(op, a, verdict, fine, next);
	case S3_STEP_RETAIN:
	case S3_STEP_RETAINED:
		return lock_answer(op, a, verdict, fine, next);
	default:
		return false;
	}
}
