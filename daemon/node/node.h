/* SPDX-License-Identifier: Apache-2.0 */
/*
 * node: the volumes of one daemon, each with its replication and its snapshots, wired together
 * from a config. main, the control API and the simulator all drive this and nothing below it.
 * Everything on the loop thread.
 */
#ifndef OFFSITE_NODE_H
#define OFFSITE_NODE_H

#include "daemon/config.h"
#include "daemon/replication/replication.h"
#include "daemon/snapshot/snapshot.h"
#include "daemon/store/crypt.h"
#include "daemon/volume/volume.h"
#include "protocol/proof.h"

struct node;

/* What others read of a volume, and the state of the modules that work on it, each in a structure of its own. */
struct node_volume {
	struct node *node;
	const struct config_volume *config;
	struct volume *volume; /* NULL: could not be opened; see error */
	char error[256];       /* why volume is NULL, else "" */

	struct peering *peering;
	struct replication *replication; /* NULL: neither peer nor peer-listen */

	struct storage *storage;
	struct store *store;   /* NULL: no store, or not open (yet) */
	bool store_opening;    /* a helper thread is at it */
	char store_error[256]; /* why store is NULL though configured; "" when open, and at first */
	struct snapshot_repo *repo;
	struct snapshot_writer *writer;

	struct schedule *schedule; /* snapshot-every */
	struct moment *moment;     /* what is done around a snapshot's cut */
	unsigned
		command_failures; /* of snapshot-before-command, snapshot-after-command since start */
	char command_failure[400]; /* the last of them, else "" */

	struct proof *proof_state; /* whether snapshots can be restored: proof.h */
	struct proof_record proof; /* what is known of that; tried_ns 0: nothing */
	bool proving;              /* it is being found out */

	struct node_job *job; /* who is told when busy is over */
	const char *busy;     /* a long job has the volume: "restore"; NULL: none */

	struct promotion *promotion; /* one waits for its fence; NULL: none */
	unsigned losses;             /* promotions by force since start that gave something up */
	char lost[320];              /* what the last of them gave up, else "" */

	struct instant *instant;   /* a restore used before it is whole; NULL: none */
	char instant_trouble[256]; /* why it does not go on, as of the last try, else "" */

	struct resolve *resolve; /* under way: the end of a split brain; NULL: none */
	char kept[512];          /* where the last resolve kept what was given up, else "" */

	struct replacement *replacement; /* of its disk, waiting; NULL: none */
};

/* Why the volume has no store to work with. */
static inline const char *node_store_why(const struct node_volume *volume)
{
	if (!volume->config->store)
		return "no store is configured";
	return volume->store_error[0] ? volume->store_error : "the store is not open yet";
}

/* Opens all volumes and starts replication and schedules; stores are opened beside, as one that
 * hangs must not keep a volume from its clients. The config stays the caller's and outlives the
 * node. A volume that cannot be opened is left out with its reason, the others run;
 * -errno only if the node itself cannot (state directory, peer-listen, keys). */
int node_start(struct env *env, const struct config *config, struct node **node, char *why,
	       size_t why_size);
/* What is under way in the stores ends soon, with an error where it would have taken long, and nothing new is
 * begun there: so that a service that is away holds up nobody who is to stop. */
void node_stop_stores(struct node *node);
/* Stops everything in order, cleanly, then calls stopped(), from inside the call or later. True: a restore
 * under way is abandoned; it may still use its volume, the node and the environment, none of which may
 * be freed any more: all that is left to do after stopped() is to end the process. */
bool node_stop(struct node *node, void (*stopped)(void *context), void *context);

/* For what a stop waits for. */
bool node_is_stopping(const struct node_volume *volume);
/* The volume's stop looks again at what is under way; nothing happens if the node does not stop. The node may be gone
 * when it returns. */
void node_stop_go_on(struct node_volume *volume);

/* The store was asked: when its newest snapshot was taken (since 1970; 0: there is none). The first one of this
 * run is due an interval after that (0, or in the future: in some minutes), not after the daemon's start. */
void node_saw_snapshot(struct node_volume *volume, uint64_t created_ns);

struct env *node_env(struct node *node);
const struct config *node_config(struct node *node);
unsigned node_volume_count(struct node *node);
struct node_volume *node_volume(struct node *node, unsigned index);
struct node_volume *node_find(struct node *node, const char *name); /* NULL: none */
/* Snapshots and maps for the NBD server: exports.h. */
struct exports *node_exports(struct node *node);
/* The exports for the NBD server: the volume's block of that name ("" is the only volume there is). */
struct block *node_find_block(void *node, const char *export_name);
/* peer-listen's real address, or NULL. */
const char *node_peer_addr(struct node *node);

/* Changes options of a running volume by their names in the config, all or none, until the next start.
 * -EINVAL and why. */
struct node_option {
	const char *name, *value;
};
int node_set_options(struct node_volume *volume, const struct node_option *options, unsigned count,
		     char *why, size_t why_size);

typedef void (*node_done_fn)(void *context, int error, const char *why);

/* Makes the volume primary here. Refused (-EPERM and why) while the connected peer is primary; while
 * something of the peer's would or might be lost, which is named (replication_get_loss()); and with an
 * INCONSISTENT or FAILED disk. force overrides the second only; what is lost is then logged, and in
 * volume->lost. -EAGAIN while staged data is being applied: try again a little later. Durable before it
 * returns. No fence. */
int node_promote(struct node_volume *volume, bool force, char *why, size_t why_size);
enum node_promote_flags {
	NODE_FORCE = 1,
	NODE_NO_FENCE = 2,
};
/* As node_promote(). A connected primary that gives no sign of life in 1.5 s counts as lost. Before, if the peer is not connected, the configured fence-command runs and has to
 * succeed. done may be called from inside. */
void node_promote_start(struct node_volume *volume, unsigned flags, node_done_fn done,
			void *context);
/* Promotions that wait for their fence are refused soon. */
void node_cancel_fences(struct node *node);
/* Makes it secondary. -EBUSY while clients have it open or a job runs on it; -EAGAIN while the peer
 * has not yet acknowledged everything: the caller tries again a little later. */
int node_demote(struct node_volume *volume, char *why, size_t why_size);

/* Restores a snapshot (NULL: newest) in place. The volume must be primary or stand-alone and have
 * no clients; afterwards the peer catches up. */
void node_restore_snapshot(struct node_volume *volume, const struct id128 *id,
			   void (*progress)(void *context, const struct snapshot_progress *p),
			   node_done_fn done, void *context);
/* The same, but done as soon as clients can use the volume; the rest is fetched behind, over restarts, at
 * hydrate-rate. Until all of it is here the peer is kept away and no snapshot is taken; the one that is
 * fetched is pinned in the store. volume_uuid: whose snapshot it is, if another's than the volume's own
 * (zero: its own); a volume that nobody wrote to becomes that one. */
void node_restore_instant(struct node_volume *volume, const struct id128 *volume_uuid,
			  const struct id128 *id, node_done_fn done, void *context);
/* Why what is missing cannot be read now; "": it can, or nothing is. */
const char *node_instant_trouble(const struct node_volume *volume);
/* Restores a snapshot (NULL: newest) to proof-dir, lets proof-command look at it, and removes it. What came
 * of it is in volume->proof. -EBUSY: one is under way. */
void node_prove(struct node_volume *volume, const struct id128 *id,
		void (*progress)(void *context, const struct snapshot_progress *p),
		node_done_fn done, void *context);
/* Reverse sync: everything from the peer. When it is done and the peer is not primary, the volume
 * takes its configured role again. */
void node_restore_from_peer(struct node_volume *volume, node_done_fn done, void *context);

/* What the end of a split brain would mean. */
struct node_resolve_plan {
	bool here;         /* it is this node that gives its changes up */
	const char *loser; /* the node that does */
	bool full;         /* the maps do not say what differs: everything crosses the wire */
	struct replication_changes discarded;
	uint64_t transfer_bytes; /* at most; what both changed */
	const char *kept; /* before: "snapshot" in the store, "file" in state-dir, "nothing" */
};
/* -EPERM: no split brain; -EINVAL: keep names neither of both nodes. The plan is good for this turn. */
int node_resolve_plan(struct node_volume *volume, const char *keep, bool no_keep,
		      struct node_resolve_plan *plan, char *why, size_t why_size);
/* Ends the split brain: keep names the node whose content counts, and has to be the peer; what this node
 * changed is kept, then given up. Makes the volume secondary; refused while clients have it open. done
 * when the peer's content is here. */
void node_resolve(struct node_volume *volume, const char *keep, bool no_keep, node_done_fn done,
		  void *context);

/* A failed disk was replaced (same path): its content comes from the peer. A secondary as
 * node_restore_from_peer(); done when it is in sync. A primary whose disk failed goes on through its peer;
 * done when the new disk is being filled, which goes on by itself. */
void node_replace_disk(struct node_volume *volume, node_done_fn done, void *context);

/* Makes the volume bigger, with a peer there first: replication_resize(). Without one at once. */
void node_resize(struct node_volume *volume, uint64_t size_bytes, bool force, node_done_fn done,
		 void *context);

void node_check(struct node *node); /* invariants of all modules */

/* What opens the store of a volume, if it is encrypted. */
static inline struct secret_source node_store_secret(const struct config_volume *config)
{
	return (struct secret_source){config->store_passphrase_file, config->store_key_file,
				      config->store_key_command};
}

/* Which of a volume's snapshots stay, and are locked on. */
static inline struct retention_policy node_policy(const struct config_volume *config)
{
	return (struct retention_policy){
		.last = config->keep_last,
		.hourly = config->keep_hourly,
		.daily = config->keep_daily,
		.weekly = config->keep_weekly,
		.monthly = config->keep_monthly,
		.yearly = config->keep_yearly,
		.within_ns = config->keep_within_ns,
		.locks = config->lock != 0,
		.lock_for_ns = config->lock ? config->lock_for_ns : 0,
		.every_ns = config->snapshot_every_ns,
	};
}

#endif
