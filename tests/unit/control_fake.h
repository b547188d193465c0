/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control_fake: a node with two volumes that does what a test says. Defines every function of the
 * modules below that control uses, so that none of them is linked: control alone is under test.
 * "pgdata" is open, replicated and stored; "broken" could not be opened.
 */
#ifndef OFFSITE_TESTS_CONTROL_FAKE_H
#define OFFSITE_TESTS_CONTROL_FAKE_H

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/node/node.h"
#include "daemon/snapshot/diff.h"
#include "nbd-server/attach.h"
#include "nbd-server/nbd_server.h"

typedef void (*fake_result_fn)(void *context, const struct snapshot_result *result);

struct node {
	struct env *env;
	struct config config;
	struct config_volume configs[2];
	struct node_volume volumes[2];
	struct volume_state state;
	struct volume_stats stats;
	struct replication_status replication;
	struct replication_loss loss;
	struct verify_status verify;
	char repair_from[64];
	int diff_error;
	int diffs_open;
	uint64_t verify_rate;
	char options[128]; /* of the last set */
	struct snapshot_writer_status writer;
	struct snapshot_info snapshots[3];
	unsigned snapshot_count;
	/* What is under way: a test ends it. */
	fake_result_fn pending;
	void *pending_context;
	uint64_t saw_created_ns; /* node_saw_snapshot() */
	node_done_fn pending_node;
	void *pending_node_context;
	void (*pending_progress)(void *context, const struct snapshot_progress *progress);
	uint64_t resized_bytes;
	bool resize_force;
	int verb_error; /* of promote, demote, connect, disconnect */
	bool split;     /* brain */
	char keep[96];
	bool forced, unfenced;
	char label[64];
	unsigned sample_percent;
	struct id128 asked;
	unsigned verify_bad;
	unsigned stores_open;
	/* A listing ends in a later turn, as the contract says. */
	struct env_task listing_task;
	void (*listing_each)(void *context, const struct snapshot_info *info);
	fake_result_fn listing_done;
	void *listing_context;
	bool hold_listing;
	/* attached: one export at most */
	char attached[64];
	int attach_index, attach_error;
	bool detach_force;
	unsigned grown;
};

/* Handles are never looked into by control: the fake's address stands for all of them. */
extern struct node fake;

static void fake_init(struct env *env)
{
	struct node_volume *volume = &fake.volumes[0];

	fake = (struct node){.env = env};
	fake.config.path = (char *)"/etc/offsite.conf";
	fake.config.node.name = (char *)"alpha";
	fake.configs[0] = (struct config_volume){.name = (char *)"pgdata",
						 .backing = (char *)"/srv/pg.img",
						 .store = (char *)"file:/store",
						 .protocol = 'C'};
	fake.configs[1] =
		(struct config_volume){.name = (char *)"broken", .backing = (char *)"/dev/none"};
	fake.config.volumes = fake.configs;
	fake.config.volume_count = 2;
	*volume = (struct node_volume){.node = &fake,
				       .config = &fake.configs[0],
				       .volume = (struct volume *)&fake,
				       .replication = (struct replication *)&fake,
				       .store = (struct store *)&fake,
				       .repo = (struct snapshot_repo *)&fake,
				       .writer = (struct snapshot_writer *)&fake};
	fake.volumes[1] = (struct node_volume){.node = &fake, .config = &fake.configs[1]};
	strcpy(fake.volumes[1].error, "/dev/none: no such device");
	memset(&fake.state.uuid, 0x11, sizeof(fake.state.uuid));
	fake.state.role = VOLUME_PRIMARY;
	fake.snapshot_count = 2;
	for (unsigned i = 0; i < 3; i++) {
		memset(&fake.snapshots[i].id, 0xa0 + (int)i, sizeof(struct id128));
		fake.snapshots[i].sequence = i + 1;
		fake.snapshots[i].volume = fake.state.uuid;
		fake.snapshots[i].created_ns = (1700000000ull + i) * 1000000000ull;
	}
}

/* ---- the modules' functions ------------------------------------------------------------------ */

void node_saw_snapshot(struct node_volume *volume, uint64_t created_ns)
{
	fake.saw_created_ns = created_ns;
}
struct env *node_env(struct node *node)
{
	return node->env;
}
const struct config *node_config(struct node *node)
{
	return &node->config;
}
unsigned node_volume_count(struct node *node)
{
	return 2;
}
struct node_volume *node_volume(struct node *node, unsigned index)
{
	return &node->volumes[index];
}
struct node_volume *node_find(struct node *node, const char *name)
{
	for (unsigned i = 0; i < 2; i++)
		if (!strcmp(node->configs[i].name, name))
			return &node->volumes[i];
	return NULL;
}
const char *node_peer_addr(struct node *node)
{
	return "tcp:127.0.0.1:7788";
}

void attach_export(struct attach *attach, const char *name, int index, attach_done_fn done,
		   void *context)
{
	fake.attach_index = index;
	if (!fake.attach_error)
		snprintf(fake.attached, sizeof(fake.attached), "%s", name);
	done(context, fake.attach_error, fake.attach_error ? "no, because" : "",
	     fake.attach_error ? "" : "/dev/nbd7");
}
void attach_detach(struct attach *attach, const char *name, bool force, attach_done_fn done,
		   void *context)
{
	fake.detach_force = force;
	if (!fake.attach_error)
		fake.attached[0] = 0;
	done(context, fake.attach_error, fake.attach_error ? "no, because" : "", "/dev/nbd7");
}
bool attach_get(const struct attach *attach, unsigned index, struct attach_info *info)
{
	*info = (struct attach_info){.name = fake.attached,
				     .device = "/dev/nbd7",
				     .state = ATTACH_WAITING,
				     .size_bytes = 1 << 30,
				     .connections = 2,
				     .alive = 1,
				     .reconnects = 3,
				     .wanted = true,
				     .why = "volume pgdata is secondary"};
	return fake.attached[0] && index == 0;
}
const char *attach_device(const struct attach *attach, const char *name)
{
	return fake.attached[0] && !strcmp(fake.attached, name) ? "/dev/nbd7" : NULL;
}
void attach_resized(struct attach *attach, const char *name, attach_done_fn done, void *context)
{
	fake.grown++;
	done(context, 0, "", "");
}
const char *attach_state_name(enum attach_state state)
{
	return state == ATTACH_WAITING ? "waiting" : "?";
}
static int fake_verb(char *why, size_t why_size)
{
	if (fake.verb_error)
		snprintf(why, why_size, "volume pgdata: no, because");
	return fake.verb_error;
}
void node_promote_start(struct node_volume *volume, unsigned flags, node_done_fn done,
			void *context)
{
	char why[256] = "";

	fake.forced = flags & NODE_FORCE;
	fake.unfenced = flags & NODE_NO_FENCE;
	int error = fake_verb(why, sizeof(why));
	done(context, error, why);
}
void node_cancel_fences(struct node *node)
{
}
unsigned volume_suspended(const struct volume *volume)
{
	return 0;
}
void volume_fail_held(struct volume *volume, int error)
{
}
struct block *volume_block(struct volume *volume)
{
	return NULL;
}
void nbd_server_drop(struct nbd_server *server, struct block *block)
{
}
void nbd_server_clients(const struct nbd_server *server, const struct block *block, char *text,
			size_t size)
{
	text[0] = 0;
}
void node_resize(struct node_volume *volume, uint64_t size_bytes, bool force, node_done_fn done,
		 void *context)
{
	fake.resized_bytes = size_bytes;
	fake.resize_force = force;
	done(context, fake.verb_error, fake.verb_error ? "volume pgdata: refused" : "");
}

int node_demote(struct node_volume *volume, char *why, size_t why_size)
{
	return fake_verb(why, why_size);
}
int node_set_options(struct node_volume *volume, const struct node_option *options, unsigned count,
		     char *why, size_t why_size)
{
	fake.options[0] = 0;
	for (unsigned i = 0; i < count; i++)
		snprintf(fake.options + strlen(fake.options),
			 sizeof(fake.options) - strlen(fake.options), "%s=%s;", options[i].name,
			 options[i].value);
	return fake_verb(why, why_size);
}
int replication_connect(struct replication *replication, char *why, size_t why_size)
{
	return fake_verb(why, why_size);
}
void replication_plan(struct replication *replication,
		      void (*done)(void *context, int error, const char *why,
				   const struct replication_plan *plan),
		      void *context)
{
	char why[256] = "";
	struct replication_plan plan = {.peer_name = "beta",
					.decision = "catch-up to the peer",
					.direction = REPLICATION_TO_PEER,
					.bytes = 1 << 20,
					.rate_bytes = 1 << 19};

	int error = fake_verb(why, sizeof(why));
	done(context, error, why, error ? NULL : &plan);
}
int replication_resume(struct replication *replication, char *why, size_t why_size)
{
	return fake_verb(why, why_size);
}
int replication_disconnect(struct replication *replication, char *why, size_t why_size)
{
	return fake_verb(why, why_size);
}
int replication_verify(struct replication *replication, const char *repair_from, uint64_t rate,
		       char *why, size_t why_size)
{
	snprintf(fake.repair_from, sizeof(fake.repair_from), "%s", repair_from ? repair_from : "");
	fake.verify_rate = rate;
	fake.verify.record.state = VERIFY_RUNNING;
	return fake_verb(why, why_size);
}
int replication_verify_cancel(struct replication *replication, char *why, size_t why_size)
{
	fake.verify.record.state = VERIFY_CANCELLED;
	return fake_verb(why, why_size);
}
void replication_get_verify(const struct replication *replication, struct verify_status *status)
{
	*status = fake.verify;
}
void node_restore_snapshot(struct node_volume *volume, const struct id128 *id,
			   void (*progress)(void *context, const struct snapshot_progress *p),
			   node_done_fn done, void *context)
{
	fake.asked = id ? *id : (struct id128){{0}};
	fake.pending_progress = progress;
	fake.pending_node = done;
	fake.pending_node_context = context;
}
void node_prove(struct node_volume *volume, const struct id128 *id,
		void (*progress)(void *context, const struct snapshot_progress *p),
		node_done_fn done, void *context)
{
	node_restore_snapshot(volume, id, progress, done, context);
}
void node_restore_from_peer(struct node_volume *volume, node_done_fn done, void *context)
{
	done(context, -EPERM, "volume pgdata: the peer is not connected"); /* at once */
}
/* Split brain with beta, which changed 8 KiB, while 4 KiB were changed here. */
static const struct split_record fake_split = {.since_ns = 1700000000000000000,
					       .peer_bytes = 8192,
					       .peer_extents = 1,
					       .flags = SPLIT_NEAR | SPLIT_PEER_KNOWN,
					       .listed = 1,
					       .node = "beta",
					       .extents = {{65536, 8192}}};
const struct split_record *replication_get_split(const struct replication *replication)
{
	return fake.split ? &fake_split : NULL;
}
void replication_get_changes(const struct replication *replication,
			     struct replication_changes *changes)
{
	*changes = (struct replication_changes){
		.bytes = 4096, .count = 1, .listed = 1, .extents = {{4096, 4096}}};
}
int node_resolve_plan(struct node_volume *volume, const char *keep, bool no_keep,
		      struct node_resolve_plan *plan, char *why, size_t why_size)
{
	*plan = (struct node_resolve_plan){.here = true,
					   .loser = "alpha",
					   .transfer_bytes = 12288,
					   .kept = no_keep ? "nothing" : "file"};
	replication_get_changes(NULL, &plan->discarded);
	return fake_verb(why, why_size);
}
void node_replace_disk(struct node_volume *volume, node_done_fn done, void *context)
{
	char why[256] = "";
	int error = fake_verb(why, sizeof(why));

	done(context, error, why);
}
void node_resolve(struct node_volume *volume, const char *keep, bool no_keep, node_done_fn done,
		  void *context)
{
	snprintf(fake.keep, sizeof(fake.keep), "%s%s", keep, no_keep ? " without a copy" : "");
	done(context, 0, "");
}
void replication_get_status(const struct replication *replication,
			    struct replication_status *status)
{
	*status = fake.replication;
}
void replication_get_loss(struct replication *replication, struct replication_loss *loss)
{
	*loss = fake.loss;
}
void replication_loss_text(const struct replication_loss *loss, char *text, size_t size)
{
	snprintf(text, size, "%s", "41 s");
}
const char *replication_state_name(enum replication_state state)
{
	static const char *const names[] = {"standalone", "connecting", "handshake",
					    "idle",       "catch-up",   "streaming"};

	return names[state];
}
void snapshot_create(struct snapshot_writer *writer, const char *label, fake_result_fn done,
		     void *context)
{
	snprintf(fake.label, sizeof(fake.label), "%s", label);
	fake.pending = done;
	fake.pending_context = context;
}
void snapshot_delete(struct snapshot_repo *repo, const struct id128 *id, fake_result_fn done,
		     void *context)
{
	fake.asked = *id;
	fake.pending = done;
	fake.pending_context = context;
}
void snapshot_verify(struct snapshot_repo *repo, const struct id128 *id, unsigned sample_percent,
		     void (*bad)(void *context, const char *object, const char *why,
				 const struct snapshot_info *hit),
		     void (*progress)(void *context, const struct snapshot_progress *progress),
		     fake_result_fn done, void *context)
{
	fake.sample_percent = sample_percent;
	for (unsigned i = 0; i < fake.verify_bad; i++)
		bad(context, "packs/1", "checksum", &fake.snapshots[0]);
	fake.pending = done;
	fake.pending_context = context;
}
static void fake_listing(struct env_task *task)
{
	struct snapshot_result result = {0};

	for (unsigned i = 0; i < fake.snapshot_count; i++)
		fake.listing_each(fake.listing_context, &fake.snapshots[i]);
	fake.listing_done(fake.listing_context, &result);
}
void snapshot_list(struct snapshot_repo *repo,
		   void (*each)(void *context, const struct snapshot_info *info),
		   void (*damaged)(void *context, const char *object, const char *why),
		   fake_result_fn done, void *context)
{
	fake.listing_each = each;
	fake.listing_done = done;
	fake.listing_context = context;
	fake.listing_task.call = fake_listing;
	if (!fake.hold_listing)
		env_defer(fake.env, &fake.listing_task);
}
/* Every second chunk differs, the odd ones of those are zero. */
void snapshot_find(struct snapshot_repo *repo, const char *text,
		   void (*done)(void *context, const struct snapshot_info *found, int error,
				const char *why),
		   void *context)
{
	unsigned i = strcmp(text, "latest") == 0 ? 1 : 0;
	bool known = i || !strncmp(text, "a0", 2) || !strncmp(text, "a1", 2);

	if (!strncmp(text, "a1", 2))
		i = 1;
	done(context, known ? &fake.snapshots[i] : NULL, known ? 0 : -ENOENT,
	     known ? "" : "there is none whose id begins so");
}
bool snapshot_diff_knows(const struct volume *volume)
{
	return !id128_is_zero(&fake.state.snapshot);
}
static struct snapshot_diff_ends fake_ends;
void snapshot_diff_open(struct snapshot_repo *repo, const struct id128 *from,
			const struct id128 *to, struct volume *volume,
			void (*done)(void *context, struct snapshot_diff *diff, int error,
				     const char *why),
			void *context)
{
	fake_ends =
		(struct snapshot_diff_ends){.from = fake.snapshots[0], .size_bytes = 4ull << 30};
	fake_ends.from.id = *from;
	if (to)
		fake_ends.to.id = *to;
	fake.diffs_open++;
	done(context, (struct snapshot_diff *)&fake, 0, "");
}
void snapshot_diff_close(struct snapshot_diff *diff, void (*closed)(void *context), void *context)
{
	fake.diffs_open--;
	closed(context);
}
const struct snapshot_diff_ends *snapshot_diff_ends(const struct snapshot_diff *diff)
{
	return &fake_ends;
}
void snapshot_diff_ask(struct snapshot_diff *diff, struct snapshot_diff_ask *ask)
{
	uint64_t at = ask->offset_bytes, end = at + ask->length_bytes;

	if (fake.diff_error) {
		ask->done(ask, fake.diff_error, "maps/1: damaged");
		return;
	}
	for (ask->count = 0; ask->count < ask->max && at < end; at += 65536)
		ask->extents[ask->count++] = (struct snapshot_extent){
			at, 65536, at / 65536 % 2 == 0, at / 65536 % 4 == 0};
	ask->done(ask, 0, "");
}
struct snapshot_repo *snapshot_repo_new(struct store *store, const struct id128 *volume)
{
	return (struct snapshot_repo *)&fake;
}
void snapshot_repo_free(struct snapshot_repo *repo)
{
}
void snapshot_writer_status(const struct snapshot_writer *writer,
			    struct snapshot_writer_status *status)
{
	*status = fake.writer;
}
int store_open(struct env *env, const char *url, struct store **store, char *why, size_t why_size)
{
	fake.stores_open++;
	*store = (struct store *)&fake;
	return 0;
}
void store_stop(struct store *store)
{
}
void store_counts(struct store *store, struct store_counts *counts)
{
	*counts = (struct store_counts){.puts = store ? 17 : 0};
}
void store_close(struct store *store)
{
	fake.stores_open--;
}
const char *store_strerror(int error)
{
	return "store error";
}
uint64_t volume_dirty_bytes(const struct volume *volume, enum volume_consumer consumer)
{
	return consumer == VOLUME_PEER ? 4096 : 65536;
}
const char *volume_disk_state_name(enum volume_disk_state state)
{
	static const char *const names[] = {"uptodate", "outdated", "inconsistent", "failed"};

	return names[state];
}
const char *volume_role_name(enum volume_role role)
{
	return role == VOLUME_PRIMARY ? "primary" : "secondary";
}
void volume_get_state(const struct volume *volume, struct volume_state *state)
{
	*state = fake.state;
}
void volume_get_stats(const struct volume *volume, struct volume_stats *stats)
{
	*stats = fake.stats;
}
bool volume_source(const struct volume *volume, struct volume_source *source)
{
	return false;
}

void snapshot_volumes(struct store *store,
		      void (*each)(void *context, const struct snapshot_info *newest),
		      void (*damaged)(void *context, const char *object, const char *why),
		      void (*done)(void *context, const struct snapshot_result *result),
		      void *context)
{
	const struct snapshot_result result = {.error = 0};

	done(context, &result);
}
unsigned exports_snapshots(const struct node_volume *volume, struct exports_snapshot *list,
			   unsigned max)
{
	return 0;
}
const char *node_instant_trouble(const struct node_volume *volume)
{
	return "";
}

void node_restore_instant(struct node_volume *volume, const struct id128 *volume_uuid,
			  const struct id128 *id, node_done_fn done, void *context)
{
	done(context, -ENODEV, "not in this test");
}

bool volume_leans(const struct volume *volume)
{
	return false;
}
const char *volume_kept_copy(const struct volume *volume)
{
	(void)volume;
	return NULL;
}

const char *volume_failure(const struct volume *volume)
{
	return "";
}
bool volume_is_snapshot_but(const struct volume *volume, const struct id128 *uuid,
			    const struct id128 *snapshot)
{
	return false;
}
bool volume_dirty_next(const struct volume *volume, enum volume_consumer consumer, uint64_t offset,
		       uint64_t *start, uint64_t *length)
{
	return false;
}
uint64_t volume_size_bytes(const struct volume *volume)
{
	return 1ull << 30;
}
const char *nbd_server_addr(struct nbd_server *server, unsigned index)
{
	return index ? NULL : "tcp:127.0.0.1:10809";
}
void nbd_server_get_stats(const struct nbd_server *server, struct nbd_server_stats *stats)
{
	*stats = (struct nbd_server_stats){.connections = 1, .connections_max = 64};
}

#endif
