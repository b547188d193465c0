/* SPDX-License-Identifier: Apache-2.0 */
/* See s3_sign.h. */
#include "daemon/store/s3_sign.h"

#include <ctype.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/s3_exchange.h"

#define HEADERS_MAX 32
#define DATE_TEXT   17 /* YYYYMMDDTHHMMSSZ */
#define KEY_BYTES   32

static void hex(const uint8_t key[KEY_BYTES], char text[S3_SHA256_TEXT])
{
	for (unsigned i = 0; i < KEY_BYTES; i++)
		snprintf(text + 2 * i, 3, "%02x", key[i]);
}

static bool keyed(const void *key, size_t key_length, const char *text, size_t length,
		  uint8_t result[KEY_BYTES])
{
	unsigned size;

	return HMAC(EVP_sha256(), key, (int)key_length, (const uint8_t *)text, length, result,
		    &size) != NULL;
}

static size_t name_length(const char *header)
{
	return strcspn(header, ":");
}

static int by_name(const void *a, const void *b)
{
	const char *x = *(const char *const *)a, *y = *(const char *const *)b;
	size_t x_length = name_length(x), y_length = name_length(y);
	int order = strncasecmp(x, y, x_length < y_length ? x_length : y_length);

	return order ? order : (x_length > y_length) - (x_length < y_length);
}

static void put_lower(FILE *out, const char *text, size_t length)
{
	for (size_t i = 0; i < length; i++)
		fputc(tolower((unsigned char)text[i]), out);
}

/* Without blanks at the ends, one where there are several. */
static void put_value(FILE *out, const char *text)
{
	bool blank = false;

	for (text += strspn(text, " "); *text; text++) {
		if (*text == ' ') {
			blank = true;
			continue;
		}
		if (blank)
			fputc(' ', out);
		blank = false;
		fputc(*text, out);
	}
}

static void put_names(FILE *out, const char *const *sorted, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		if (i)
			fputc(';', out);
		put_lower(out, sorted[i], name_length(sorted[i]));
	}
}

static unsigned sort_headers(const struct curl_slist *headers, const char *sorted[HEADERS_MAX])
{
	unsigned count = 0;

	for (; headers && count < HEADERS_MAX; headers = headers->next)
		sorted[count++] = headers->data;
	qsort(sorted, count, sizeof(*sorted), by_name);
	return count;
}

/* Its hash is what is signed. */
static bool canonical_hash(const char *method, const char *url, const char *payload,
			   const char *const *sorted, unsigned count, char text[S3_SHA256_TEXT])
{
	const char *path = strchr(strstr(url, "://") + 3, '/');
	size_t path_length = strcspn(path, "?"), length = 0;
	uint8_t hash[EVP_MAX_MD_SIZE];
	char *request = NULL;
	FILE *out = open_memstream(&request, &length);
	bool ok;

	if (!out)
		return false;
	fprintf(out, "%s\n%.*s\n%s\n", method, (int)path_length, path,
		path[path_length] ? path + path_length + 1 : "");
	for (unsigned i = 0; i < count; i++) {
		size_t name = name_length(sorted[i]);

		put_lower(out, sorted[i], name);
		fputc(':', out);
		put_value(out, sorted[i] + name + 1);
		fputc('\n', out);
	}
	fputc('\n', out);
	put_names(out, sorted, count);
	fprintf(out, "\n%s", payload);
	ok = !fclose(out) && EVP_Digest(request, length, hash, NULL, EVP_sha256(), NULL);
	free(request);
	if (ok)
		hex(hash, text);
	return ok;
}

static bool signature_of(const struct s3_scope *scope, const char *date, const char *hash,
			 char text[S3_SHA256_TEXT])
{
	uint8_t key[KEY_BYTES];
	char *secret = NULL, *request = NULL;
	int secret_length = asprintf(&secret, "AWS4%s", scope->secret);
	int length = asprintf(&request, "AWS4-HMAC-SHA256\n%s\n%.8s/%s/s3/aws4_request\n%s", date,
			      date, scope->region, hash);
	bool ok = secret_length > 0 && length > 0 &&
		  keyed(secret, (size_t)secret_length, date, 8, key) &&
		  keyed(key, KEY_BYTES, scope->region, strlen(scope->region), key) &&
		  keyed(key, KEY_BYTES, "s3", 2, key) &&
		  keyed(key, KEY_BYTES, "aws4_request", 12, key) &&
		  keyed(key, KEY_BYTES, request, (size_t)length, key);

	if (secret_length > 0) {
		explicit_bzero(secret, (size_t)secret_length);
		free(secret);
	}
	if (length > 0)
		free(request);
	if (ok)
		hex(key, text);
	explicit_bzero(key, sizeof(key));
	return ok;
}

static bool add(struct curl_slist **headers, const char *name, const char *value)
{
	*headers = s3_header(*headers, name, value);
	return *headers != NULL;
}

/* As libcurl would send it: without the scheme's own port. */
static bool add_host(struct curl_slist **headers, const char *url)
{
	const char *host = strstr(url, "://") + 3;
	const char *port = !strncmp(url, "https:", 6) ? ":443" : ":80";
	size_t length = strcspn(host, "/"), port_length = strlen(port);
	char *copy = strndup(host, length);
	bool ok;

	if (copy && length > port_length && !strcmp(copy + length - port_length, port))
		copy[length - port_length] = '\0';
	ok = copy && add(headers, "Host", copy);
	free(copy);
	return ok;
}

static char *authorization(const struct s3_scope *scope, const char *date,
			   const char *const *sorted, unsigned count, const char *signature)
{
	char *text = NULL;
	size_t length;
	FILE *out = open_memstream(&text, &length);

	if (!out)
		return NULL;
	fprintf(out, "AWS4-HMAC-SHA256 Credential=%s/%.8s/%s/s3/aws4_request, SignedHeaders=",
		scope->access, date, scope->region);
	put_names(out, sorted, count);
	fprintf(out, ", Signature=%s", signature);
	if (!fclose(out))
		return text;
	free(text);
	return NULL;
}

bool s3_sign(struct curl_slist **headers, const char *method, const char *url, const char *payload,
	     const struct s3_scope *scope)
{
	char date[DATE_TEXT], hash[S3_SHA256_TEXT], signature[S3_SHA256_TEXT];
	const char *sorted[HEADERS_MAX];
	struct tm tm;
	unsigned count;
	char *text;
	bool ok;

	gmtime_r(&scope->now, &tm);
	strftime(date, sizeof(date), "%Y%m%dT%H%M%SZ", &tm);
	ok = add_host(headers, url) && add(headers, "x-amz-date", date);
	count = ok ? sort_headers(*headers, sorted) : 0;
	ok = ok && canonical_hash(method, url, payload, sorted, count, hash) &&
	     signature_of(scope, date, hash, signature);
	text = ok ? authorization(scope, date, sorted, count, signature) : NULL;
	ok = text && add(headers, "Authorization", text);
	free(text);
	if (!ok) {
		curl_slist_free_all(*headers);
		*headers = NULL;
	}
	return ok;
}
