/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/config_values.h"

#include <ctype.h>
#include <stddef.h>
#include <string.h>
#include <sys/un.h>

#include "daemon/store/s3_url.h"

const char *config_name_invalid(const char *text)
{
	size_t length = strlen(text);

	if (length == 0 || length > CONFIG_NAME_BYTES_MAX)
		return "a name has 1 to 48 characters";
	if (strcmp(text, ".") == 0 || strcmp(text, "..") == 0)
		return "no name";
	for (const char *c = text; *c; c++)
		if (!isascii((unsigned char)*c) ||
		    (!isalnum((unsigned char)*c) && !strchr("._-", *c)))
			return "a name consists of A-Z a-z 0-9 . _ -";
	return NULL;
}

const char *config_path_invalid(const char *text)
{
	if (text[0] != '/')
		return "not an absolute path";
	if (strstr(text, " #"))
		return "a comment goes on a line of its own, or behind ' ;'";
	return NULL;
}

const char *config_socket_invalid(const char *text)
{
	if (strlen(text) >= sizeof(((struct sockaddr_un *)0)->sun_path))
		return "too long for a unix socket (107 bytes at most)";
	return config_path_invalid(text);
}

static const char *port_invalid(const char *text, bool zero_allowed)
{
	unsigned long port = 0;

	if (!*text)
		return "the port is missing (HOST:PORT)";
	for (const char *c = text; *c; c++) {
		if (!isdigit((unsigned char)*c) || c - text >= 5)
			return "the port is not a number from 0 to 65535";
		port = port * 10 + (unsigned long)(*c - '0');
	}
	if (port > 65535)
		return "the port is not a number from 0 to 65535";
	return port == 0 && !zero_allowed ? "port 0 is no port to connect to" : NULL;
}

const char *config_address_invalid(const char *text, bool zero_allowed)
{
	if (strncmp(text, "unix:", 5) == 0)
		return config_socket_invalid(text + 5);
	if (strncmp(text, "tcp:", 4) == 0)
		text += 4;
	const char *colon = strrchr(text, ':');

	if (!colon)
		return "not of the form HOST:PORT or unix:/PATH";
	if (text[0] == '[') {
		if (colon[-1] != ']' || colon - text < 4)
			return "not of the form [ADDRESS]:PORT";
	} else {
		if (colon == text)
			return "the host is missing (HOST:PORT)";
		if (memchr(text, ':', (size_t)(colon - text)))
			return "an IPv6 address stands in brackets: [ADDRESS]:PORT";
		for (const char *c = text; c < colon; c++)
			if (!isalnum((unsigned char)*c) && !strchr(".-_%*", *c))
				return "not a host name or address";
	}
	return port_invalid(colon + 1, zero_allowed);
}

const char *config_host_invalid(const char *text)
{
	if (!*text || strlen(text) > CONFIG_HOST_BYTES_MAX)
		return "a host name has 1 to 253 characters";
	for (const char *c = text; *c; c++)
		if (!isalnum((unsigned char)*c) && !strchr(".-_:", *c))
			return "not a host name or address";
	return NULL;
}

bool config_address_host(const char *address, char host[CONFIG_HOST_BYTES_MAX + 1])
{
	const char *end;

	if (strncmp(address, "unix:", 5) == 0)
		return false;
	if (strncmp(address, "tcp:", 4) == 0)
		address += 4;
	end = strrchr(address, ':');
	if (address[0] == '[') {
		address++;
		end--;
	}
	if (memchr(address, '%', (size_t)(end - address)))
		end = strchr(address, '%');
	if (end - address > (ptrdiff_t)CONFIG_HOST_BYTES_MAX)
		return false;
	memcpy(host, address, (size_t)(end - address));
	host[end - address] = '\0';
	return true;
}

static const char *bucket_invalid(const char *text)
{
	static _Thread_local char reason[256];
	struct s3_url url;

	if (s3_url_parse(text, &url, reason, sizeof(reason)))
		return reason;
	s3_url_free(&url);
	return NULL;
}

const char *config_store_invalid(const char *text)
{
	if (strncmp(text, "file:", 5) == 0)
		return text[5] == '/' ? config_path_invalid(text + 5)
				      : "the directory must be absolute: file:/DIRECTORY";
	if (strncmp(text, "s3:", 3) == 0)
		return bucket_invalid(text);
	return "not the address of a store (s3://BUCKET/PREFIX or file:/DIRECTORY)";
}

/* Digits, then the rest in *rest. False when there is none or too many. */
static bool parse_digits(const char *text, uint64_t *value, const char **rest)
{
	const char *c = text;

	for (*value = 0; isdigit((unsigned char)*c); c++)
		if (__builtin_mul_overflow(*value, 10u, value) ||
		    __builtin_add_overflow(*value, (uint64_t)(*c - '0'), value))
			return false;
	*rest = c;
	return c != text;
}

const char *config_parse_size(const char *text, uint64_t *value)
{
	static const char units[] = "KMGTP";
	const char *unit, *c;

	if (!parse_digits(text, value, &unit))
		return "not a size (a number with K, M, G, T or nothing behind it)";
	if (*unit == '\0')
		return NULL;
	c = strchr(units, toupper((unsigned char)*unit));
	if (!c || (unit[1] != '\0' && strcmp(unit + 1, "iB") != 0))
		return "not a size (a number with K, M, G, T or nothing behind it)";
	unsigned shift = 10 * (unsigned)(c - units + 1);

	if (*value > (uint64_t)INT64_MAX >> shift)
		return "too big";
	*value <<= shift;
	return NULL;
}

const char *config_parse_blocks(const char *text, uint64_t *value)
{
	const char *wrong = config_parse_size(text, value);

	if (!wrong && *value % 4096 != 0)
		return "not a multiple of 4096";
	return wrong;
}

const char *config_parse_duration(const char *text, uint64_t *value_ns)
{
	static const char units[] = "smhdw";
	static const uint64_t seconds[] = {1, 60, 3600, 86400, 604800};
	uint64_t value;
	const char *unit, *c;

	if (!parse_digits(text, &value, &unit))
		return "not a duration (a number with s, m, h, d or w behind it)";
	if (value == 0 && *unit == '\0') {
		*value_ns = 0;
		return NULL;
	}
	c = *unit ? strchr(units, *unit) : NULL;
	if (!c || unit[1] != '\0')
		return "not a duration (a number with s, m, h, d or w behind it)";
	if (__builtin_mul_overflow(value, seconds[c - units] * 1000000000u, value_ns) ||
	    *value_ns > INT64_MAX)
		return "too long";
	return NULL;
}

const char *config_parse_factor(const char *text, unsigned *hundredths)
{
	static const char wrong[] = "not a factor (0, or 1.1 to 100)";
	const char *c = text;
	unsigned value = 0, places = 0;

	if (!isdigit((unsigned char)*c))
		return wrong;
	for (; isdigit((unsigned char)*c) && value <= 100; c++)
		value = value * 10 + (unsigned)(*c - '0');
	if (*c == '.') {
		c++;
		for (; isdigit((unsigned char)*c) && places < 2; c++, places++)
			value = value * 10 + (unsigned)(*c - '0');
	}
	for (; places < 2; places++)
		value *= 10;
	if (*c || (value && value < 110) || value > 10000)
		return wrong;
	*hundredths = value;
	return NULL;
}

const char *config_parse_number(const char *text, unsigned min, unsigned max, unsigned *value)
{
	uint64_t number;
	const char *rest;

	if (!parse_digits(text, &number, &rest) || *rest)
		return "not a number";
	if (number < min || number > max)
		return "out of range";
	*value = (unsigned)number;
	return NULL;
}

const char *config_parse_choice(const char *text, const char *const *choices, unsigned *index)
{
	for (*index = 0; choices[*index]; ++*index)
		if (strcmp(choices[*index], text) == 0)
			return NULL;
	return "not one of the possible values";
}

const char *config_parse_attach(const char *text, int *index)
{
	unsigned number;

	if (!strcmp(text, "no") || !strcmp(text, "yes")) {
		*index = *text == 'y' ? -1 : -2;
		return NULL;
	}
	if (strncmp(text, "/dev/nbd", 8) || config_parse_number(text + 8, 0, 1023, &number))
		return "neither no, yes nor /dev/nbdN with N up to 1023";
	*index = (int)number;
	return NULL;
}
