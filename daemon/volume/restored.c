// SPDX-License-Identifier: Apache-2.0
/*
 * What happened to the backing while nobody had it open: a restore wrote onto it from outside. It left a
 * mark beside it: "restoring" as long as the content is a mixture, "restored" from then on, until the
 * volume was opened and knows that its maps no longer describe this content.
 */
#include "daemon/volume/internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEVICE_MARKS "/var/lib/offsite"

char *volume_restore_mark(const char *backing, const char *what)
{
	char *mark;

	if (strncmp(backing, "/dev/", 5) != 0)
		return asprintf(&mark, "%s.%s", backing, what) < 0 ? NULL : mark;
	if (asprintf(&mark, DEVICE_MARKS "/%s-%s", what, backing + 5) < 0)
		return NULL;
	for (char *c = mark + strlen(DEVICE_MARKS) + 1; *c != '\0'; c++)
		if (*c == '/')
			*c = '-';
	return mark;
}

/* 1, 0 or -errno. */
static int mark_exists(struct volume *v, const char *what, char *why, size_t why_size)
{
	char *mark = volume_restore_mark(v->backing_path, what);
	struct env_file *file;
	int error = mark == NULL ? -ENOMEM : env_file_open(v->env, mark, ENV_FILE_READ, &file);

	if (error == 0)
		env_file_close(v->env, file);
	if (error != 0 && error != -ENOENT)
		snprintf(why, why_size,
			 "volume %s: %s: cannot tell whether a restore wrote onto it: %s: %s",
			 v->name, v->backing_path, mark == NULL ? "" : mark, strerror(-error));
	if (error == 0 && strcmp(what, "restoring") == 0)
		snprintf(why, why_size,
			 "volume %s: %s: a restore onto it was interrupted (%s says so); run it "
			 "again to its end",
			 v->name, v->backing_path, mark);
	free(mark);
	return error == 0 ? 1 : error == -ENOENT ? 0 : error;
}

int restored_refuse(struct volume *v, char *why, size_t why_size)
{
	int exists = mark_exists(v, "restoring", why, why_size);

	return exists > 0 ? -EBUSY : exists;
}

int restored_look(struct volume *v, char *why, size_t why_size)
{
	int exists = mark_exists(v, "restored", why, why_size);

	if (exists <= 0)
		return exists;
	env_log(v->env, ENV_LOG_WARNING,
		"volume %s: %s: was restored from outside; everything counts as changed", v->name,
		v->backing_path);
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
		v->consumers[c].all_dirty = true;
	v->state.snapshot = (struct id128){0};
	v->state.applying = false;
	v->state.disk = v->disk_recorded = VOLUME_DISK_UPTODATE;
	v->state.outdated_ns = 0;
	generation_begin(v); /* another history, which begins at the one before */
	return 1;
}

int restored_forget(struct volume *v)
{
	char *mark = volume_restore_mark(v->backing_path, "restored");
	int error = mark == NULL ? -ENOMEM : env_unlink(v->env, mark);

	if (error == 0)
		error = env_sync_parent(v->env, mark);
	free(mark);
	return error == -ENOENT ? 0 : error;
}
