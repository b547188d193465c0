/* SPDX-License-Identifier: Apache-2.0 */
/*
 * s3_exchange: one signed request and its answer, on an easy handle of libcurl that is used again and
 * again. The caller drives the handle (curl_multi, curl_easy_perform); bodies go from and to the
 * caller's memory without a copy of ours.
 */
#ifndef OFFSITE_STORE_S3_EXCHANGE_H
#define OFFSITE_STORE_S3_EXCHANGE_H

#include <curl/curl.h>
#include <sys/uio.h>

#include "daemon/store/s3_credentials.h"

#define S3_SHA256_TEXT 65
#define S3_TEXT_MAX    (4u * 1024u * 1024u) /* of an answer that is text */

enum s3_method { S3_GET, S3_HEAD, S3_PUT, S3_POST, S3_DELETE };

/* Where the bucket is, and how to get there. */
struct s3_access {
	const struct s3_url *url;
	struct s3_credentials credentials;
	char *endpoint; /* SCHEME://HOST[:PORT], without the bucket */
	char *region;
	char *ca_file; /* or NULL */
	bool path_style;
	char *sse_key, *sse_key_md5; /* Base64, for sse=customer; or NULL */
	uint64_t refreshed_ms;       /* when it was last tried */
	unsigned generation;         /* raised with each change of region or credentials */
};

struct s3_request {
	enum s3_method method;
	const char *key;            /* object's full key; NULL: the bucket */
	const char *query;          /* sorted and escaped, every name with '=', or "" */
	struct curl_slist *headers; /* of S3's; taken over */
	/* PUT, POST: the body is [body_offset, body_offset + body_length) of these parts. */
	const struct iovec *iov;
	unsigned iov_count;
	uint64_t body_offset, body_length;
	/* GET of an object: where a good answer goes; more than room is an error. NULL: text. */
	void *sink;
	size_t sink_room;
};

/* What came back. Header fields are "" or 0 where they were missing. */
struct s3_answer {
	CURLcode curl;
	long status; /* 0: none came */
	char curl_error[CURL_ERROR_SIZE];
	char code[64], message[256]; /* of an error in XML */
	char region[64], checksum[32], token[40], etag[72], request_id[64], date[40];
	char version[8];         /* of the object: only whether it is "null", or any other (cut) */
	char marker[8];          /* "true": a delete marker */
	char class[32];          /* of storage; "" is standard */
	char restore[128];       /* x-amz-restore */
	char archive_status[32]; /* x-amz-archive-status */
	unsigned retry_after_s;
	uint64_t length; /* Content-Length */
	bool ranged;     /* Content-Range was there: */
	uint64_t range_begin, range_total;
	size_t received; /* bytes in the sink */
	char *text;      /* text_length bytes and a NUL; the exchange's, until the next begins */
	size_t text_length;
};

struct s3_exchange;

struct s3_exchange *s3_exchange_new(void);
void s3_exchange_free(struct s3_exchange *x);
CURL *s3_exchange_easy(struct s3_exchange *x);
/* Prepares the handle. -ENOMEM if that fails. context: found again by s3_exchange_context(). */
int s3_exchange_begin(struct s3_exchange *x, const struct s3_access *access,
		      const struct s3_request *request, void *context);
/* Of a handle that a multi reports done. */
struct s3_exchange *s3_exchange_of(CURL *easy);
void *s3_exchange_context(struct s3_exchange *x);
/* After the transfer. The answer is the exchange's. */
const struct s3_answer *s3_exchange_end(struct s3_exchange *x, CURLcode result);

/* Header "NAME: VALUE" added to a list; NULL list and out of memory: NULL, the list freed. */
struct curl_slist *s3_header(struct curl_slist *list, const char *name, const char *value);
/* Base64 of CRC32C or MD5 of a part of a body. text has at least 32 bytes. */
void s3_crc32c(const struct iovec *iov, unsigned count, uint64_t offset, uint64_t length,
	       char *text);
void s3_md5(const struct iovec *iov, unsigned count, uint64_t offset, uint64_t length, char *text);

#endif
