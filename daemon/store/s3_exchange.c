/* SPDX-License-Identifier: Apache-2.0 */
/* One request and its answer. See s3_exchange.h. */
#include "daemon/store/s3_exchange.h"

#include <assert.h>
#include <errno.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "daemon/store/s3_sign.h"
#include "daemon/store/s3_xml.h"
#include "protocol/wire.h"

#define SEND_BUFFER_BYTES (256L * 1024L)
#define RECV_BUFFER_BYTES \
	(64L * 1024L) /* stays in a core's own cache until it is copied on, with all connections */
#define CONNECT_TIMEOUT_S  10L
#define SLOW_BYTES_PER_SEC 1024L
#define URL_MAX            8192

struct s3_exchange {
	CURL *easy;
	void *context;
	struct s3_request request;
	struct s3_answer answer;
	uint64_t sent; /* of the body */
	size_t text_room;
};

/* ---- bodies ------------------------------------------------------------------------------------ */

/* The piece of the parts at offset, at most length bytes. */
static struct iovec piece(const struct iovec *iov, unsigned count, uint64_t offset, uint64_t length)
{
	for (unsigned i = 0; i < count; i++) {
		if (offset < iov[i].iov_len) {
			uint64_t there = iov[i].iov_len - offset;

			return (struct iovec){(char *)iov[i].iov_base + offset,
					      there < length ? there : length};
		}
		offset -= iov[i].iov_len;
	}
	return (struct iovec){NULL, 0};
}

static void digest(const EVP_MD *type, const struct iovec *iov, unsigned count, uint64_t offset,
		   uint64_t length, uint8_t result[EVP_MAX_MD_SIZE])
{
	EVP_MD_CTX *context = EVP_MD_CTX_new();
	bool ok = context && EVP_DigestInit_ex(context, type, NULL);

	while (ok && length) {
		struct iovec part = piece(iov, count, offset, length);

		assert(part.iov_len);
		ok = EVP_DigestUpdate(context, part.iov_base, part.iov_len);
		offset += part.iov_len;
		length -= part.iov_len;
	}
	ok = ok && EVP_DigestFinal_ex(context, result, NULL);
	EVP_MD_CTX_free(context);
	/* Only without memory: what is sent then is refused by the other side. */
	if (!ok)
		memset(result, 0, EVP_MAX_MD_SIZE);
}

void s3_md5(const struct iovec *iov, unsigned count, uint64_t offset, uint64_t length, char *text)
{
	uint8_t result[EVP_MAX_MD_SIZE];

	digest(EVP_md5(), iov, count, offset, length, result);
	EVP_EncodeBlock((unsigned char *)text, result, 16);
}

void s3_crc32c(const struct iovec *iov, unsigned count, uint64_t offset, uint64_t length,
	       char *text)
{
	uint32_t crc = 0;
	be32_t wire;

	while (length) {
		struct iovec part = piece(iov, count, offset, length);

		assert(part.iov_len);
		crc = crc32c(crc, part.iov_base, part.iov_len);
		offset += part.iov_len;
		length -= part.iov_len;
	}
	wire = to_be32(crc);
	EVP_EncodeBlock((unsigned char *)text, (const unsigned char *)&wire, sizeof(wire));
}

static void sha256_text(const struct s3_request *r, char text[S3_SHA256_TEXT])
{
	uint8_t result[EVP_MAX_MD_SIZE];

	digest(EVP_sha256(), r->iov, r->iov_count, r->body_offset, r->body_length, result);
	for (unsigned i = 0; i < 32; i++)
		snprintf(text + 2 * i, 3, "%02x", result[i]);
}

/* ---- callbacks of libcurl ------------------------------------------------------------------------- */

static size_t read_body(char *to, size_t size, size_t count, void *context)
{
	struct s3_exchange *x = context;
	const struct s3_request *r = &x->request;
	size_t room = size * count, used = 0;

	while (used < room && x->sent < r->body_length) {
		uint64_t left = r->body_length - x->sent;
		struct iovec part = piece(r->iov, r->iov_count, r->body_offset + x->sent,
					  left < room - used ? left : room - used);

		memcpy(to + used, part.iov_base, part.iov_len);
		used += part.iov_len;
		x->sent += part.iov_len;
	}
	return used;
}

/* A connection that was used again turned out to be dead: from the beginning. */
static int seek_body(void *context, curl_off_t offset, int origin)
{
	struct s3_exchange *x = context;

	if (origin != SEEK_SET || offset < 0 || (uint64_t)offset > x->request.body_length)
		return CURL_SEEKFUNC_FAIL;
	x->sent = (uint64_t)offset;
	return CURL_SEEKFUNC_OK;
}

static size_t write_text(struct s3_exchange *x, const char *data, size_t length)
{
	struct s3_answer *a = &x->answer;

	if (length > S3_TEXT_MAX - a->text_length)
		return 0;
	if (a->text_length + length + 1 > x->text_room) {
		size_t room = (a->text_length + length + 1) * 2;
		char *more = realloc(a->text, room);

		if (!more)
			return 0;
		a->text = more;
		x->text_room = room;
	}
	memcpy(a->text + a->text_length, data, length);
	a->text_length += length;
	a->text[a->text_length] = '\0';
	return length;
}

static size_t write_body(char *data, size_t size, size_t count, void *context)
{
	struct s3_exchange *x = context;
	struct s3_answer *a = &x->answer;
	size_t length = size * count;
	long status = 0;

	curl_easy_getinfo(x->easy, CURLINFO_RESPONSE_CODE, &status);
	if (!x->request.sink || status / 100 != 2)
		return write_text(x, data, length);
	/* A server that knows no ranges sends all from the object's beginning: what is more than asked for
	 * ends the transfer here. */
	if (length > x->request.sink_room - a->received)
		return 0;
	memcpy((char *)x->request.sink + a->received, data, length);
	a->received += length;
	return length;
}

static void take(char *to, size_t room, const char *value, size_t length)
{
	if (length < room) {
		memcpy(to, value, length);
		to[length] = '\0';
	}
}

static void take_range(struct s3_answer *a, const char *value, size_t length)
{
	char text[96] = "";
	unsigned long long begin, end, total;

	take(text, sizeof(text), value, length);
	if (sscanf(text, "bytes %llu-%llu/%llu", &begin, &end, &total) == 3) {
		a->ranged = true;
		a->range_begin = begin;
		a->range_total = total;
	}
}

/* A number of seconds, or a date. */
static unsigned retry_after(const char *value, size_t length)
{
	char text[64] = "";
	time_t when, now = time(NULL);

	take(text, sizeof(text), value, length);
	if (*text >= '0' && *text <= '9')
		return (unsigned)strtoul(text, NULL, 10);
	when = curl_getdate(text, NULL);
	return when > now ? (unsigned)(when - now) : 0;
}

static void take_header(struct s3_answer *a, const char *name, size_t name_length,
			const char *value, size_t length)
{
	const struct {
		const char *name;
		char *to;
		size_t room;
	} texts[] = {
		{"x-amz-bucket-region", a->region, sizeof(a->region)},
		{"x-amz-checksum-crc32c", a->checksum, sizeof(a->checksum)},
		{"x-amz-meta-offsite-put", a->token, sizeof(a->token)},
		{"x-amz-request-id", a->request_id, sizeof(a->request_id)},
		{"x-amz-delete-marker", a->marker, sizeof(a->marker)},
		{"x-amz-storage-class", a->class, sizeof(a->class)},
		{"x-amz-restore", a->restore, sizeof(a->restore)},
		{"x-amz-archive-status", a->archive_status, sizeof(a->archive_status)},
		{"etag", a->etag, sizeof(a->etag)},
		{"date", a->date, sizeof(a->date)},
	};
	char number[24] = "";

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		if (strlen(texts[i].name) == name_length &&
		    !strncasecmp(texts[i].name, name, name_length))
			take(texts[i].to, texts[i].room, value, length);
	if (name_length == 16 && !strncasecmp(name, "x-amz-version-id", 16))
		take(a->version, sizeof(a->version), value,
		     length < sizeof(a->version) ? length : sizeof(a->version) - 1);
	if (name_length == 13 && !strncasecmp(name, "content-range", 13))
		take_range(a, value, length);
	take(number, sizeof(number), value, length);
	if (name_length == 14 && !strncasecmp(name, "content-length", 14))
		a->length = strtoull(number, NULL, 10);
	if (name_length == 11 && !strncasecmp(name, "retry-after", 11))
		a->retry_after_s = retry_after(value, length);
}

static void answer_reset(struct s3_answer *a)
{
	char *text = a->text;

	*a = (struct s3_answer){.text = text};
	if (text)
		*text = '\0';
}

static size_t take_line(char *data, size_t size, size_t count, void *context)
{
	struct s3_exchange *x = context;
	size_t length = size * count, name, value;

	if (length > 5 && !memcmp(data, "HTTP/", 5)) { /* also after 100 Continue */
		answer_reset(&x->answer);
		return length;
	}
	for (name = 0; name < length && data[name] != ':';)
		name++;
	for (value = name + 1; value < length && data[value] == ' ';)
		value++;
	if (value < length) {
		size_t end = length;

		while (end > value && strchr("\r\n ", data[end - 1]))
			end--;
		take_header(&x->answer, data, name, data + value, end - value);
	}
	return length;
}

/* ---- the handle ---------------------------------------------------------------------------------------- */

struct s3_exchange *s3_exchange_new(void)
{
	struct s3_exchange *x = calloc(1, sizeof(*x));

	if (!x)
		return NULL;
	x->easy = curl_easy_init();
	if (!x->easy) {
		free(x);
		return NULL;
	}
	return x;
}

static void request_free(struct s3_request *request)
{
	curl_slist_free_all(request->headers);
	*request = (struct s3_request){0};
}

void s3_exchange_free(struct s3_exchange *x)
{
	if (!x)
		return;
	curl_easy_cleanup(x->easy);
	request_free(&x->request);
	free(x->answer.text);
	free(x);
}

CURL *s3_exchange_easy(struct s3_exchange *x)
{
	return x->easy;
}

struct s3_exchange *s3_exchange_of(CURL *easy)
{
	char *x = NULL;

	curl_easy_getinfo(easy, CURLINFO_PRIVATE, &x);
	return (struct s3_exchange *)x;
}

void *s3_exchange_context(struct s3_exchange *x)
{
	return x->context;
}

struct curl_slist *s3_header(struct curl_slist *list, const char *name, const char *value)
{
	char line[4096];
	struct curl_slist *more;
	int length = snprintf(line, sizeof(line), "%s: %s", name, value);
	char *heap = NULL;

	if (length >= (int)sizeof(line) && asprintf(&heap, "%s: %s", name, value) < 0)
		heap = NULL;
	more = length < (int)sizeof(line) || heap ? curl_slist_append(list, heap ? heap : line)
						  : NULL;
	free(heap);
	if (!more)
		curl_slist_free_all(list);
	return more;
}

static bool url_of(const struct s3_access *access, const struct s3_request *r, char url[URL_MAX])
{
	const char *host = strstr(access->endpoint, "://") + 3;
	const char *key = r->key ? r->key : "";
	int length;

	if (access->path_style)
		length = snprintf(url, URL_MAX, "%s/%s%s%s", access->endpoint, access->url->bucket,
				  *key ? "/" : "", key);
	else
		length = snprintf(url, URL_MAX, "%.*s%s.%s/%s", (int)(host - access->endpoint),
				  access->endpoint, access->url->bucket, host, key);
	if (length < URL_MAX && *r->query)
		length += snprintf(url + length, URL_MAX - (size_t)length, "?%s", r->query);
	return length < URL_MAX;
}

static void set_method(struct s3_exchange *x, const struct s3_request *r)
{
	CURL *easy = x->easy;

	switch (r->method) {
	case S3_GET:
		curl_easy_setopt(easy, CURLOPT_HTTPGET, 1L);
		break;
	case S3_HEAD:
		curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
		break;
	case S3_DELETE:
		curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, "DELETE");
		break;
	case S3_POST:
		curl_easy_setopt(easy, CURLOPT_POST, 1L);
		curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)r->body_length);
		break;
	case S3_PUT:
		curl_easy_setopt(easy, CURLOPT_UPLOAD, 1L);
		curl_easy_setopt(easy, CURLOPT_INFILESIZE_LARGE, (curl_off_t)r->body_length);
		break;
	}
}

static void set_callbacks(struct s3_exchange *x)
{
	CURL *easy = x->easy;

	curl_easy_setopt(easy, CURLOPT_PRIVATE, x);
	curl_easy_setopt(easy, CURLOPT_READFUNCTION, read_body);
	curl_easy_setopt(easy, CURLOPT_READDATA, x);
	curl_easy_setopt(easy, CURLOPT_SEEKFUNCTION, seek_body);
	curl_easy_setopt(easy, CURLOPT_SEEKDATA, x);
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, write_body);
	curl_easy_setopt(easy, CURLOPT_WRITEDATA, x);
	curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, take_line);
	curl_easy_setopt(easy, CURLOPT_HEADERDATA, x);
}

static void set_transport(struct s3_exchange *x, const struct s3_access *access)
{
	CURL *easy = x->easy;

	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
	curl_easy_setopt(easy, CURLOPT_USERAGENT, "offsite/" OFFSITE_VERSION);
	curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, RECV_BUFFER_BYTES);
	curl_easy_setopt(easy, CURLOPT_UPLOAD_BUFFERSIZE, SEND_BUFFER_BYTES);
	curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT, CONNECT_TIMEOUT_S);
	curl_easy_setopt(easy, CURLOPT_LOW_SPEED_LIMIT, SLOW_BYTES_PER_SEC);
	curl_easy_setopt(easy, CURLOPT_LOW_SPEED_TIME, (long)access->url->timeout_s);
	curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
	curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, x->answer.curl_error);
	if (access->ca_file)
		curl_easy_setopt(easy, CURLOPT_CAINFO, access->ca_file);
	if (access->url->proxy)
		curl_easy_setopt(easy, CURLOPT_PROXY, access->url->proxy);
}

static const char *method_name(enum s3_method method)
{
	switch (method) {
	case S3_GET:
		return "GET";
	case S3_HEAD:
		return "HEAD";
	case S3_PUT:
		return "PUT";
	case S3_POST:
		return "POST";
	case S3_DELETE:
		return "DELETE";
	}
	return "";
}

static int set_signature(struct s3_exchange *x, const struct s3_access *access, const char *url)
{
	struct curl_slist **headers = &x->request.headers;
	const struct s3_credentials *c = &access->credentials;
	struct s3_scope scope = {c->access, c->secret, access->region, time(NULL)};
	char hash[S3_SHA256_TEXT];

	sha256_text(&x->request, hash);
	*headers = s3_header(*headers, "x-amz-content-sha256", hash);
	if (*headers && c->token)
		*headers = s3_header(*headers, "x-amz-security-token", c->token);
	if (!*headers || !s3_sign(headers, method_name(x->request.method), url, hash, &scope))
		return -ENOMEM;
	curl_easy_setopt(x->easy, CURLOPT_HTTPHEADER, *headers);
	return 0;
}

int s3_exchange_begin(struct s3_exchange *x, const struct s3_access *access,
		      const struct s3_request *request, void *context)
{
	char url[URL_MAX];

	curl_easy_reset(x->easy); /* keeps connections */
	request_free(&x->request);
	x->request = *request;
	x->context = context;
	x->sent = 0;
	answer_reset(&x->answer);
	if (!url_of(access, request, url) ||
	    curl_easy_setopt(x->easy, CURLOPT_URL, url) != CURLE_OK)
		return -ENOMEM;
	set_method(x, request);
	set_callbacks(x);
	set_transport(x, access);
	return set_signature(x, access, url);
}

const struct s3_answer *s3_exchange_end(struct s3_exchange *x, CURLcode result)
{
	struct s3_answer *a = &x->answer;
	struct s3_xml text = {a->text, a->text_length};

	a->curl = result;
	curl_easy_getinfo(x->easy, CURLINFO_RESPONSE_CODE, &a->status);
	if (a->text_length && s3_xml_next(&text, "Error", &text)) {
		s3_xml_text(text, "Code", a->code, sizeof(a->code));
		s3_xml_text(text, "Message", a->message, sizeof(a->message));
		if (!a->region[0])
			s3_xml_text(text, "Region", a->region, sizeof(a->region));
	}
	for (char *c = a->message; *c; c++)
		if ((unsigned char)*c < 0x20 || (unsigned char)*c > 0x7e)
			*c = '?';
	request_free(&x->request);
	return a;
}
