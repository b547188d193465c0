/* SPDX-License-Identifier: Apache-2.0 */
/*
 * s3_url: the address of a bucket and how to use it,
 *
 *     s3://BUCKET[/PREFIX][?OPTION=VALUE[&OPTION=VALUE...]]
 *
 * One table (s3_url.c) holds the options; in a value %XX stands for any byte. An address carries no
 * secret: credentials and keys are named by file or profile. Nothing here does I/O.
 */
#ifndef OFFSITE_STORE_S3_URL_H
#define OFFSITE_STORE_S3_URL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum s3_style { S3_STYLE_AUTO, S3_STYLE_PATH, S3_STYLE_VIRTUAL };
enum s3_checksum { S3_CHECKSUM_CRC32C, S3_CHECKSUM_MD5, S3_CHECKSUM_NONE };
enum s3_tier { S3_TIER_STANDARD, S3_TIER_BULK, S3_TIER_EXPEDITED };
enum s3_sse { S3_SSE_NONE, S3_SSE_S3, S3_SSE_KMS, S3_SSE_CUSTOMER };

struct s3_url {
	char *bucket;
	char *prefix;           /* "", or ends with '/' */
	char *endpoint;         /* SCHEME://HOST[:PORT], or NULL: Amazon's of the region */
	char *region;           /* or NULL */
	enum s3_style style;    /* path-style = auto|yes|no */
	bool accelerate;        /* accelerate = no|yes */
	bool dual_stack;        /* dual-stack = no|yes: Amazon's endpoints for IPv6 and IPv4 */
	char *ca_file;          /* ca-file, or NULL: the system's */
	char *proxy;            /* proxy, or NULL: by the environment */
	char *profile;          /* profile of the shared files, or NULL */
	char *credentials_file; /* credentials-file, or NULL: the shared one */
	char *class_packs, *class_maps, *class_snapshots; /* storage-class..., or NULL */
	enum s3_sse sse;                                  /* sse = none|AES256|aws:kms|customer */
	char *sse_key;                                    /* sse-kms-key, or NULL */
	char *sse_key_file;                               /* sse-key-file: 32 bytes, for customer */
	char *tags;                                       /* KEY:VALUE,KEY:VALUE..., or NULL */
	enum s3_tier tier;                                /* restore-tier */
	unsigned restore_days;                            /* restore-days: how long brought back */
	enum s3_checksum checksum;                        /* checksum = crc32c|md5|none */
	unsigned connections;                             /* connections: transfers at a time */
	unsigned timeout_s;                               /* timeout: without progress */
	unsigned retry_s;  /* retry: how long an operation is tried again */
	unsigned part_mib; /* part-size: larger objects are put in parts of this */
};

/* 0, or -EINVAL and in why the reason, fit for "store URL: REASON". url begins with "s3:". On success
 * the caller frees. */
int s3_url_parse(const char *text, struct s3_url *url, char *why, size_t why_size);
void s3_url_free(struct s3_url *url);
/* All options with their help and defaults. */
void s3_url_print_options(FILE *out);

#endif
