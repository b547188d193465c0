/* SPDX-License-Identifier: Apache-2.0 */
/*
 * s3_verdict: what an answer of the service means for the operation: one table, first match. Pure.
 */
#ifndef OFFSITE_STORE_S3_VERDICT_H
#define OFFSITE_STORE_S3_VERDICT_H

#include "daemon/store/s3_exchange.h"

enum s3_action {
	S3_FINE,
	S3_FAIL,
	S3_RETRY,   /* may go well later */
	S3_REFRESH, /* with other credentials, if there are any by now */
	S3_REGION,  /* at another region, if the answer names it */
	S3_PLAIN,   /* without what this service does not know (checksum, condition) */
};

struct s3_verdict {
	enum s3_action action;
	int error; /* -errno if nothing helps; 0 with S3_FINE */
};

struct s3_verdict s3_verdict(const struct s3_answer *answer, enum s3_method method);
/* One line: what went wrong, in the service's words where it has any. */
void s3_verdict_text(const struct s3_answer *answer, int error, char *text, size_t text_size);

#endif
