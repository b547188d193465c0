/* SPDX-License-Identifier: Apache-2.0 */
/* How the bucket is reached. See s3_internal.h. */
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "daemon/store/s3_internal.h"

#define DEFAULT_REGION "us-east-1"
#define EXPIRE_EARLY_S 300
#define REFRESH_PAUSE_MS \
	10000u /* the server that gives them may be away: not before every request */
#define CUSTOMER_BYTES 32

static char *first_of(const char *given, const char *variable, const char *other_variable,
		      const struct s3_url *url, const char *setting)
{
	const char *value = given;

	if (!value || !*value)
		value = getenv(variable);
	if ((!value || !*value) && other_variable)
		value = getenv(other_variable);
	return value && *value ? strdup(value) : s3_profile_setting(url, setting);
}

static char *amazon_endpoint(const struct s3_url *url, const char *region)
{
	bool china = !strncmp(region, "cn-", 3);
	char *endpoint = NULL;
	int length;

	if (url->accelerate)
		return strdup(url->dual_stack ? "https://s3-accelerate.dualstack.amazonaws.com"
					      : "https://s3-accelerate.amazonaws.com");
	length = asprintf(&endpoint, "https://s3.%s%s.amazonaws.com%s",
			  url->dual_stack ? "dualstack." : "", region, china ? ".cn" : "");
	return length < 0 ? NULL : endpoint;
}

static bool is_amazon(const struct s3_access *access)
{
	return strstr(access->endpoint, ".amazonaws.com") != NULL;
}

static void set_style(struct s3_access *access)
{
	const struct s3_url *url = access->url;

	/* The certificate of *.s3.REGION.amazonaws.com does not cover a bucket with dots. */
	access->path_style =
		url->style == S3_STYLE_PATH ||
		(url->style == S3_STYLE_AUTO && (!is_amazon(access) || strchr(url->bucket, '.')));
}

static int read_customer_key(struct s3_access *access, char *why, size_t why_size)
{
	const char *path = access->url->sse_key_file;
	uint8_t key[CUSTOMER_BYTES + 1];
	struct iovec iov = {key, CUSTOMER_BYTES};
	char text[64], md5[40];
	FILE *file = fopen(path, "re");
	size_t length = file ? fread(key, 1, sizeof(key), file) : 0;

	if (!file) {
		snprintf(why, why_size, "sse-key-file %s: %s", path, strerror(errno));
		return -errno;
	}
	fclose(file);
	if (length != CUSTOMER_BYTES) {
		snprintf(why, why_size, "sse-key-file %s: must have exactly 32 bytes", path);
		return -EINVAL;
	}
	EVP_EncodeBlock((unsigned char *)text, key, CUSTOMER_BYTES);
	s3_md5(&iov, 1, 0, CUSTOMER_BYTES, md5);
	access->sse_key = strdup(text);
	access->sse_key_md5 = strdup(md5);
	explicit_bzero(key, sizeof(key));
	return access->sse_key && access->sse_key_md5 ? 0 : -ENOMEM;
}

static void cut_slashes(char *endpoint)
{
	while (endpoint[strlen(endpoint) - 1] == '/')
		endpoint[strlen(endpoint) - 1] = '\0';
}

int s3_access_init(struct s3_access *access, const struct s3_url *url, char *why, size_t why_size)
{
	int error = 0;

	*access = (struct s3_access){.url = url};
	access->region = first_of(url->region, "AWS_REGION", "AWS_DEFAULT_REGION", url, "region");
	if (!access->region)
		access->region = strdup(DEFAULT_REGION);
	if (!url->accelerate && !url->dual_stack)
		access->endpoint = first_of(url->endpoint, "AWS_ENDPOINT_URL_S3",
					    "AWS_ENDPOINT_URL", url, "endpoint_url");
	if (!access->endpoint && access->region)
		access->endpoint = amazon_endpoint(url, access->region);
	access->ca_file = first_of(url->ca_file, "AWS_CA_BUNDLE", NULL, url, "ca_bundle");
	if (!access->region || !access->endpoint)
		return -ENOMEM;
	cut_slashes(access->endpoint);
	if (strncmp(access->endpoint, "http://", 7) && strncmp(access->endpoint, "https://", 8)) {
		snprintf(why, why_size, "endpoint %s: must begin with https:// or http://",
			 access->endpoint);
		return -EINVAL;
	}
	set_style(access);
	if (access->ca_file && faccessat(AT_FDCWD, access->ca_file, R_OK, 0)) {
		snprintf(why, why_size, "ca-file %s: %s", access->ca_file, strerror(errno));
		return -errno;
	}
	if (url->sse == S3_SSE_CUSTOMER && !strncmp(access->endpoint, "http://", 7)) {
		snprintf(why, why_size,
			 "endpoint %s: sse=customer would send the key in plain text: use https://",
			 access->endpoint);
		return -EINVAL;
	}
	if (url->sse == S3_SSE_CUSTOMER)
		error = read_customer_key(access, why, why_size);
	return error ? error : s3_credentials_get(url, &access->credentials, why, why_size);
}

void s3_access_free(struct s3_access *access)
{
	s3_credentials_free(&access->credentials);
	free(access->endpoint);
	free(access->region);
	free(access->ca_file);
	if (access->sse_key)
		explicit_bzero(access->sse_key, strlen(access->sse_key));
	free(access->sse_key);
	free(access->sse_key_md5);
}

bool s3_access_move(struct s3_access *access, const char *region)
{
	size_t good = strspn(region, "abcdefghijklmnopqrstuvwxyz0123456789-");
	char *endpoint = NULL, *name;

	if (!good || region[good] || !strcmp(region, access->region))
		return false;
	if (is_amazon(access) && !access->url->accelerate &&
	    !(endpoint = amazon_endpoint(access->url, region)))
		return false;
	name = strdup(region);
	if (!name) {
		free(endpoint);
		return false;
	}
	free(access->region);
	access->region = name;
	if (endpoint) {
		free(access->endpoint);
		access->endpoint = endpoint;
	}
	access->generation++;
	return true;
}

bool s3_access_refresh(struct s3_access *access)
{
	struct s3_credentials fresh;
	char why[512];

	access->refreshed_ms = s3_now_ms();
	if (s3_credentials_get(access->url, &fresh, why, sizeof(why)))
		return false;

	bool other = !s3_credentials_equal(&fresh, &access->credentials);

	s3_credentials_free(&access->credentials);
	access->credentials = fresh;
	access->generation += other;
	return other;
}

bool s3_access_expiring(const struct s3_access *access)
{
	int64_t expires = access->credentials.expires_s;

	return expires && (int64_t)time(NULL) >= expires - EXPIRE_EARLY_S &&
	       (!access->refreshed_ms || s3_now_ms() - access->refreshed_ms >= REFRESH_PAUSE_MS);
}
