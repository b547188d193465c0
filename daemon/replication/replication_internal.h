/* SPDX-License-Identifier: Apache-2.0 */
/* One volume's replication from the inside: shared by replication.c (state, life, operator's
 * verbs), session.c (one connection: HELLO, decision, roles) and restore.c (wanting). */
#ifndef OFFSITE_REPLICATION_INTERNAL_H
#define OFFSITE_REPLICATION_INTERNAL_H

#include "daemon/replication/accept.h"
#include "daemon/replication/decide.h"
#include "daemon/replication/sink.h"
#include "daemon/replication/source.h"
#include "daemon/replication/verify.h"

/* How far the present connection is. */
enum session {
	SESSION_NONE,
	SESSION_HELLO,   /* ours is sent; the peer's to come */
	SESSION_DURABLE, /* decided; our START is sent when what is here is durable */
	SESSION_START,   /* decided; the peer's START to come */
	SESSION_SOURCE,  /* running */
	SESSION_SINK,
	SESSION_IDLE,
	SESSION_SPLIT, /* split brain: CHANGES are exchanged, then it ends */
};

struct replication {
	struct volume *volume;
	struct env *env;
	struct replication_config config;
	char node_name[HELLO_NAME_BYTES];
	char *peer_addr;
	struct link_config link_config;
	struct buf_pool *pool;
	struct sink *sink;
	struct source *source;
	struct verify *verify;

	enum replication_state state;
	bool operator_off; /* STANDALONE by the operator's word: nobody is let in */
	bool stopping, recovering;
	char refusal[256];
	char logged[256]; /* the last failure said aloud: repeated ones are not */

	/* connecting */
	struct env_op connect_op;
	struct env_sock *connect_sock;
	bool connect_busy, connect_abandoned;
	struct env_timer retry_timer;
	unsigned backoff_ms;

	/* the connection */
	struct link *link;
	unsigned links; /* alive, the present one included */
	enum session session;
	bool outgoing;
	struct hello self, peer; /* as said on this connection */
	struct id128 instance, peer_instance;
	uint64_t attempt, peer_attempt;
	enum verdict verdict;
	struct volume_apply flush; /* DURABLE's; may outlive the connection */
	uint64_t flush_attempt;    /* the connection that it was begun for */
	bool flushing, start_came; /* in DURABLE */
	bool mapping;              /* target: the dirty map is being sent */
	uint64_t map_offset;
	struct frame_range_wire map_wire[FRAME_RANGES_MAX];

	struct env_task drop_task;  /* to end the connection outside of its callbacks */
	enum frame_error drop_code; /* 0: none */
	char drop_text[FRAME_ERROR_TEXT_MAX + 1];

	bool braced; /* see replication_brace(); so is each new link */

	/* contact.c */
	struct volume_contact contact;  /* of the primary that is or was followed */
	uint64_t contact_noted_ns;      /* when it was last given to the volume */
	struct frame_state told, heard; /* last sent, last received on this connection */
	bool has_told, has_heard;
	struct env_timer state_timer;
	uint64_t seen_ns; /* realtime; the peer at the end of the last connection; 0: none yet */
	enum volume_role seen_role;
	enum volume_disk_state seen_disk;

	/* reference.c */
	struct reference {
		struct env_timer timer;
		struct volume_run runs[FRAME_SNAPSHOT_RUNS_MAX];
		struct frame_snapshot_wire wire;
		struct volume_cut *cut; /* of the store's map: bits only */
		/* source */
		bool heard; /* what the peer knows, and has been told since */
		struct id128 peer;
		uint64_t peer_sequence, question;
		/* target */
		bool said;
		struct id128 said_snapshot;
	} reference;

	/* plan.c */
	uint64_t rate_bytes; /* a second; of the last large cut; 0: unknown */
	struct plan {
		struct replication *r;
		void (*done)(void *context, int error, const char *why,
			     const struct replication_plan *plan); /* NULL: nobody asks */
		void *context;
		struct env_op connect_op;
		struct env_sock *sock;
		struct env_timer timer;
		struct link *link;
		struct hello self;
		uint64_t map_end;
		bool connecting, decided;
		struct replication_plan result;
	} plan;
	struct plan_answer { /* to the peer's dry run */
		struct link *link;
		bool mapping;
		uint64_t map_offset;
		struct frame_range_wire wire[FRAME_RANGES_MAX];
	} answer;

	/* resize.c */
	struct resize {
		struct env_timer timer;
		uint64_t asked; /* of the peer, which has not answered; 0: nothing */
		bool sent;
		bool growing;       /* this volume is */
		bool by_itself;     /* ... to the primary's size, without a connection */
		uint64_t from_link; /* ... for the peer, on that connection: see attempt; else 0 */
		uint64_t deadline_ns; /* of this volume's, after the peer's */
		uint64_t size_bytes;
		struct frame reply;
		char reply_text[FRAME_ERROR_TEXT_MAX + 1];
		bool reply_due;
		void (*done)(void *context, int error, const char *why); /* the operator's */
		void *context;
	} resize;

	/* yield.c */
	bool starting; /* clients' requests are held until the peer is known, or start_timer */
	struct env_timer start_timer;
	uint64_t stepped_down_ns, rolled_back_ns; /* realtime; 0: did not */
	struct replication_changes rolled_back;

	/* split.c */
	bool is_split, split_told; /* told: the peer's CHANGES came */
	bool probing; /* STANDALONE by a split brain, and connecting to see whether it is over */
	struct env_timer probe_timer;
	enum decide_loser loser; /* by a policy */
	struct env_task give_up_task;
	struct split_record split, split_kept; /* now, and as it was stored last */

	/* restore from the peer */
	bool asking; /* it begins if the peer's HELLO says that there is content to give */
	bool wants;
	struct id128 gives_up; /* zero: everything, else the changes of this generation */
	unsigned wish_flags;   /* SPLIT_WISH_... */
	void (*restore_done)(void *context, int error, const char *why);
	void *restore_context;

	struct env_task end_task;
	void (*freed)(void *context);
	void *freed_context;
	uint64_t connects, disconnects, full_syncs, sent_bytes, received_bytes;
};

/* replication.c */
void replication_set_state(struct replication *r, enum replication_state state);
/* Back to CONNECTING (or STANDALONE if final), with a reason for status and log. */
void replication_lost(struct replication *r, bool final, bool at_once, const char *why);
void replication_retry(struct replication *r);
void replication_dial(struct replication *r); /* now, if it may */
void replication_refuse(struct replication *r, enum frame_error code, const char *text);
bool replication_may_connect(const struct replication *r);

/* session.c */
void session_init(struct replication *r);
extern const struct sink_ops replication_sink_ops;
extern const struct source_ops replication_source_ops;
void session_verify_idle(void *owner);
void session_open(struct replication *r, struct stream *stream);
void session_end(struct replication *r, enum frame_error code, const char *text);

/* contact.c */
void contact_init(struct replication *r);
void contact_begin(struct replication *r); /* the connection is at work */
void contact_end(struct replication *r);   /* it is about to end */
void contact_streaming(struct replication *r);
/* The connection is ended by someone's word, and the primary goes on without this node. */
void contact_left(struct replication *r);
/* How far this secondary is behind by what its primary told last; the time goes on. */
void contact_lag(const struct replication *r, uint64_t *bytes, uint64_t *ns);
void contact_frame(struct replication *r, const struct frame *frame, const void *payload);

/* session.c */
/* What this side would say in HELLO now. */
void session_hello(struct replication *r, struct hello *hello);

void session_hello_whole(struct replication *r, struct hello *hello); /* with what takes a look */
/* What speaks against this peer before any history is looked at; 0: nothing. */
enum frame_error session_peer_invalid(const struct replication *r, const struct hello *peer,
				      char *text, size_t size);
/* The next ranges that are marked here, from *offset on; how many. */
unsigned session_map(struct replication *r, uint64_t *offset,
		     struct frame_range_wire wire[FRAME_RANGES_MAX], bool *more);

/* reference.c */
void reference_init(struct replication *r);
void reference_state_changed(struct replication *r);
bool reference_admit(struct replication *r); /* FRAME_SNAPSHOT, in source or sink */
void reference_frame(struct replication *r, const struct frame *frame, const void *payload);
void reference_check(const struct replication *r);

/* plan.c */
void plan_note_rate(struct replication *r, uint64_t bytes, uint64_t started_ns);
void plan_answer(struct replication *r, struct link *link);
void plan_stop(struct replication *r);
bool plan_is_idle(const struct replication *r);

/* yield.c */
void yield_init(struct replication *r);
/* What the peer is is known, or nobody waits for it any more: clients are served. */
void yield_settled(struct replication *r);
/* The volume is about to be closed: clients are not served any more. */
void yield_stop(struct replication *r);
bool yield_vacant(const struct replication *r);
void yield_step_down(struct replication *r);
void yield_roll_back(struct replication *r); /* a catch-up begins that undoes what is marked here */
void changes_collect(struct volume *volume, struct replication_changes *changes);

/* resize.c */
void resize_init(struct replication *r);
void resize_frame(struct replication *r, const struct frame *frame, const void *payload);
/* This side's size is about to change: not the time to agree on anything. */
bool resize_is_under_way(const struct replication *r);
/* The sizes are equal, or may differ: a primary that leans on its peer cannot grow without it. */
bool resize_sizes_fit(const struct replication *r, const struct hello *peer);
/* The sizes differ. True: this side is to grow, and the connection about to end. */
bool resize_begin_by_itself(struct replication *r, const struct hello *peer);
/* What there is to say about it, and whether it passes by itself. */
enum frame_error resize_sizes_differ(const struct replication *r, const struct hello *peer,
				     char *text, size_t size);
void resize_parted(struct replication *r); /* the connection ends */
void resize_stop(struct replication *r);

/* split.c */
void split_init(struct replication *r);
void split_parted(struct replication *r);
void split_probe_later(struct replication *r); /* if there is a split brain */
int split_load(struct replication *r, char *why, size_t why_size);
void split_begin(struct replication *r);
void split_frame(struct replication *r, const struct frame *frame, const void *payload);
void split_sent(struct replication *r);
void split_end(struct replication *r);

/* restore.c */
int restore_load(struct replication *r, char *why, size_t why_size);
/* The peer's HELLO came. True: the connection ends, the next one brings the content. */
bool restore_heard(struct replication *r);
void restore_finish(struct replication *r, int error, const char *why);
void restore_satisfied(struct replication *r);
void restore_recheck(struct replication *r); /* satisfied while there was no link? */
void restore_void_if_promoted(struct replication *r);
void restore_take_back(struct replication *r); /* the peer has lost what is wanted */
void restore_disk_failed(struct replication *r);

#endif
