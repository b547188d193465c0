/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store_file: a directory as an object store. An object is a file of its name below the root. It is
 * written as .tmp/RANDOM, fsynced, and linked to its name, so that it is there whole and durable or not
 * at all, and never replaces another. Real environments only: it makes system calls on helper threads.
 */
#ifndef OFFSITE_STORE_FILE_H
#define OFFSITE_STORE_FILE_H

#include "daemon/store/store.h"

int store_file_open(struct env *env, const char *url, const char *path, struct store **store,
		    char *why, size_t why_size);

#endif
