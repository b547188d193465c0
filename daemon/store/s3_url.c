/* SPDX-License-Identifier: Apache-2.0 */
/* The address of a bucket. See s3_url.h. */
#include "daemon/store/s3_url.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PREFIX_MAX 256
#define TAGS_MAX   10

enum option_type {
	TYPE_TEXT,
	TYPE_FILE,
	TYPE_URL,
	TYPE_TOKEN,
	TYPE_TAGS,
	TYPE_CHOICE,
	TYPE_NUMBER
};

struct option {
	const char *name;
	enum option_type type;
	size_t offset;
	const char *help;
	const char *const *choices; /* the first is the default */
	unsigned fallback, min, max;
};

static const char *const choices_style[] = {"auto", "yes", "no", NULL};
static const char *const choices_yesno[] = {"no", "yes", NULL};
static const char *const choices_sse[] = {"none", "AES256", "aws:kms", "customer", NULL};
static const char *const choices_tier[] = {"Standard", "Bulk", "Expedited", NULL};
static const char *const choices_checksum[] = {"crc32c", "md5", "none", NULL};

#define TEXT(name, type, field, help)                                           \
	{                                                                       \
		name, type, offsetof(struct s3_url, field), help, NULL, 0, 0, 0 \
	}
#define CHOICE(name, field, help, choices)                                                \
	{                                                                                 \
		name, TYPE_CHOICE, offsetof(struct s3_url, field), help, choices, 0, 0, 0 \
	}
#define NUMBER(name, field, help, fallback, min, max)                                             \
	{                                                                                         \
		name, TYPE_NUMBER, offsetof(struct s3_url, field), help, NULL, fallback, min, max \
	}

static const struct option options[] = {
	TEXT("endpoint", TYPE_URL, endpoint,
	     "https://HOST[:PORT] of the service; Amazon's by default"),
	TEXT("region", TYPE_TOKEN, region, "region of the bucket"),
	CHOICE("path-style", style,
	       "bucket in the path (yes) or in the host name (no); auto: yes with an endpoint",
	       choices_style),
	CHOICE("accelerate", accelerate, "use Amazon's accelerated endpoint", choices_yesno),
	CHOICE("dual-stack", dual_stack, "use Amazon's endpoints for IPv6 and IPv4", choices_yesno),
	TEXT("ca-file", TYPE_FILE, ca_file, "CA (PEM) of the service; the system's by default"),
	TEXT("proxy", TYPE_URL, proxy, "proxy; the environment's by default"),
	TEXT("profile", TYPE_TOKEN, profile, "profile of the shared config and credentials files"),
	TEXT("credentials-file", TYPE_FILE, credentials_file,
	     "file of credentials instead of ~/.aws/credentials"),
	TEXT("storage-class", TYPE_TOKEN, class_packs, "storage class of packs (the data)"),
	TEXT("storage-class-maps", TYPE_TOKEN, class_maps, "storage class of maps"),
	TEXT("storage-class-snapshots", TYPE_TOKEN, class_snapshots, "storage class of manifests"),
	CHOICE("restore-tier", tier,
	       "how fast archived objects are brought back: Standard, Bulk, Expedited",
	       choices_tier),
	NUMBER("restore-days", restore_days, "days for which archived objects are brought back", 7,
	       1, 365),
	CHOICE("sse", sse, "encryption by the service: none, AES256, aws:kms, customer",
	       choices_sse),
	TEXT("sse-kms-key", TYPE_TEXT, sse_key, "key for sse=aws:kms"),
	TEXT("sse-key-file", TYPE_FILE, sse_key_file, "file of 32 bytes, the key for sse=customer"),
	TEXT("tags", TYPE_TAGS, tags, "tags of every object: KEY:VALUE,KEY:VALUE"),
	CHOICE("checksum", checksum, "sent with objects: crc32c, md5, none", choices_checksum),
	NUMBER("connections", connections, "transfers at a time", 8, 1, 64),
	NUMBER("timeout", timeout_s, "seconds without progress after which a transfer is lost", 30,
	       1, 3600),
	NUMBER("retry", retry_s, "seconds for which a failing operation is tried again", 120, 0,
	       86400),
	NUMBER("part-size", part_mib, "MiB; larger objects are put in parts of this size", 64, 5,
	       1024),
};
#define OPTION_COUNT (sizeof(options) / sizeof(options[0]))

/* ---- values ---------------------------------------------------------------------------------- */

static bool is_token(const char *text)
{
	size_t length = strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
				     "0123456789._-");

	return length && !text[length];
}

static bool is_printable(const char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < 0x20 || (unsigned char)*text > 0x7e)
			return false;
	return true;
}

/* NULL, or the reason. */
static const char *http_url_invalid(const char *text)
{
	const char *host = !strncmp(text, "https://", 8)  ? text + 8
			   : !strncmp(text, "http://", 7) ? text + 7
							  : NULL;

	if (!host)
		return "must begin with https:// or http://";
	if (!*host || *host == '/' || *host == ':')
		return "has no host";
	if (strchr(host, '@'))
		return "must not carry a password: give it by the environment (https_proxy)";
	if (strpbrk(host, " ?#\"<>\\") || !is_printable(host))
		return "is not an address";
	return NULL;
}

static const char *tags_invalid(const char *text)
{
	unsigned count = 1;

	for (const char *tag = text;; count++) {
		size_t length = strcspn(tag, ",");
		size_t key = strcspn(tag, ":");

		if (!key || key >= length)
			return "must be KEY:VALUE,KEY:VALUE";
		if (key > 128 || length - key - 1 > 256)
			return "a key has at most 128, a value at most 256 characters";
		if (!tag[length])
			break;
		tag += length + 1;
	}
	return count > TAGS_MAX ? "at most 10 tags" : NULL;
}

static const char *number_invalid(const struct option *option, const char *text, unsigned *value)
{
	static _Thread_local char reason[64];
	unsigned long number;
	char *end;

	errno = 0;
	number = strtoul(text, &end, 10);
	if (!isdigit((unsigned char)*text) || *end || errno || number < option->min ||
	    number > option->max) {
		snprintf(reason, sizeof(reason), "must be a number from %u to %u", option->min,
			 option->max);
		return reason;
	}
	*value = (unsigned)number;
	return NULL;
}

static const char *choice_invalid(const struct option *option, const char *text, void *field)
{
	static _Thread_local char reason[96];
	unsigned index = 0;
	size_t used;

	while (option->choices[index] && strcmp(option->choices[index], text))
		index++;
	if (option->choices[index]) {
		if (option->choices == choices_yesno)
			*(bool *)field = index;
		else
			*(unsigned *)field = index;
		return NULL;
	}
	used = (size_t)snprintf(reason, sizeof(reason), "must be");
	for (index = 0; option->choices[index]; index++)
		used += (size_t)snprintf(reason + used, sizeof(reason) - used, "%s %s",
					 !index                       ? ""
					 : option->choices[index + 1] ? ","
								      : " or",
					 option->choices[index]);
	return reason;
}
_Static_assert(sizeof(enum s3_style) == sizeof(unsigned), "choices are stored as unsigned");

/* Takes value over (text types) or reads it. */
static const char *option_set(const struct option *option, struct s3_url *url, char *value)
{
	void *field = (char *)url + option->offset;
	const char *reason = NULL;

	switch (option->type) {
	case TYPE_TEXT:
		reason = *value && is_printable(value) ? NULL : "is not printable text";
		break;
	case TYPE_FILE:
		reason = *value == '/' && is_printable(value) ? NULL : "must be an absolute path";
		break;
	case TYPE_URL:
		reason = http_url_invalid(value);
		break;
	case TYPE_TOKEN:
		reason = is_token(value) ? NULL : "may have letters, digits and ._- only";
		break;
	case TYPE_TAGS:
		reason = is_printable(value) ? tags_invalid(value) : "is not printable text";
		break;
	case TYPE_CHOICE:
		return choice_invalid(option, value, field);
	case TYPE_NUMBER:
		return number_invalid(option, value, field);
	}
	if (reason)
		return reason;
	*(char **)field = strdup(value);
	return *(char **)field ? NULL : "out of memory";
}

/* ---- the address ------------------------------------------------------------------------------- */

static int hex_digit(char c)
{
	return isdigit((unsigned char)c)    ? c - '0'
	       : isxdigit((unsigned char)c) ? (c | 32) - 'a' + 10
					    : -1;
}

/* In place. False for a bad %XX or %00. */
static bool percent_decode(char *text)
{
	char *to = text;

	for (; *text; text++) {
		int high, low;

		if (*text != '%') {
			*to++ = *text;
			continue;
		}
		high = hex_digit(text[1]);
		low = high < 0 ? -1 : hex_digit(text[2]);
		if (low < 0 || !(high | low))
			return false;
		*to++ = (char)(high << 4 | low);
		text += 2;
	}
	*to = '\0';
	return true;
}

static const struct option *option_find(const char *name)
{
	for (size_t i = 0; i < OPTION_COUNT; i++)
		if (!strcmp(options[i].name, name))
			return &options[i];
	return NULL;
}

static int parse_option(char *pair, struct s3_url *url, bool given[OPTION_COUNT], char *why,
			size_t why_size)
{
	char *value = strchr(pair, '=');
	const struct option *option;
	const char *reason;

	if (value)
		*value++ = '\0';
	option = option_find(pair);
	if (!option)
		snprintf(why, why_size,
			 "unknown option '%.100s'; known: endpoint, region, path-style, "
			 "profile, ... (see offsited(8))",
			 pair);
	else if (!value)
		snprintf(why, why_size, "option '%s' has no value", pair);
	else if (given[option - options])
		snprintf(why, why_size, "option '%s' stands there twice", pair);
	else if (!percent_decode(value))
		snprintf(why, why_size, "%s=%s: bad %%XX", pair, value);
	else if ((reason = option_set(option, url, value)))
		snprintf(why, why_size, "%s=%.160s: %s", pair, value, reason);
	else
		return given[option - options] = true, 0;
	return -EINVAL;
}

static const char *bucket_invalid(const char *bucket)
{
	size_t length = strlen(bucket);

	if (length < 3 || length > 63)
		return "the name of a bucket has 3 to 63 characters: s3://BUCKET/PREFIX";
	for (const char *c = bucket; *c; c++)
		if (!islower((unsigned char)*c) && !isdigit((unsigned char)*c) && *c != '-' &&
		    *c != '.')
			return "the name of a bucket has lower-case letters, digits, '-' and '.' "
			       "only";
	if (*bucket == '-' || *bucket == '.' || bucket[length - 1] == '-' ||
	    bucket[length - 1] == '.' || strstr(bucket, ".."))
		return "the name of a bucket begins and ends with a letter or digit";
	return NULL;
}

/* Made to end with '/'; characters that need no escape in a request. */
static const char *set_prefix(struct s3_url *url, const char *text)
{
	size_t length = strlen(text);

	while (length && text[length - 1] == '/')
		length--;
	if (length > PREFIX_MAX)
		return "the prefix is longer than 256 characters";
	for (size_t i = 0; i < length; i++)
		if (!isalnum((unsigned char)text[i]) && !strchr("._-/", text[i]))
			return "the prefix may have letters, digits and ._-/ only";
	url->prefix = malloc(length + 2);
	if (!url->prefix)
		return "out of memory";
	memcpy(url->prefix, text, length);
	memcpy(url->prefix + length, length ? "/" : "", length ? 2 : 1);
	if (*url->prefix == '/' || strstr(url->prefix, "//"))
		return "the prefix has an empty part";
	for (const char *part = url->prefix; *part; part += strcspn(part, "/") + 1)
		if (!strncmp(part, "./", 2) || !strncmp(part, "../", 3))
			return "the prefix must not have a part . or ..";
	return NULL;
}

/* What must not go together. */
static const char *combination_invalid(const struct s3_url *url)
{
	if (url->sse_key && url->sse != S3_SSE_KMS)
		return "sse-kms-key needs sse=aws:kms";
	if (url->sse_key_file && url->sse != S3_SSE_CUSTOMER)
		return "sse-key-file needs sse=customer";
	if (url->sse == S3_SSE_CUSTOMER && !url->sse_key_file)
		return "sse=customer needs sse-key-file";
	if (url->sse == S3_SSE_CUSTOMER && url->endpoint && !strncmp(url->endpoint, "http://", 7))
		return "sse=customer would send the key in plain text: use an https:// endpoint";
	if (url->accelerate && (url->endpoint || url->style == S3_STYLE_PATH))
		return "accelerate=yes is Amazon's: no endpoint, no path-style";
	if (url->dual_stack && url->endpoint)
		return "dual-stack=yes is Amazon's: no endpoint";
	if (url->accelerate && strchr(url->bucket, '.'))
		return "accelerate=yes needs a bucket without '.' in its name";
	return NULL;
}

static int parse_place(char *place, struct s3_url *url, char *why, size_t why_size)
{
	char *slash = strchr(place, '/');
	const char *reason;

	if (slash)
		*slash++ = '\0';
	reason = bucket_invalid(place);
	if (!reason)
		reason = set_prefix(url, slash ? slash : "");
	if (!reason && !(url->bucket = strdup(place)))
		reason = "out of memory";
	if (reason)
		snprintf(why, why_size, "%s", reason);
	return reason ? -EINVAL : 0;
}

static void set_defaults(struct s3_url *url)
{
	for (size_t i = 0; i < OPTION_COUNT; i++)
		if (options[i].type == TYPE_NUMBER)
			*(unsigned *)((char *)url + options[i].offset) = options[i].fallback;
}

int s3_url_parse(const char *text, struct s3_url *url, char *why, size_t why_size)
{
	bool given[OPTION_COUNT] = {false};
	const char *reason;
	char *copy, *next;
	int error;

	*url = (struct s3_url){0};
	set_defaults(url);
	if (strncmp(text, "s3://", 5)) {
		snprintf(why, why_size, "must be s3://BUCKET/PREFIX");
		return -EINVAL;
	}
	copy = next = strdup(text + 5);
	if (!copy)
		return snprintf(why, why_size, "out of memory"), -ENOMEM;
	error = parse_place(strsep(&next, "?"), url, why, why_size);
	while (!error && next && *next)
		error = parse_option(strsep(&next, "&"), url, given, why, why_size);
	free(copy);
	if (!error && (reason = combination_invalid(url))) {
		snprintf(why, why_size, "%s", reason);
		error = -EINVAL;
	}
	if (error)
		s3_url_free(url);
	return error;
}

void s3_url_free(struct s3_url *url)
{
	free(url->bucket);
	free(url->prefix);
	for (size_t i = 0; i < OPTION_COUNT; i++)
		if (options[i].type < TYPE_CHOICE)
			free(*(char **)((char *)url + options[i].offset));
	*url = (struct s3_url){0};
}

void s3_url_print_options(FILE *out)
{
	for (size_t i = 0; i < OPTION_COUNT; i++) {
		fprintf(out, "  %-24s %s", options[i].name, options[i].help);
		if (options[i].type == TYPE_NUMBER)
			fprintf(out, " [%u]", options[i].fallback);
		if (options[i].type == TYPE_CHOICE)
			fprintf(out, " [%s]", options[i].choices[0]);
		fputc('\n', out);
	}
}
