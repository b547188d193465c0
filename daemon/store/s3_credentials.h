/* SPDX-License-Identifier: Apache-2.0 */
/*
 * s3_credentials: who we are to the service. In this order, the first that has any:
 *
 *   the address's credentials-file or profile, if it names one
 *   AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN
 *   ~/.aws/credentials, then ~/.aws/config (AWS_SHARED_CREDENTIALS_FILE, AWS_CONFIG_FILE, AWS_PROFILE)
 *   the container's role (AWS_CONTAINER_CREDENTIALS_RELATIVE_URI, ..._FULL_URI)
 *   the instance's role (IMDSv2; not with AWS_EC2_METADATA_DISABLED=true)
 *
 * All calls block (files; roles ask a server on this host for at most some seconds).
 */
#ifndef OFFSITE_STORE_S3_CREDENTIALS_H
#define OFFSITE_STORE_S3_CREDENTIALS_H

#include "daemon/store/s3_url.h"

struct s3_credentials {
	char *access, *secret;
	char *token;       /* of the session, or NULL */
	int64_t expires_s; /* since 1970; 0: never */
	const char *from;  /* static text, for messages */
};

/* 0, or -ENOKEY (none found; why says where was looked), -EKEYREJECTED (found, but unusable). The
 * caller frees. */
int s3_credentials_get(const struct s3_url *url, struct s3_credentials *credentials, char *why,
		       size_t why_size);
void s3_credentials_free(struct s3_credentials *credentials);
bool s3_credentials_equal(const struct s3_credentials *a, const struct s3_credentials *b);

/* A setting of the profile in the shared config file ("region", "endpoint_url", "ca_bundle"), or NULL.
 * The caller frees. */
char *s3_profile_setting(const struct s3_url *url, const char *name);

#endif
