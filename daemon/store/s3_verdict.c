/* SPDX-License-Identifier: Apache-2.0 */
/* See s3_verdict.h. */
#include "daemon/store/s3_verdict.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "daemon/store/store.h"

/* By the code in the error's XML; then by status. 0 and NULL match anything. */
static const struct rule {
	long status;
	const char *code;
	enum s3_action action;
	int error;
} rules[] = {
	{0, "NoSuchKey", S3_FAIL, -ENOENT},
	{0, "NoSuchBucket", S3_FAIL, -ENXIO},
	{0, "InvalidAccessKeyId", S3_REFRESH, -EKEYREJECTED},
	{0, "SignatureDoesNotMatch", S3_REFRESH, -EKEYREJECTED},
	{0, "InvalidToken", S3_REFRESH, -EKEYREJECTED},
	{0, "ExpiredToken", S3_REFRESH, -EKEYEXPIRED},
	{0, "TokenRefreshRequired", S3_REFRESH, -EKEYEXPIRED},
	{0, "RequestTimeTooSkewed", S3_FAIL, -ETIME},
	{0, "RequestExpired", S3_FAIL, -ETIME},
	{0, "AuthorizationHeaderMalformed", S3_REGION, -EREMOTE},
	{0, "PermanentRedirect", S3_REGION, -EREMOTE},
	{0, "TemporaryRedirect", S3_REGION, -EREMOTE},
	{0, "IncorrectEndpoint", S3_REGION, -EREMOTE},
	{0, "InvalidObjectState", S3_FAIL, -ENOMEDIUM},
	{0, "QuotaExceeded", S3_FAIL, -EDQUOT},
	{0, "StorageFull", S3_FAIL, -ENOSPC},
	{0, "XMinioStorageFull", S3_FAIL, -ENOSPC},
	{0, "EntityTooLarge", S3_FAIL, -EFBIG},
	/* Damage on the way here: sent again. */
	{0, "BadDigest", S3_RETRY, -EREMOTEIO},
	{0, "XAmzContentSHA256Mismatch", S3_RETRY, -EREMOTEIO},
	{0, "IncompleteBody", S3_RETRY, -ECONNRESET},
	{0, "RequestTimeout", S3_RETRY, -ETIMEDOUT},
	{0, "SlowDown", S3_RETRY, -EAGAIN},
	{0, "ServiceUnavailable", S3_RETRY, -EAGAIN},
	{0, "InternalError", S3_RETRY, -EREMOTEIO},
	{0, "NotImplemented", S3_PLAIN, -EREMOTEIO},
	{400, "InvalidRequest", S3_PLAIN, -EREMOTEIO},
	{400, "InvalidArgument", S3_PLAIN, -EREMOTEIO},
	{0, "AccessDenied", S3_FAIL, -EACCES},
	{412, NULL, S3_FAIL, -EEXIST},
	{401, NULL, S3_REFRESH, -EKEYREJECTED},
	{403, NULL, S3_FAIL, -EACCES},
	{404, NULL, S3_FAIL, -ENOENT},
	{301, NULL, S3_REGION, -EREMOTE},
	{307, NULL, S3_REGION, -EREMOTE},
	{408, NULL, S3_RETRY, -ETIMEDOUT},
	{409, NULL, S3_RETRY, -EAGAIN},
	{429, NULL, S3_RETRY, -EAGAIN},
	{503, NULL, S3_RETRY, -EAGAIN},
	{501, NULL, S3_PLAIN, -EREMOTEIO},
	{500, NULL, S3_RETRY, -EREMOTEIO},
	{502, NULL, S3_RETRY, -EREMOTEIO},
	{504, NULL, S3_RETRY, -ETIMEDOUT},
	{0, NULL, S3_FAIL, -EREMOTEIO},
};

static struct s3_verdict of_transport(const struct s3_answer *a)
{
	switch (a->curl) {
	case CURLE_PEER_FAILED_VERIFICATION:
	case CURLE_SSL_CACERT_BADFILE:
	case CURLE_SSL_CERTPROBLEM:
	case CURLE_SSL_ISSUER_ERROR:
		return (struct s3_verdict){S3_FAIL, -EPROTO};
	case CURLE_URL_MALFORMAT:
	case CURLE_UNSUPPORTED_PROTOCOL:
		return (struct s3_verdict){S3_FAIL, -EINVAL};
	case CURLE_OUT_OF_MEMORY:
		return (struct s3_verdict){S3_FAIL, -ENOMEM};
	case CURLE_WRITE_ERROR: /* longer than what was asked for */
		return (struct s3_verdict){S3_FAIL, -EREMOTEIO};
	case CURLE_SSL_CONNECT_ERROR:
		return (struct s3_verdict){S3_RETRY, -EPROTO};
	case CURLE_COULDNT_RESOLVE_HOST:
	case CURLE_COULDNT_RESOLVE_PROXY:
		return (struct s3_verdict){S3_RETRY, -EHOSTUNREACH};
	case CURLE_COULDNT_CONNECT:
		return (struct s3_verdict){S3_RETRY, -ECONNREFUSED};
	case CURLE_OPERATION_TIMEDOUT:
		return (struct s3_verdict){S3_RETRY, -ETIMEDOUT};
	default:
		return (struct s3_verdict){S3_RETRY, -ECONNRESET};
	}
}

struct s3_verdict s3_verdict(const struct s3_answer *a, enum s3_method method)
{
	const struct rule *rule = rules;

	/* An answer that refuses counts even if the body could not all be sent. */
	if (a->curl != CURLE_OK && (a->status / 100 == 2 || a->status < 200))
		return of_transport(a);
	/* A good status with an error in the body: a multipart upload that failed while it was put together. */
	if (a->status / 100 == 2 && !a->code[0])
		return (struct s3_verdict){S3_FINE, 0};
	/* The answer to HEAD has no body that would say why. */
	if (method == S3_HEAD && (a->status == 400 || a->status == 403))
		return (struct s3_verdict){S3_REFRESH, a->status == 403 ? -EACCES : -EKEYREJECTED};
	while ((rule->status && rule->status != a->status) ||
	       (rule->code && strcmp(rule->code, a->code) != 0))
		rule++;
	if (a->status / 100 == 2 && rule->action != S3_RETRY)
		return (struct s3_verdict){S3_RETRY, -EREMOTEIO};
	return (struct s3_verdict){rule->action, rule->error};
}

static void skew_text(const struct s3_answer *a, char *text, size_t text_size)
{
	time_t there = curl_getdate(a->date, NULL), here = time(NULL);

	if (there < 0)
		return;
	snprintf(text, text_size, "the clock here is %lld minutes %s the store's: set it right",
		 (long long)(here > there ? here - there : there - here) / 60,
		 here > there ? "ahead of" : "behind");
}

void s3_verdict_text(const struct s3_answer *a, int error, char *text, size_t text_size)
{
	snprintf(text, text_size, "%s", store_strerror(error));
	if (error == -ETIME)
		skew_text(a, text, text_size);

	size_t used = strlen(text);

	if (a->status / 100 == 2 && !a->code[0])
		return;
	if (a->status && (a->code[0] || a->status >= 300))
		snprintf(text + used, text_size - used, " (status %ld%s%s%s%s)", a->status,
			 a->code[0] ? " " : "", a->code, a->message[0] ? ": " : "", a->message);
	else if (a->curl != CURLE_OK)
		snprintf(text + used, text_size - used, " (%s)",
			 a->curl_error[0] ? a->curl_error : curl_easy_strerror(a->curl));
}
