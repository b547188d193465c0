/* SPDX-License-Identifier: Apache-2.0 */
/* Opening a store by its scheme, the rules for names, and words for errors. See store.h. */
#include "daemon/store/store.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/io/env_ops.h"
#include "daemon/store/file.h"
#include "daemon/store/s3.h"

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
	if (!strncmp(url, "s3:", 3))
		return store_s3_open(env, url, store, why, why_size);
	if (!strncmp(url, "file:", 5))
		snprintf(why, why_size, "store %s: needs an absolute path, as in file:/srv/backup",
			 url);
	else
		snprintf(why, why_size,
			 "store %s: unknown scheme; known: s3://bucket/prefix, file:/directory, or "
			 "an absolute path",
			 url);
	return -EINVAL;
}

void store_stop(struct store *store)
{
	if (store && store->ops->stop)
		store->ops->stop(store);
}

void store_counts(struct store *store, struct store_counts *counts)
{
	*counts = (struct store_counts){0};
	if (store && store->ops->counts)
		store->ops->counts(store, counts);
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
	case STORE_CANNOT_LOCK:
		return "the store does not lock objects (lock=): the bucket has to be made with "
		       "object lock";
	case EROFS:
		return "the store is read-only";
	case EIO:
		return "input/output error in the store";
	case EINVAL:
		return "the store refuses the object's name";
	case ETIMEDOUT:
		return "the store does not answer in time";
	case ECONNREFUSED:
		return "the store cannot be reached";
	case EHOSTUNREACH:
		return "the store's host name cannot be resolved";
	case ECONNRESET:
	case EPIPE:
		return "the connection to the store is lost";
	case EBADMSG:
		return "the object is damaged";
	case ENXIO:
		return "there is no such bucket";
	case ENOKEY:
		return "no credentials for the store";
	case EKEYREJECTED:
		return "the store refuses the credentials";
	case EKEYEXPIRED:
		return "the credentials for the store have expired";
	case ETIME:
		return "the clocks here and at the store differ by too much";
	case EREMOTE:
		return "the bucket is in another region";
	case STORE_ARCHIVED:
		return "the object is archived: it has to be brought back first";
	case STORE_LOCKED:
		return "the object is locked: its retention has not ended";
	case STORE_REPLACED:
		return "the directory there is not the one that was opened: it was replaced, or "
		       "something was mounted or unmounted; restart the daemon if it is to be used";
	case EFBIG:
		return "the object is too large for the store";
	case EAGAIN:
		return "the store is overloaded";
	case EREMOTEIO:
		return "the store answers with an error";
	case EPROTO:
		return "the store's certificate or TLS cannot be trusted";
	case ESHUTDOWN:
		return "given up: the daemon is stopping";
	case ENOMEM:
		return "out of memory";
	case STORE_NO_SECRET:
		return "is encrypted, and no key is given (passphrase file, key file or command)";
	case STORE_WRONG_SECRET:
		return "is encrypted with another key: what is given does not open it";
	case STORE_NO_KEYS:
		return "holds snapshots but no keys for them: written without encryption, or "
		       "what lay below keys/ was lost";
	default:
		return strerror(error < 0 ? -error : error);
	}
}
