/* SPDX-License-Identifier: Apache-2.0 */
/*
 * s3_profile: one section of a file in the form of ~/.aws/config and ~/.aws/credentials. Lines of any
 * length; indented lines (settings within settings) are passed over.
 */
#ifndef OFFSITE_STORE_S3_PROFILE_H
#define OFFSITE_STORE_S3_PROFILE_H

#include <stdbool.h>

/* The value of name in [section] of the file, or NULL: no such file, section or name. *found: the section
 * is there (may be NULL). The caller frees. */
char *s3_profile_read(const char *path, const char *section, const char *name, bool *found);

#endif
