/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replication: keeps a volume and its peer the same.
 *
 * One link (TCP connection, optionally TLS) per volume. On each connection both sides say who they
 * are (HELLO), one table decides who is the source of what (decide.h), and then one side is the
 * source and the other the sink:
 *   source: taps the volume's write order and streams it, or catches up cut by cut;
 *   sink: applies the stream in order, stages the cuts beside the volume and applies each whole.
 * Frames: protocol/replication.h and protocol/replication.md.
 */
#ifndef OFFSITE_REPLICATION_H
#define OFFSITE_REPLICATION_H

#include "daemon/io/stream.h"
#include "daemon/replication/pace.h"
#include "daemon/volume/volume.h"
#include "protocol/verify.h"
#include "protocol/replication.h"
#include "protocol/split.h"

struct replication;

enum replication_protocol { REPLICATION_A, REPLICATION_B, REPLICATION_C };

/*
 *  state        meaning
 *  STANDALONE   not trying (disconnected by the operator, or refused: see status.refusal)
 *  CONNECTING   no connection; trying with backoff and listening
 *  HANDSHAKE    connected; proving keys, exchanging state, deciding
 *  IDLE         connected; neither side has anything to send (both secondary)
 *  CATCH_UP     source or sink of cuts; the target is as of the last applied cut
 *  STREAMING    in sync: every write is sent as it is issued
 */
enum replication_state {
	REPLICATION_STANDALONE,
	REPLICATION_CONNECTING,
	REPLICATION_HANDSHAKE,
	REPLICATION_IDLE,
	REPLICATION_CATCH_UP,
	REPLICATION_STREAMING,
};
const char *replication_state_name(enum replication_state state);

struct replication_config {
	const char *node_name; /* this node; differs from the peer's */
	const char *peer_addr; /* NULL: only accept */
	enum replication_protocol protocol;
	struct tls_context *tls_client; /* NULL: plaintext */
	const char *peer_cert_name;     /* accept only a certificate for it; NULL: any */
	uint64_t staging_max_bytes;     /* 0: by the size of the volume (staging.h) */
	uint64_t send_queue_max_bytes;  /* 0: 32 MiB; full: writers wait */
	uint64_t final_cut_max_bytes;   /* a round so small is one cut at once. 0: 64 MiB */
	uint64_t verify_rate;           /* bytes read a second, unless told otherwise; 0: any */
	unsigned ping_interval_ms;      /* 0: 5000 */
	unsigned peer_timeout_ms;       /* no frame for so long: link is dead. 0: 15000 */
	bool suspend_on_loss;           /* clients wait while a peer that followed does not */
	unsigned connect_retry_max_ms;  /* backoff's upper end. 0: 5000 */
	struct pace_options pace;       /* max-lag, rates */
	unsigned start_wait_ms; /* a primary that starts holds requests until it knows its peer, for
				 * so long at most; 0: not at all */
	/* Whether this primary, clients aside, may step down now: no job is at work on it. NULL: it
	 * never steps down by itself. */
	bool (*vacant)(void *context);
	void *vacant_context;
	enum hello_after_sb_0pri after_sb_0pri;
	enum hello_after_sb_1pri after_sb_1pri;
	/* By a policy this node gives up what it changed: keep it, then replication_discard_changes().
	 * Called each time the split brain is found. NULL: it waits for an operator. */
	void (*give_up)(void *context);
	void *give_up_context;
	/* A split brain is over, by either side's word: what the store has of it is older than what comes. May be
	 * NULL; nothing of replication is to be called from within. */
	void (*split_over)(void *context);
	void *split_over_context;
};

/* Begins to apply a staged cut that was committed but not wholly applied: replication_applying() is
 * true until that is done, and the volume must not be served, promoted or snapshot before. Nobody is
 * connected before either. Then CONNECTING, unless connect is false.
 * -errno and why when the staging area cannot be used. */
int replication_new(struct volume *volume, const struct replication_config *config, bool connect,
		    struct replication **replication, char *why, size_t why_size);
void replication_free(struct replication *replication, void (*freed)(void *context), void *context);
/* What sends the volume's writes has its memory from now on, 24 MiB: see volume_brace(). */
void replication_brace(struct replication *replication);

/* Operator's verbs. Results through return (-errno, why). */
int replication_connect(struct replication *replication, char *why, size_t why_size);
int replication_disconnect(struct replication *replication, char *why, size_t why_size);
/* What was sent of an unfinished catch-up is no beginning of one any more: this side's content becomes another. Its
 * cut is kept otherwise, for the next connection. Nothing happens as long as there is a connection, or reads of it
 * are under way. */
void replication_forget_transfer(struct replication *replication);
/* The clients wait for the peer no more (suspend_on_loss), and what they write is tracked. -EPERM: they
 * do not wait. */
int replication_resume(struct replication *replication, char *why, size_t why_size);
/* Protocol may change while running. */
void replication_set_protocol(struct replication *replication, enum replication_protocol protocol);
/* So may what limits the pace. */
void replication_set_pace(struct replication *replication, const struct pace_options *pace);
/* The role or state of the volume was changed by the node: negotiate anew if connected. */
void replication_role_changed(struct replication *replication);
/* True while staged data is being applied: promotion waits. */
bool replication_applying(const struct replication *replication);
/* Calls back, never from inside, once, when the volume's content is one instant of the primary's write order:
 * on a secondary nothing is half applied, for the length of the call. -EIO: it never will be. rest NULL:
 * who waits is told -ECANCELED soon. */
void replication_at_rest(struct replication *replication, void (*rest)(void *context, int error),
			 void *context);
/* A snapshot is about to be taken here: a cut of the store's map that waits for the peer's word is given up. */
void replication_yield_store(struct replication *replication);
/* The volume's content is to come from the peer (its disk was lost or replaced): connects, and marks
 * it INCONSISTENT and wanting; content that is good not before the peer has said that it has some to
 * give (else -EPERM, and nothing is changed). done is called when it is UPTODATE again, or on failure
 * (refused, disconnected by the operator). Link losses in between are retried. */
void replication_restore_from_peer(struct replication *replication,
				   void (*done)(void *context, int error, const char *why),
				   void *context);

/* This secondary's own changes are given up for the peer's content; its disk is good and its map
 * believed. The content stays whole (OUTDATED) until the peer's is here, at the cost of what both
 * changed. done as above. -EPERM for a primary or a disk that is not good. */
void replication_discard_changes(struct replication *replication,
				 void (*done)(void *context, int error, const char *why),
				 void *context);

/* Asks the peer for its content, behind all that was written here before; this side must be the source.
 * Waits for the stream. -ENOTCONN without a connection as source, and when it is lost. */
void replication_read(struct replication *replication, struct volume_origin_read *read);

/* Makes the volume bigger, on the peer first: on the primary, while it streams. With force on either side
 * while it is not connected, on this side alone: a smaller secondary grows by itself when it meets the
 * primary. See volume_grow() for what is refused. done may be called from inside. */
void replication_resize(struct replication *replication, uint64_t size_bytes, bool force,
			void (*done)(void *context, int error, const char *why), void *context);

/* Begins to compare the whole volume with the peer's, both in use; what differs is made equal to what
 * the node repair_from has (NULL: only told). rate: bytes read a second, 0: any; UINT64_MAX: as
 * configured. Only on the primary while it streams; then it goes on by itself after lost links and
 * restarts. */
int replication_verify(struct replication *replication, const char *repair_from, uint64_t rate,
		       char *why, size_t why_size);
int replication_verify_cancel(struct replication *replication, char *why, size_t why_size);
/* See daemon/replication/verify.h. */
struct verify_status {
	struct verify_record record;
	bool active;                        /* RUNNING, and not waiting for the stream */
	uint64_t since_ns, since_bytes;     /* where and when it was begun or resumed (monotonic) */
	uint64_t read_bytes, skipped_bytes; /* since then */
};
void replication_get_verify(const struct replication *replication, struct verify_status *status);

/* From here on the content is a history of its own: a new current generation, the old one in the
 * history, and the base if there was none. */
void replication_begin_history(struct env *env, struct volume_generations *generations);

struct replication_status {
	enum replication_state state;
	bool source; /* CATCH_UP, STREAMING: this side sends */
	enum replication_protocol protocol;
	bool tls;
	char peer_name[64]; /* "" until known */
	char peer_addr[96];
	bool peer_known; /* connected; else what the peer is is unknown */
	enum volume_role peer_role;
	enum volume_disk_state peer_disk;
	bool peer_suspended; /* its clients wait for this side to follow */
	uint64_t seen_ns;    /* realtime; what it was when the last connection ended; 0: none did */
	enum volume_role seen_role;
	enum volume_disk_state seen_disk;
	char refusal[256];            /* why STANDALONE, or why the last attempt failed; "" */
	uint64_t sent_lsn, acked_lsn; /* source; sink: received, durable */
	/* How far the peer is behind. Streaming: bytes issued but not yet acknowledged, and the age
	 * of the oldest. Else, connected or not: what is dirty for the peer, and the time since it
	 * was last known to have everything. A secondary: how far it is behind itself, as it last heard. */
	uint64_t lag_bytes, lag_ns;
	uint64_t unacked_bytes;                /* source: content sent and not yet acknowledged */
	uint64_t stream_limit, catch_up_limit; /* source: bytes a second now; 0: unlimited */
	const char *catch_up_reason;           /* why; "": there is no catch-up from here */
	uint64_t write_p99_ns, write_baseline_ns; /* clients' p99: in catch-up, and without it */
	bool lag_over;                            /* the lag is at max-lag or beyond */
	bool held;                  /* writers wait for the peer, or did within the last seconds */
	uint64_t holds;             /* how often that began */
	uint64_t left_stream;       /* how often the stream was left for catch-up at max-lag */
	bool waiting;               /* the clients' requests wait for the peer to follow */
	uint64_t waiting_since_ns;  /* realtime */
	uint64_t out_of_sync_bytes; /* dirty for the peer */
	uint64_t resumes;           /* source: transfers taken up again */
	bool in_place; /* CATCH_UP: the target is inconsistent until this round is done */
	uint64_t target_staging_max_bytes;            /* source: as the target said; 0: not known */
	uint64_t unreadable_bytes, unreadable_offset; /* source: catch-up waits for these blocks */
	uint64_t catch_up_done_bytes, catch_up_total_bytes, catch_up_started_ns;
	/* A full sync compares first: of so many bytes, so many are compared; they differ in, were
	 * read here, were holes here. Of this connection. */
	uint64_t compare_total_bytes, compared_bytes, compare_differ_bytes;
	uint64_t compare_read_bytes, compare_skipped_bytes;
	uint64_t cuts; /* applied since start */
	uint64_t sent_bytes, received_bytes, staged_bytes;
	uint64_t queue_bytes; /* send queue now */
	uint64_t connects, disconnects;
	uint64_t full_syncs; /* begun since start, as source or target */
	bool split_brain;
	uint64_t split_since_ns; /* realtime */
	uint64_t split_peer_bytes;
	char split_peer[64];
	bool wants;    /* its content, or what it changed, is given up: waits for the peer's */
	bool starting; /* requests are held until the peer is known */
	uint64_t stepped_down_ns; /* realtime; since start, by itself; 0: did not */
	uint64_t rolled_back_ns, rolled_back_bytes, rolled_back_extents; /* last; 0: nothing */
};
void replication_get_status(const struct replication *replication,
			    struct replication_status *status);

/* What a connection to the peer would do. */
enum replication_direction { REPLICATION_TO_PEER = 1, REPLICATION_FROM_PEER };
struct replication_plan {
	bool connected; /* it is there, and does this */
	char peer_name[64];
	char decision[256];                   /* for people */
	bool refused;                         /* nothing would be done: decision says what to do */
	enum replication_direction direction; /* 0: nothing to be sent */
	bool full;                            /* all of it, less what hashes show to be equal */
	uint64_t bytes;      /* to be sent at most: what either side changed, or the size */
	uint64_t rate_bytes; /* a second, as measured in the last catch-up; 0: unknown */
};
/* Asks the peer, without changing anything on either side; a connection at work goes on. done may be
 * called from inside. */
void replication_plan(struct replication *replication,
		      void (*done)(void *context, int error, const char *why,
				   const struct replication_plan *plan),
		      void *context);

/* Asks a connected peer for a sign of life; whether there was none since since_ns
 * (env_now_ns()); ends the connection: the peer counts as lost. */
void replication_ping(struct replication *replication);
bool replication_is_silent(const struct replication *replication, uint64_t since_ns);
void replication_give_up_peer(struct replication *replication, const char *why);

/* What would be lost, or put at risk, if this secondary became primary now. */
enum replication_risk {
	REPLICATION_RISK_NONE,
	REPLICATION_RISK_BEHIND, /* something is known to be missing here */
	REPLICATION_RISK_UNHEARD, /* nothing is, but it was not in sync when the peer was last heard */
	REPLICATION_RISK_PEER, /* the connected peer is secondary, and has writes that this side lacks */
};
struct replication_loss {
	enum replication_risk risk; /* NONE while connected: the rest is still on its way here */
	bool connected;
	char peer_name[64];           /* "" unknown */
	uint64_t since_ns;            /* realtime; 0: unknown */
	uint64_t heard_ns;            /* realtime; when the primary was last heard; 0: unknown */
	uint64_t bytes;               /* 0: unknown */
	uint64_t first_lsn, last_lsn; /* 0: unknown */
};
void replication_get_loss(struct replication *replication, struct replication_loss *loss);
/* For people: "the peer's writes since 2026-11-21 13:02:11 UTC (41 s), 12.3 MiB, LSN 88121..88410". */
void replication_loss_text(const struct replication_loss *loss, char *text, size_t size);

/* What was changed here and is not known to be on the peer: at most this much. */
struct replication_changes {
	uint64_t bytes, count; /* of extents */
	unsigned listed;       /* of count: the first ones */
	struct split_extent extents[SPLIT_EXTENTS_MAX];
};
void replication_get_changes(const struct replication *replication,
			     struct replication_changes *changes);
/* The split brain, or NULL if there is none. */
const struct split_record *replication_get_split(const struct replication *replication);

void replication_check(const struct replication *replication); /* invariants */

/* ---- the node's listening side ---------------------------------------------------------------- */

struct replication_listener;

/* Accepts peers on addr. find() gives the replication of a volume by name (NULL: none here); the
 * listener reads HELLO, compares the certificate with the replication's peer_cert_name and hands the
 * stream over. tls_server NULL: plaintext. */
int replication_listen(struct env *env, const char *addr, struct tls_context *tls_server,
		       struct replication *(*find)(void *context, const char *volume_name),
		       void *context, struct replication_listener **listener, char *why,
		       size_t why_size);
const char *replication_listener_addr(const struct replication_listener *listener);
void replication_listener_free(struct replication_listener *listener);

#endif
