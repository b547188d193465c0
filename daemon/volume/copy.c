// SPDX-License-Identifier: Apache-2.0
/*
 * The copy of the content that is kept while a catch-up in place makes it a mixture. The file itself says
 * that there is one: it gets its name when it is whole and durable.
 */
#include "daemon/volume/internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int volume_keep_copy(struct volume *v)
{
	struct env_file_info info;
	char *path = NULL;
	int error;

	if (v->backing == NULL)
		return -EIO;
	error = env_file_info(v->env, v->backing, &info);
	if (error != 0 || info.block_device)
		return error != 0 ? error : -EOPNOTSUPP;
	if (asprintf(&path, "%s.new", v->copy_path) < 0)
		return -ENOMEM;
	error = env_file_clone(v->env, v->backing, path);
	if (error == 0)
		error = env_rename(v->env, path, v->copy_path);
	if (error == 0)
		error = env_sync_parent(v->env, v->backing_path);
	if (error != 0 && error != -EOPNOTSUPP)
		env_unlink(v->env, path);
	free(path);
	v->has_copy = error == 0;
	return error;
}

void volume_drop_copy(struct volume *v)
{
	int error;

	if (!v->has_copy)
		return;
	v->has_copy = false;
	error = env_unlink(v->env, v->copy_path);
	if (error == 0)
		error = env_sync_parent(v->env, v->backing_path);
	if (error != 0)
		env_log(v->env, ENV_LOG_WARNING, "volume %s: %s: cannot be removed: %s", v->name,
			v->copy_path, strerror(-error));
}

const char *volume_kept_copy(const struct volume *v)
{
	return v->has_copy ? v->copy_path : NULL;
}

void copy_look(struct volume *v)
{
	struct env_file *file;

	if (env_file_open(v->env, v->copy_path, ENV_FILE_READ, &file) != 0)
		return;
	env_file_close(v->env, file);
	v->has_copy = true;
	if (v->state.disk == VOLUME_DISK_UPTODATE || v->state.disk == VOLUME_DISK_OUTDATED)
		volume_drop_copy(v);
}
