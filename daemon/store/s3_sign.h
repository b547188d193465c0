/* SPDX-License-Identifier: Apache-2.0 */
/*
 * s3_sign: AWS Signature Version 4 of a request. Pure.
 *
 * Not libcurl's own (CURLOPT_AWS_SIGV4): up to 7.88, which Debian 12 has, it orders headers by "name:value"
 * instead of by name, so that every service refuses requests with encryption headers
 * (x-amz-server-side-encryption beside ...-aws-kms-key-id, ...-customer-key beside ...-customer-key-MD5);
 * and what it does with a query changed from version to version.
 */
#ifndef OFFSITE_STORE_S3_SIGN_H
#define OFFSITE_STORE_S3_SIGN_H

#include <curl/curl.h>
#include <stdbool.h>
#include <time.h>

struct s3_scope {
	const char *access, *secret, *region;
	time_t now;
};

/* Adds Host, x-amz-date and Authorization to the headers ("Name: value", all of which are signed). url is
 * sent as it stands: path and query escaped, the query sorted and every name in it with '='. payload: the
 * body's SHA-256 in hexadecimal digits, also a header already. False: out of memory; the list is then
 * freed and NULL. */
bool s3_sign(struct curl_slist **headers, const char *method, const char *url, const char *payload,
	     const struct s3_scope *scope);

#endif
