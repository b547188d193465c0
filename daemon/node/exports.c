// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/exports.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/node/exports_internal.h"
#include "protocol/nbd.h"

#define RETRY_NS    50000000ull
#define RETRIES_MAX 100u /* a store that is being opened is waited for, 5 s */

/* ---- idle ------------------------------------------------------------------------------------- */

static void idle_call(struct env_task *task)
{
	struct exports *x = exports_of(task, struct exports, idle_task);

	if (x->stopping && exports_idle(x))
		x->idle(x->context);
}

void exports_begin(struct exports *x)
{
	x->under_way++;
}

void exports_end(struct exports *x)
{
	assert(x->under_way > 0);
	if (--x->under_way == 0 && x->stopping)
		env_defer(x->env, &x->idle_task);
}

struct exports *exports_new(struct node *node, void (*idle)(void *context), void *context)
{
	struct exports *x = calloc(1, sizeof(*x));

	if (!x)
		return NULL;
	*x = (struct exports){
		.node = node, .env = node_env(node), .idle = idle, .context = context};
	x->idle_task.call = idle_call;
	return x;
}

void exports_free(struct exports *x)
{
	if (!x)
		return;
	assert(exports_idle(x));
	env_defer_cancel(x->env, &x->idle_task);
	free(x);
}

bool exports_idle(const struct exports *x)
{
	return x->under_way == 0;
}

/* ---- snapshots that are open ---------------------------------------------------------------------- */

/* One that a client has asked for, or had. Exists while it is opened, open, or being closed. */
struct entry {
	struct exports *exports;
	struct entry *next;
	struct node_volume *volume;
	struct id128 id;
	struct snapshot_export *export; /* NULL: being opened */
	unsigned holds;
	bool closing;
	struct env_timer linger;
	struct finding *waiting;
};

/* A client's question for one by name. */
struct finding {
	struct exports *exports;
	struct finding *next;         /* all of them */
	struct finding *next_waiting; /* of an entry */
	struct block_lookup *lookup;  /* NULL: answered, for the server stops */
	struct node_volume *volume;
	char text[ID128_TEXT_BYTES + 1];
	struct snapshot_info found;
	unsigned tries;
	struct env_timer timer;
};

static void entry_closed(void *context)
{
	struct entry *entry = context, **link = &entry->exports->entries;
	struct exports *x = entry->exports;

	while (*link != entry)
		link = &(*link)->next;
	*link = entry->next;
	x->entry_count--;
	free(entry);
	exports_end(x);
}

static void entry_close(struct entry *entry)
{
	assert(!entry->holds && entry->export && !entry->closing);
	env_timer_stop(entry->exports->env, &entry->linger);
	entry->closing = true;
	snapshot_export_close(entry->export, entry_closed, entry);
}

static void linger_fire(struct env_timer *timer)
{
	entry_close(exports_of(timer, struct entry, linger));
}

static void entry_release(struct entry *entry)
{
	assert(entry->holds > 0);
	if (--entry->holds > 0)
		return;
	snapshot_export_keep(entry->export, false);
	if (entry->exports->stopping)
		entry_close(entry);
	else
		env_timer_start(entry->exports->env, &entry->linger, EXPORTS_LINGER_NS);
}

/* Which snapshot a device is of; NULL: of none. */
static struct entry *entry_of_block(const struct exports *x, const struct block *block)
{
	for (struct entry *e = x->entries; e; e = e->next)
		if (e->export && (snapshot_export_block(e->export, false) == block ||
				  snapshot_export_block(e->export, true) == block))
			return e;
	return NULL;
}

static void finding_end(struct finding *f, struct block *block, int error, const char *why)
{
	struct exports *x = f->exports;
	struct finding **link = &x->findings;
	struct block_lookup *lookup = f->lookup;

	while (*link != f)
		link = &(*link)->next;
	*link = f->next;
	env_timer_stop(x->env, &f->timer);
	free(f);
	if (lookup)
		lookup->done(lookup, block, error, why);
	exports_end(x);
}

__attribute__((format(printf, 3, 4))) static void finding_fail(struct finding *f, int error,
							       const char *format, ...)
{
	char why[384];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(why, sizeof(why), format, arguments);
	va_end(arguments);
	finding_end(f, NULL, error, why);
}

/* The entry is open. */
static void finding_give(struct finding *f, struct entry *entry)
{
	const bool latest = strcmp(f->text, "latest") == 0;

	if (!f->lookup) {
		finding_end(f, NULL, 0, "");
		return;
	}
	if (!snapshot_export_keep(entry->export, true)) {
		finding_fail(f, -ENOENT, "volume %s: the snapshot was deleted",
			     f->volume->config->name);
		return;
	}
	env_timer_stop(f->exports->env, &entry->linger);
	entry->holds++;
	finding_end(f, snapshot_export_block(entry->export, latest), 0, "");
}

static void entry_opened(void *context, struct snapshot_export *export, int error, const char *why)
{
	struct entry *entry = context;
	struct finding *f = entry->waiting;

	entry->waiting = NULL;
	entry->export = export;
	entry->holds++; /* until all that wait have theirs */
	while (f) {
		struct finding *next = f->next_waiting;

		if (error)
			finding_fail(f, error, "volume %s: %s", f->volume->config->name, why);
		else
			finding_give(f, entry);
		f = next;
	}
	if (!error) {
		entry_release(entry);
		return;
	}
	entry->holds = 0;
	entry_closed(entry);
}

/* Room for one more: of those that nobody has open, one may go. False: there is none. */
static bool make_room(struct exports *x)
{
	struct entry *idle = NULL;

	if (x->entry_count < EXPORTS_MAX)
		return true;
	for (struct entry *e = x->entries; e; e = e->next)
		if (!e->holds && e->export && !e->closing)
			idle = e; /* the one opened first is the last of them */
	if (idle)
		entry_close(idle);
	return idle != NULL;
}

static void finding_open(struct finding *f)
{
	struct exports *x = f->exports;
	struct entry *entry;

	for (entry = x->entries; entry; entry = entry->next) {
		if (entry->volume != f->volume || entry->closing ||
		    !id128_equal(&entry->id, &f->found.id))
			continue;
		if (entry->export) {
			finding_give(f, entry);
			return;
		}
		f->next_waiting = entry->waiting;
		entry->waiting = f;
		return;
	}
	if (!make_room(x)) {
		finding_fail(f, -EMFILE, "%u snapshots are open already", EXPORTS_MAX);
		return;
	}
	entry = calloc(1, sizeof(*entry));
	if (!entry) {
		finding_fail(f, -ENOMEM, "out of memory");
		return;
	}
	*entry = (struct entry){.exports = x,
				.next = x->entries,
				.volume = f->volume,
				.id = f->found.id,
				.waiting = f};
	entry->linger.fire = linger_fire;
	x->entries = entry;
	x->entry_count++;
	exports_begin(x);
	snapshot_export_open(f->volume->repo, f->volume->config->name, &f->found, entry_opened,
			     entry);
}

static void finding_found(void *context, const struct snapshot_info *found, int error,
			  const char *why)
{
	struct finding *f = context;

	if (error || !f->lookup) {
		finding_fail(f, error, "volume %s: %s", f->volume->config->name, why);
		return;
	}
	f->found = *found;
	finding_open(f);
}

/* By its whole id, one that is open needs no look at the store. */
static bool finding_is_open(struct finding *f)
{
	for (struct entry *e = f->exports->entries; e; e = e->next) {
		char id[ID128_TEXT_BYTES];

		id128_format(&e->id, id);
		if (e->volume != f->volume || e->closing || !e->export ||
		    strcmp(id, f->text) != 0 || !snapshot_export_keep(e->export, true))
			continue;
		finding_give(f, e);
		return true;
	}
	return false;
}

static void finding_start(struct finding *f)
{
	struct node_volume *v = f->volume;

	if (finding_is_open(f))
		return;
	if (v->repo)
		snapshot_find(v->repo, f->text, finding_found, f);
	else if (v->store_opening && f->tries++ < RETRIES_MAX)
		env_timer_start(f->exports->env, &f->timer, RETRY_NS);
	else
		finding_fail(f, -ENODEV, "volume %s: %s", v->config->name, node_store_why(v));
}

static void finding_again(struct env_timer *timer)
{
	finding_start(exports_of(timer, struct finding, timer));
}

/* The volume of VOLUME@SNAPSHOT; "" is the only one there is. */
static struct node_volume *named_volume(struct node *node, const char *name, size_t length)
{
	char text[256];

	if (length == 0)
		return node_volume_count(node) == 1 ? node_volume(node, 0) : NULL;
	if (length >= sizeof(text))
		return NULL;
	memcpy(text, name, length);
	text[length] = '\0';
	return node_find(node, text);
}

void exports_look_up(struct exports *x, const char *name, struct block_lookup *lookup)
{
	const char *at = strrchr(name, '@');
	struct node_volume *volume = at ? named_volume(x->node, name, (size_t)(at - name)) : NULL;
	struct finding *f;

	if (x->stopping) {
		lookup->done(lookup, NULL, -ESHUTDOWN, "the server is stopping");
		return;
	}
	if (!volume || !volume->volume || at[1] == '\0') {
		lookup->done(lookup, NULL, -ENOENT, "no such export");
		return;
	}
	f = calloc(1, sizeof(*f));
	if (!f) {
		lookup->done(lookup, NULL, -ENOMEM, "out of memory");
		return;
	}
	f->exports = x;
	f->lookup = lookup;
	f->volume = volume;
	/* What is longer than an id stays longer, and is none. */
	strncpy(f->text, at + 1, sizeof(f->text) - 1);
	f->timer.fire = finding_again;
	f->next = x->findings;
	x->findings = f;
	exports_begin(x);
	finding_start(f);
}

void exports_release(struct exports *x, struct block *block)
{
	struct entry *entry = entry_of_block(x, block);

	assert(entry);
	entry_release(entry);
}

bool exports_device(const struct exports *x, const struct block *block, struct node_volume **volume,
		    struct id128 *snapshot)
{
	const struct entry *entry = entry_of_block(x, block);

	*snapshot = entry ? entry->id : (struct id128){.bytes = {0}};
	if (entry) {
		*volume = entry->volume;
		return true;
	}
	for (unsigned i = 0; i < node_volume_count(x->node); i++) {
		*volume = node_volume(x->node, i);
		if ((*volume)->volume && volume_block((*volume)->volume) == block)
			return true;
	}
	return false;
}

unsigned exports_snapshots(const struct node_volume *volume, struct exports_snapshot *list,
			   unsigned max)
{
	const struct exports *x = node_exports(volume->node);
	unsigned count = 0;

	for (const struct entry *e = x->entries; e; e = e->next) {
		if (e->volume != volume || !e->export || e->closing)
			continue;
		if (count < max)
			list[count] = (struct exports_snapshot){
				.id = e->id,
				.created_ns = snapshot_export_info(e->export)->created_ns,
				.clients = snapshot_export_clients(e->export),
			};
		count++;
	}
	return count;
}

/* The index-th open volume that there may be a snapshot of; NULL: there are no more. */
static struct node_volume *listed_volume(const struct exports *x, unsigned *index, bool snapshots)
{
	for (unsigned i = 0; i < node_volume_count(x->node); i++) {
		struct node_volume *v = node_volume(x->node, i);
		struct volume_state state;

		if (!v->volume)
			continue;
		volume_get_state(v->volume, &state);
		if (snapshots && (!v->repo || id128_is_zero(&state.snapshot)))
			continue;
		if (*index == 0)
			return v;
		--*index;
	}
	return NULL;
}

struct block *exports_list(struct exports *x, unsigned index)
{
	struct node_volume *v = listed_volume(x, &index, false);

	if (v)
		return volume_block(v->volume);
	v = listed_volume(x, &index, true);
	if (!v)
		return NULL;
	snprintf(x->listed_name, sizeof(x->listed_name), "%s@latest", v->config->name);
	x->listed = (struct block){NULL, x->listed_name, "the newest snapshot, read-only"};
	return &x->listed;
}

void exports_stop(struct exports *x)
{
	struct finding *f, *next_finding;
	struct entry *entry, *next;

	x->stopping = true;
	for (f = x->findings; f; f = next_finding) {
		struct block_lookup *lookup = f->lookup;

		next_finding = f->next;
		f->lookup = NULL;
		if (env_timer_active(&f->timer))
			finding_end(f, NULL, 0, "");
		if (lookup)
			lookup->done(lookup, NULL, -ESHUTDOWN, "the server is stopping");
	}
	exports_stop_maps(x);
	for (entry = x->entries; entry; entry = next) {
		next = entry->next;
		if (!entry->export || entry->closing)
			continue;
		snapshot_export_stop(entry->export);
		if (!entry->holds)
			entry_close(entry);
	}
}
