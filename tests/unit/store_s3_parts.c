/* SPDX-License-Identifier: Apache-2.0 */
/* What a store in a bucket is made of, without a network: address, XML, verdicts, credentials in files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "daemon/store/s3_credentials.h"
#include "daemon/store/s3_profile.h"
#include "daemon/store/s3_internal.h"
#include "daemon/store/s3_sign.h"
#include "daemon/store/s3_verdict.h"
#include "daemon/store/s3_xml.h"
#include "daemon/store/store.h"

/* ---- addresses --------------------------------------------------------------------------------- */

static void address_is_taken_apart(void **state)
{
	struct s3_url url;
	char why[256] = "";

	assert_int_equal(s3_url_parse("s3://my-bucket/a/b//?endpoint=https://h:9000&path-style=no&"
				      "sse=aws:kms&sse-kms-key=arn%3Aaws%3akey&connections=3&"
				      "tags=team:db,env:prod&accelerate=no",
				      &url, why, sizeof(why)),
			 0);
	assert_string_equal(url.bucket, "my-bucket");
	assert_string_equal(url.prefix, "a/b/");
	assert_string_equal(url.endpoint, "https://h:9000");
	assert_int_equal(url.style, S3_STYLE_VIRTUAL);
	assert_int_equal(url.sse, S3_SSE_KMS);
	assert_string_equal(url.sse_key, "arn:aws:key");
	assert_int_equal(url.connections, 3);
	assert_int_equal(url.retry_s, 120);
	assert_string_equal(url.tags, "team:db,env:prod");
	assert_null(url.region);
	s3_url_free(&url);
	assert_int_equal(s3_url_parse("s3://bucket", &url, why, sizeof(why)), 0);
	assert_string_equal(url.prefix, "");
	assert_int_equal(url.connections, 8);
	s3_url_free(&url);
}

/* Amazon's own endpoints, for buckets as hosts. */
static void endpoint_by_options(void **state)
{
	static const struct {
		const char *text, *endpoint;
		bool path_style;
	} cases[] = {
		{"s3://bucket?region=eu-1", "https://s3.eu-1.amazonaws.com", false},
		{"s3://buck.et?region=eu-1", "https://s3.eu-1.amazonaws.com", true},
		{"s3://bucket?region=cn-north-1", "https://s3.cn-north-1.amazonaws.com.cn", false},
		{"s3://bucket?accelerate=yes", "https://s3-accelerate.amazonaws.com", false},
		{"s3://bucket?region=eu-1&dual-stack=yes",
		 "https://s3.dualstack.eu-1.amazonaws.com", false},
		{"s3://bucket?accelerate=yes&dual-stack=yes",
		 "https://s3-accelerate.dualstack.amazonaws.com", false},
		{"s3://bucket?endpoint=https://h:9/", "https://h:9", true},
	};

	setenv("AWS_ACCESS_KEY_ID", "key", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "secret", 1);
	unsetenv("AWS_ENDPOINT_URL");
	unsetenv("AWS_ENDPOINT_URL_S3");
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct s3_url url;
		struct s3_access access;
		char why[256] = "";

		assert_int_equal(s3_url_parse(cases[i].text, &url, why, sizeof(why)), 0);
		assert_int_equal(s3_access_init(&access, &url, why, sizeof(why)), 0);
		assert_string_equal(access.endpoint, cases[i].endpoint);
		assert_int_equal(access.path_style, cases[i].path_style);
		s3_access_free(&access);
		s3_url_free(&url);
	}
	unsetenv("AWS_ACCESS_KEY_ID");
	unsetenv("AWS_SECRET_ACCESS_KEY");
}

static void bad_address_has_a_reason(void **state)
{
	static const struct {
		const char *text, *words;
	} cases[] = {
		{"s3:bucket", "must be s3://BUCKET/PREFIX"},
		{"s3://", "3 to 63 characters"},
		{"s3://ab/x", "3 to 63 characters"},
		{"s3://Bucket/x", "lower-case"},
		{"s3://-bucket", "begins and ends"},
		{"s3://bu..cket", "begins and ends"},
		{"s3://bucket/a b", "letters, digits and ._-/ only"},
		{"s3://bucket//a", "empty part"},
		{"s3://bucket/../a", "part . or .."},
		{"s3://bucket/a/..", "part . or .."},
		{"s3://bucket?colour=red", "unknown option 'colour'"},
		{"s3://bucket?region", "'region' has no value"},
		{"s3://bucket?region=a&region=b", "stands there twice"},
		{"s3://bucket?region=%4", "bad %XX"},
		{"s3://bucket?region=a%00b", "bad %XX"},
		{"s3://bucket?region=a/b", "letters, digits"},
		{"s3://bucket?endpoint=ftp://x", "must begin with https://"},
		{"s3://bucket?endpoint=https://", "has no host"},
		{"s3://bucket?proxy=http://me:secret@proxy:3128", "must not carry a password"},
		{"s3://bucket?connections=0", "from 1 to 64"},
		{"s3://bucket?connections=9x", "from 1 to 64"},
		{"s3://bucket?path-style=maybe", "must be auto, yes or no"},
		{"s3://bucket?ca-file=ca.pem", "absolute path"},
		{"s3://bucket?tags=a", "KEY:VALUE"},
		{"s3://bucket?tags=a:1,:2", "KEY:VALUE"},
		{"s3://bucket?sse-kms-key=k", "needs sse=aws:kms"},
		{"s3://bucket?sse=customer", "needs sse-key-file"},
		{"s3://bucket?sse=customer&sse-key-file=/k&endpoint=http://h", "plain text"},
		{"s3://bucket?accelerate=yes&endpoint=https://h", "no endpoint"},
		{"s3://bucket?storage-class=A%0D%0AX", "letters, digits"},
		{"s3://bucket?sse=aws:kms&sse-kms-key=A%0D%0AX", "printable"},
		{"s3://bucket?tags=a:b%0Ac", "printable"},
	};
	struct s3_url url;
	char why[256];

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		why[0] = '\0';
		assert_int_equal(s3_url_parse(cases[i].text, &url, why, sizeof(why)), -EINVAL);
		if (!strstr(why, cases[i].words))
			fail_msg("%s: %s", cases[i].text, why);
	}
}

/* ---- XML ------------------------------------------------------------------------------------------ */

static bool xml_text(const char *xml, const char *name, char *text)
{
	return s3_xml_text((struct s3_xml){xml, strlen(xml)}, name, text, 16);
}

static void xml_elements(void **state)
{
	struct s3_xml rest, content;
	const char *list = "<L><C><Key>a</Key></C><Cx>no</Cx><C/><C n=\"1\"><Key>b</Key></C></L>";
	char text[16];
	unsigned count = 0;

	rest = (struct s3_xml){list, strlen(list)};
	while (s3_xml_next(&rest, "C", &content))
		count++;
	assert_int_equal(count, 3);
	assert_true(xml_text("<a>x &amp;&lt;&gt;&quot;&apos;&#47;&#x2f;</a>", "a", text));
	assert_string_equal(text, "x &<>\"'//");
	assert_true(xml_text("<a></a>", "a", text));
	assert_string_equal(text, "");
	assert_false(xml_text("<a>12345678901234567</a>", "a", text));
	assert_false(xml_text("<a>&unknown;</a>", "a", text));
	assert_false(xml_text("<a>&#0;</a>", "a", text));
	assert_false(xml_text("<a>&#999;</a>", "a", text));
	assert_false(xml_text("<a>&amp</a>", "a", text));
	assert_false(xml_text("<a><b/></a>", "a", text));
	assert_false(xml_text("<a>never closed", "a", text));
	assert_false(xml_text("<a", "a", text));
	assert_false(xml_text("<", "a", text));
	assert_false(xml_text("", "a", text));
	assert_string_equal(text, "");
}

/* ---- verdicts --------------------------------------------------------------------------------------- */

static void verdict_of_answers(void **state)
{
	static const struct {
		CURLcode curl;
		long status;
		const char *code;
		enum s3_method method;
		enum s3_action action;
		int error;
	} cases[] = {
		{CURLE_OK, 200, "", S3_GET, S3_FINE, 0},
		{CURLE_OK, 204, "", S3_DELETE, S3_FINE, 0},
		{CURLE_OK, 200, "InternalError", S3_POST, S3_RETRY, -EREMOTEIO},
		{CURLE_OK, 200, "Whatever", S3_POST, S3_RETRY, -EREMOTEIO},
		{CURLE_PARTIAL_FILE, 206, "", S3_GET, S3_RETRY, -ECONNRESET},
		{CURLE_OPERATION_TIMEDOUT, 0, "", S3_GET, S3_RETRY, -ETIMEDOUT},
		{CURLE_COULDNT_CONNECT, 0, "", S3_GET, S3_RETRY, -ECONNREFUSED},
		{CURLE_PEER_FAILED_VERIFICATION, 0, "", S3_GET, S3_FAIL, -EPROTO},
		/* refused before all was sent */
		{CURLE_SEND_ERROR, 403, "AccessDenied", S3_PUT, S3_FAIL, -EACCES},
		{CURLE_SEND_ERROR, 100, "", S3_PUT, S3_RETRY, -ECONNRESET},
		{CURLE_OK, 404, "NoSuchKey", S3_GET, S3_FAIL, -ENOENT},
		{CURLE_OK, 404, "NoSuchBucket", S3_GET, S3_FAIL, -ENXIO},
		{CURLE_OK, 404, "", S3_HEAD, S3_FAIL, -ENOENT},
		{CURLE_OK, 403, "", S3_HEAD, S3_REFRESH, -EACCES},
		{CURLE_OK, 403, "SignatureDoesNotMatch", S3_GET, S3_REFRESH, -EKEYREJECTED},
		{CURLE_OK, 400, "ExpiredToken", S3_GET, S3_REFRESH, -EKEYEXPIRED},
		{CURLE_OK, 403, "RequestTimeTooSkewed", S3_GET, S3_FAIL, -ETIME},
		{CURLE_OK, 403, "InvalidObjectState", S3_GET, S3_FAIL, -ENOMEDIUM},
		{CURLE_OK, 403, "QuotaExceeded", S3_PUT, S3_FAIL, -EDQUOT},
		{CURLE_OK, 400, "AuthorizationHeaderMalformed", S3_GET, S3_REGION, -EREMOTE},
		{CURLE_OK, 301, "", S3_GET, S3_REGION, -EREMOTE},
		{CURLE_OK, 400, "BadDigest", S3_PUT, S3_RETRY, -EREMOTEIO},
		{CURLE_OK, 400, "InvalidRequest", S3_PUT, S3_PLAIN, -EREMOTEIO},
		{CURLE_OK, 501, "", S3_PUT, S3_PLAIN, -EREMOTEIO},
		{CURLE_OK, 400, "InvalidStorageClass", S3_PUT, S3_FAIL, -EREMOTEIO},
		{CURLE_OK, 409, "ConditionalRequestConflict", S3_PUT, S3_RETRY, -EAGAIN},
		{CURLE_OK, 412, "PreconditionFailed", S3_PUT, S3_FAIL, -EEXIST},
		{CURLE_OK, 429, "", S3_GET, S3_RETRY, -EAGAIN},
		{CURLE_OK, 503, "SlowDown", S3_GET, S3_RETRY, -EAGAIN},
		{CURLE_OK, 500, "", S3_GET, S3_RETRY, -EREMOTEIO},
		{CURLE_OK, 418, "", S3_GET, S3_FAIL, -EREMOTEIO},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct s3_answer answer = {.curl = cases[i].curl, .status = cases[i].status};
		struct s3_verdict verdict;

		strcpy(answer.code, cases[i].code);
		verdict = s3_verdict(&answer, cases[i].method);
		if (verdict.action != cases[i].action || verdict.error != cases[i].error)
			fail_msg("%ld %s: %d %d", cases[i].status, cases[i].code, verdict.action,
				 verdict.error);
	}
}

static void skewed_clock_in_words(void **state)
{
	struct s3_answer answer = {.status = 403,
				   .code = "RequestTimeTooSkewed",
				   .date = "Thu, 01 Jan 2015 00:00:00 GMT"};
	char text[256];

	s3_verdict_text(&answer, -ETIME, text, sizeof(text));
	assert_non_null(strstr(text, "minutes ahead of the store's: set it right"));
}

/* ---- signatures --- */

/* The examples of Amazon's documentation of Signature Version 4 for S3. */
static void signature_as_documented(void **state)
{
	static const char empty[] =
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
	static const struct {
		const char *url, *extra, *value, *signature;
	} cases[] = {
		{"https://examplebucket.s3.amazonaws.com/test.txt", "Range", "bytes=0-9",
		 "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"},
		{"https://examplebucket.s3.amazonaws.com:443/?lifecycle=", NULL, NULL,
		 "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"},
		{"https://examplebucket.s3.amazonaws.com/?max-keys=2&prefix=J", NULL, NULL,
		 "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"},
	};
	struct s3_scope scope = {"AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
				 "us-east-1", 1369353600};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct curl_slist *headers = s3_header(NULL, "x-amz-content-sha256", empty), *last;

		if (cases[i].extra)
			headers = s3_header(headers, cases[i].extra, cases[i].value);
		assert_true(s3_sign(&headers, "GET", cases[i].url, empty, &scope));
		for (last = headers; last->next;)
			last = last->next;
		if (!strstr(last->data, cases[i].signature))
			fail_msg("%s: %s", cases[i].url, last->data);
		curl_slist_free_all(headers);
	}
}

/* By name, not by the whole line: '-' sorts before ':'. */
static void headers_signed_in_order(void **state)
{
	struct s3_scope scope = {"A", "S", "r", 0};
	struct curl_slist *headers = s3_header(NULL, "x-amz-a-b", "1"), *last;

	headers = s3_header(headers, "X-Amz-A", "2");
	assert_true(s3_sign(&headers, "PUT", "http://h/k", "", &scope));
	for (last = headers; last->next;)
		last = last->next;
	assert_non_null(strstr(last->data, "SignedHeaders=host;x-amz-a;x-amz-a-b;x-amz-date,"));
	curl_slist_free_all(headers);
}

/* ---- credentials --------------------------------------------------------------------------------------- */

static char folder[64];

static void write_file(const char *name, const char *text)
{
	char path[128];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	file = fopen(path, "w");
	assert_non_null(file);
	assert_true(fputs(text, file) >= 0);
	assert_int_equal(fclose(file), 0);
	setenv(!strcmp(name, "config") ? "AWS_CONFIG_FILE" : "AWS_SHARED_CREDENTIALS_FILE", path,
	       1);
}

static int setup_files(void **state)
{
	strcpy(folder, "/tmp/offsite-keys-XXXXXX");
	assert_non_null(mkdtemp(folder));
	unsetenv("AWS_ACCESS_KEY_ID");
	unsetenv("AWS_SECRET_ACCESS_KEY");
	unsetenv("AWS_SESSION_TOKEN");
	unsetenv("AWS_PROFILE");
	setenv("AWS_EC2_METADATA_DISABLED", "true", 1);
	write_file("credentials",
		   "# comment\n[default]\naws_access_key_id = AKD\n"
		   "aws_secret_access_key=s/d+=\n[ work ]\n aws_access_key_id = not this\n"
		   "aws_access_key_id=AKW\r\naws_secret_access_key = sw\r\n"
		   "aws_session_token = tw\n[half]\naws_access_key_id=AKH\n");
	write_file("config", "[default]\nregion = eu-1\n[profile role]\nrole_arn = arn:x\n"
			     "[profile work]\nregion=eu-2\ns3 =\n  endpoint_url = http://not.this\n"
			     "endpoint_url = https://this.one\n");
	return 0;
}

static int teardown_files(void **state)
{
	char command[128];

	snprintf(command, sizeof(command), "rm -rf '%s'", folder);
	return system(command);
}

static void credentials_in_order(void **state)
{
	struct s3_url url = {0};
	struct s3_credentials c;
	char why[512], *value;

	assert_int_equal(s3_credentials_get(&url, &c, why, sizeof(why)), 0);
	assert_string_equal(c.access, "AKD");
	assert_string_equal(c.secret, "s/d+=");
	assert_null(c.token);
	s3_credentials_free(&c);
	setenv("AWS_ACCESS_KEY_ID", "AKE", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "se", 1);
	assert_int_equal(s3_credentials_get(&url, &c, why, sizeof(why)), 0);
	assert_string_equal(c.access, "AKE");
	s3_credentials_free(&c);
	url.profile = (char *)"work"; /* named in the address: before the environment */
	assert_int_equal(s3_credentials_get(&url, &c, why, sizeof(why)), 0);
	assert_string_equal(c.access, "AKW");
	assert_string_equal(c.secret, "sw");
	assert_string_equal(c.token, "tw");
	s3_credentials_free(&c);
	value = s3_profile_setting(&url, "endpoint_url");
	assert_string_equal(value, "https://this.one");
	free(value);
}

static void missing_credentials_in_words(void **state)
{
	struct s3_url url = {0};
	struct s3_credentials c;
	char why[512];

	url.profile = (char *)"half";
	assert_int_equal(s3_credentials_get(&url, &c, why, sizeof(why)), -ENOKEY);
	assert_non_null(strstr(why, "no keys for profile half in "));
	url.profile = (char *)"role";
	assert_int_equal(s3_credentials_get(&url, &c, why, sizeof(why)), -ENOKEY);
	assert_non_null(strstr(why, "assumes a role"));
	url.profile = NULL;
	url.credentials_file = (char *)"/nonexistent";
	assert_int_equal(s3_credentials_get(&url, &c, why, sizeof(why)), -ENOKEY);
	assert_non_null(strstr(why, "credentials-file /nonexistent: No such file"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(address_is_taken_apart),
		cmocka_unit_test(endpoint_by_options),
		cmocka_unit_test(bad_address_has_a_reason),
		cmocka_unit_test(xml_elements),
		cmocka_unit_test(verdict_of_answers),
		cmocka_unit_test(skewed_clock_in_words),
		cmocka_unit_test(signature_as_documented),
		cmocka_unit_test(headers_signed_in_order),
		cmocka_unit_test_setup_teardown(credentials_in_order, setup_files, teardown_files),
		cmocka_unit_test_setup_teardown(missing_credentials_in_words, setup_files,
						teardown_files),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
