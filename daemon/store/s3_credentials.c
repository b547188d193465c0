/* SPDX-License-Identifier: Apache-2.0 */
/* Where credentials come from. See s3_credentials.h. */
#include "daemon/store/s3_credentials.h"

#include <curl/curl.h>
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "daemon/store/s3_profile.h"

#define ANSWER_MAX         (64u * 1024u)
#define CONNECT_TIMEOUT_MS 1000L
#define TIMEOUT_MS         3000L
#define TRIES              3
#define CONTAINER_HOST     "http://169.254.170.2"
#define INSTANCE_HOST      "http://169.254.169.254"
#define INSTANCE_PATH      "/latest/meta-data/iam/security-credentials/"

/* ---- the shared files ------------------------------------------------------------------------ */

static const char *home(void)
{
	const char *path = getenv("HOME");
	struct passwd *user;

	if (path && *path)
		return path;
	user = getpwuid(getuid());
	return user ? user->pw_dir : "/root";
}

static void shared_path(const char *variable, const char *name, char path[PATH_MAX])
{
	const char *given = getenv(variable);

	if (given && *given)
		snprintf(path, PATH_MAX, "%s", given);
	else
		snprintf(path, PATH_MAX, "%s/.aws/%s", home(), name);
}

static const char *profile_of(const struct s3_url *url)
{
	const char *given = url->profile ? url->profile : getenv("AWS_PROFILE");

	return given && *given ? given : "default";
}

/* In the config file every section but the default's begins with a word. */
static void config_section(const char *profile, char section[256])
{
	bool plain = !strcmp(profile, "default");

	snprintf(section, 256, "%s%s", plain ? "" : "profile ", profile);
}

char *s3_profile_setting(const struct s3_url *url, const char *name)
{
	char path[PATH_MAX], section[256];

	shared_path("AWS_CONFIG_FILE", "config", path);
	config_section(profile_of(url), section);
	return s3_profile_read(path, section, name, NULL);
}

/* True: both keys are there. */
static bool read_keys(const char *path, const char *section, struct s3_credentials *c, bool *found)
{
	c->access = s3_profile_read(path, section, "aws_access_key_id", found);
	c->secret = s3_profile_read(path, section, "aws_secret_access_key", NULL);
	c->token = s3_profile_read(path, section, "aws_session_token", NULL);
	c->from = "the shared files";
	if (c->access && c->secret)
		return true;
	s3_credentials_free(c);
	return false;
}

/* -ENOENT: nothing there. */
static int from_files(const struct s3_url *url, struct s3_credentials *c, char *why,
		      size_t why_size)
{
	const char *profile = profile_of(url);
	char path[PATH_MAX], config[PATH_MAX], section[256];
	bool found, found_too;
	char *role;

	if (url->credentials_file)
		snprintf(path, sizeof(path), "%s", url->credentials_file);
	else
		shared_path("AWS_SHARED_CREDENTIALS_FILE", "credentials", path);
	shared_path("AWS_CONFIG_FILE", "config", config);
	config_section(profile, section);
	if (read_keys(path, profile, c, &found) || read_keys(config, section, c, &found_too))
		return 0;
	role = s3_profile_read(config, section, "role_arn", NULL);
	if (role)
		snprintf(why, why_size,
			 "profile %s assumes a role, which is not supported: give it keys",
			 profile);
	else if (url->credentials_file && access(path, R_OK))
		snprintf(why, why_size, "credentials-file %s: %s", path, strerror(errno));
	else if (url->credentials_file || url->profile)
		snprintf(why, why_size, "no keys for profile %s in %s%s%s", profile, path,
			 url->credentials_file ? "" : " or ", url->credentials_file ? "" : config);
	else
		return -ENOENT;
	free(role);
	return -ENOKEY;
}

static char *environment(const char *name)
{
	const char *value = getenv(name);

	return value && *value ? strdup(value) : NULL;
}

static bool from_environment(struct s3_credentials *c)
{
	c->access = environment("AWS_ACCESS_KEY_ID");
	c->secret = environment("AWS_SECRET_ACCESS_KEY");
	c->token = environment("AWS_SESSION_TOKEN");
	c->from = "the environment";
	if (c->access && c->secret)
		return true;
	s3_credentials_free(c);
	return false;
}

/* ---- roles ---------------------------------------------------------------------------------------- */

struct answer {
	char text[ANSWER_MAX];
	size_t length;
};

static size_t answer_write(char *data, size_t size, size_t count, void *context)
{
	struct answer *answer = context;

	if (count > sizeof(answer->text) - 1 - answer->length)
		return 0;
	memcpy(answer->text + answer->length, data, count);
	answer->length += count;
	answer->text[answer->length] = '\0';
	return count;
}

/* One exchange with a server of this host. The status, or -1. header may be NULL. */
static long ask(const char *url, const char *method, const char *header, struct answer *answer)
{
	struct curl_slist *headers = header ? curl_slist_append(NULL, header) : NULL;
	CURL *easy = curl_easy_init();
	long status = -1;

	answer->length = 0;
	answer->text[0] = '\0';
	if (easy) {
		curl_easy_setopt(easy, CURLOPT_URL, url);
		curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, method);
		curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
		curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, answer_write);
		curl_easy_setopt(easy, CURLOPT_WRITEDATA, answer);
		curl_easy_setopt(easy, CURLOPT_NOPROXY, "*");
		curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
		curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
		curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, CONNECT_TIMEOUT_MS);
		curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, TIMEOUT_MS);
		if (curl_easy_perform(easy) == CURLE_OK)
			curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
	}
	curl_easy_cleanup(easy);
	curl_slist_free_all(headers);
	return status;
}

static long ask_again(const char *url, const char *method, const char *header,
		      struct answer *answer)
{
	long status = -1;

	for (unsigned i = 0; i < TRIES; i++) {
		status = ask(url, method, header, answer);
		if (status > 0 && status < 500 && status != 429)
			break;
		usleep(100000u << i);
	}
	return status;
}

static char *member(const json_t *json, const char *name)
{
	const char *text = json_string_value(json_object_get(json, name));

	return text && *text ? strdup(text) : NULL;
}

static int64_t time_parse(const char *text)
{
	struct tm tm = {0};

	return text && strptime(text, "%Y-%m-%dT%H:%M:%S", &tm) ? (int64_t)timegm(&tm) : 0;
}

static bool role_parse(const struct answer *answer, struct s3_credentials *c)
{
	json_t *json = json_loadb(answer->text, answer->length, 0, NULL);
	char *expires = member(json, "Expiration");

	c->access = member(json, "AccessKeyId");
	c->secret = member(json, "SecretAccessKey");
	c->token = member(json, "Token");
	c->expires_s = time_parse(expires);
	free(expires);
	json_decref(json);
	if (c->access && c->secret)
		return true;
	s3_credentials_free(c);
	return false;
}

/* The token may lie in a file, which is renewed by somebody else. */
static void container_header(char *header, size_t size)
{
	const char *path = getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
	const char *token = getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN");
	FILE *file = path && *path ? fopen(path, "re") : NULL;
	char line[8192] = "";

	if (file) {
		if (!fgets(line, sizeof(line), file))
			line[0] = '\0';
		fclose(file);
		line[strcspn(line, "\r\n")] = '\0';
		token = line;
	}
	header[0] = '\0';
	if (token && *token && !strpbrk(token, "\r\n"))
		snprintf(header, size, "Authorization: %s", token);
}

static int from_container(struct s3_credentials *c, struct answer *answer, char *why,
			  size_t why_size)
{
	const char *relative = getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
	const char *full = getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI");
	char url[1024], header[8300];
	long status;

	if (!(relative && *relative) && !(full && *full))
		return -ENOENT;
	if (relative && *relative)
		snprintf(url, sizeof(url), CONTAINER_HOST "%s", relative);
	else
		snprintf(url, sizeof(url), "%s", full);
	container_header(header, sizeof(header));
	status = ask_again(url, "GET", header[0] ? header : NULL, answer);
	c->from = "the container's role";
	if (status == 200 && role_parse(answer, c))
		return 0;
	if (status < 0)
		snprintf(why, why_size, "the container's credentials at %s do not answer", url);
	else
		snprintf(why, why_size, "the container's credentials at %s: status %ld", url,
			 status);
	return -ENOKEY;
}

static int from_instance(struct s3_credentials *c, struct answer *answer, char *why,
			 size_t why_size)
{
	const char *disabled = getenv("AWS_EC2_METADATA_DISABLED");
	const char *given = getenv("AWS_EC2_METADATA_SERVICE_ENDPOINT");
	char url[1024], header[512], host[512];
	long status;

	if (disabled && !strcasecmp(disabled, "true"))
		return -ENOENT;
	snprintf(host, sizeof(host), "%s", given && *given ? given : INSTANCE_HOST);
	while (*host && host[strlen(host) - 1] == '/')
		host[strlen(host) - 1] = '\0';
	snprintf(url, sizeof(url), "%s/latest/api/token", host);
	/* Once: on a machine that is no instance nobody answers, which is the usual case. */
	status = ask(url, "PUT", "X-aws-ec2-metadata-token-ttl-seconds: 300", answer);
	if (status != 200 || answer->length > 256)
		return -ENOENT;
	snprintf(header, sizeof(header), "X-aws-ec2-metadata-token: %.256s", answer->text);
	snprintf(url, sizeof(url), "%s" INSTANCE_PATH, host);
	status = ask_again(url, "GET", header, answer);
	answer->text[strcspn(answer->text, "\r\n")] = '\0';
	if (status != 200 || !*answer->text || strlen(answer->text) > 128) {
		snprintf(why, why_size, "this instance has no role (status %ld)", status);
		return -ENOKEY;
	}
	snprintf(url, sizeof(url), "%s" INSTANCE_PATH "%.128s", host, answer->text);
	status = ask_again(url, "GET", header, answer);
	c->from = "the instance's role";
	if (status == 200 && role_parse(answer, c))
		return 0;
	snprintf(why, why_size, "the instance's role gives no credentials (status %ld)", status);
	return -ENOKEY;
}

/* ---- public ----------------------------------------------------------------------------------------- */

static int credentials_find(const struct s3_url *url, struct s3_credentials *c, char *why,
			    size_t why_size)
{
	bool named = url->credentials_file || url->profile;
	struct answer *answer;
	int error;

	if (!named && from_environment(c))
		return 0;
	error = from_files(url, c, why, why_size);
	if (error != -ENOENT || named)
		return error;
	answer = malloc(sizeof(*answer));
	if (!answer)
		return -ENOMEM;
	error = from_container(c, answer, why, why_size);
	if (error == -ENOENT)
		error = from_instance(c, answer, why, why_size);
	free(answer);
	return error;
}

int s3_credentials_get(const struct s3_url *url, struct s3_credentials *credentials, char *why,
		       size_t why_size)
{
	int error;

	*credentials = (struct s3_credentials){0};
	error = credentials_find(url, credentials, why, why_size);
	if (error == -ENOENT) {
		snprintf(why, why_size,
			 "no credentials: not in the environment "
			 "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), not in "
			 "~/.aws/credentials, and no role of a container or instance");
		return -ENOKEY;
	}
	if (!error && (strpbrk(credentials->access, "\r\n") ||
		       (credentials->token && strpbrk(credentials->token, "\r\n")))) {
		snprintf(why, why_size, "%s: the credentials have a line break", credentials->from);
		s3_credentials_free(credentials);
		return -EKEYREJECTED;
	}
	return error;
}

void s3_credentials_free(struct s3_credentials *credentials)
{
	free(credentials->access);
	if (credentials->secret)
		explicit_bzero(credentials->secret, strlen(credentials->secret));
	free(credentials->secret);
	free(credentials->token);
	*credentials = (struct s3_credentials){0};
}

static bool same(const char *a, const char *b)
{
	return a && b ? !strcmp(a, b) : a == b;
}

bool s3_credentials_equal(const struct s3_credentials *a, const struct s3_credentials *b)
{
	return same(a->access, b->access) && same(a->secret, b->secret) && same(a->token, b->token);
}
