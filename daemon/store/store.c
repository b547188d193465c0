/* SPDX-License-Identifier: Apache-2.0 */
/* Opening a store by its scheme, the rules for names, and words for errors. See store.h. */
#include "daemon/store/store.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/io/env_ops.h"
#include "daemon/store/file.h"

#define NAME_MAX_BYTES 512

bool store_name_valid(const char *name)
{
	size_t component = 0;

	for (const char *c = name;; c++) {
		if (*c == '/' || !*c) {
			if (!component || (component == 1 && c[-1] == '.') ||
			    (component == 2 && c[-1] == '.' && c[-2] == '.'))
				return false;
			if (!*c)
				return c - name <= NAME_MAX_BYTES;
			component = 0;
			continue;
		}
		if (!((*c >= 'a' && *c <= 'z') || (*c >= '0' && *c <= '9') || *c == '.' ||
		      *c == '_' || *c == '-'))
			return false;
		component++;
	}
}

int store_open(struct env *env, const char *url, struct store **store, char *why, size_t why_size)
{
	*store = NULL;
	if (env->ops->store_open)
		return env->ops->store_open(env, url, store, why, why_size);
	if (!strncmp(url, "file:/", 6))
		return store_file_open(env, url, url + 5, store, why, why_size);
	if (url[0] == '/')
		return store_file_open(env, url, url, store, why, why_size);
	if (!strncmp(url, "file:", 5))
		snprintf(why, why_size, "store %s: needs an absolute path, as in file:/srv/backup",
			 url);
	else
		snprintf(why, why_size,
			 "store %s: unknown scheme; known: file:/directory, or an absolute path",
			 url);
	return -EINVAL;
}

void store_close(struct store *store)
{
	if (store)
		store->ops->close(store);
}

const char *store_strerror(int error)
{
	switch (-error) {
	case 0:
		return "no error";
	case ENOENT:
		return "no such object in the store";
	case EEXIST:
		return "the object's name is taken in the store";
	case ENOSPC:
	case EDQUOT:
		return "no space left in the store";
	case EACCES:
	case EPERM:
		return "the store denies access";
	case EOPNOTSUPP:
		return "the store's file system has no hard links, which a store needs";
	case EROFS:
		return "the store is read-only";
	case EIO:
		return "input/output error in the store";
	case EINVAL:
		return "the store refuses the object's name";
	case ETIMEDOUT:
		return "the store does not answer in time";
	case ECONNREFUSED:
	case ECONNRESET:
	case EPIPE:
		return "the connection to the store is lost";
	case EBADMSG:
		return "the object is damaged";
	case ENOMEM:
		return "out of memory";
	default:
		return strerror(error < 0 ? -error : error);
	}
}
