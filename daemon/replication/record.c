/* SPDX-License-Identifier: Apache-2.0 */
/* Small whole files. See record.h. */
#include "daemon/replication/record.h"

#include <errno.h>
#include <stdio.h>

#define PATH_BYTES 4096

static void record_path(struct volume *volume, const char *name, const char *suffix,
			char path[PATH_BYTES])
{
	snprintf(path, PATH_BYTES, "%s/%s%s", volume_state_dir(volume), name, suffix);
}

static int write_new(struct env *env, const char *path, const void *data, size_t length)
{
	struct env_file *file;
	int error =
		env_file_open(env, path, ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_CREATE, &file);

	if (error)
		return error;
	error = env_file_truncate(env, file, length);
	if (!error)
		error = env_file_pwrite(env, file, data, length, 0);
	if (!error)
		error = env_file_sync(env, file);
	env_file_close(env, file);
	return error;
}

int record_write(struct volume *volume, const char *name, const void *data, size_t length)
{
	struct env *env = volume_env(volume);
	char path[PATH_BYTES], fresh[PATH_BYTES];

	record_path(volume, name, "", path);
	record_path(volume, name, ".new", fresh);
	int error = write_new(env, fresh, data, length);
	if (!error)
		error = env_rename(env, fresh, path);
	return error ? error : env_sync_dir(env, volume_state_dir(volume));
}

int record_read(struct volume *volume, const char *name, void *data, size_t length)
{
	struct env *env = volume_env(volume);
	struct env_file_info info;
	struct env_file *file;
	char path[PATH_BYTES];

	record_path(volume, name, "", path);
	int error = env_file_open(env, path, ENV_FILE_READ, &file);
	if (error)
		return error;
	error = env_file_info(env, file, &info);
	if (!error && info.size_bytes != length)
		error = -EBADMSG;
	if (!error)
		error = env_file_pread(env, file, data, length, 0);
	env_file_close(env, file);
	return error;
}

int record_remove(struct volume *volume, const char *name)
{
	char path[PATH_BYTES];

	record_path(volume, name, "", path);
	int error = env_unlink(volume_env(volume), path);
	if (error && error != -ENOENT)
		return error;
	return env_sync_dir(volume_env(volume), volume_state_dir(volume));
}
