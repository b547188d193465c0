/* SPDX-License-Identifier: Apache-2.0 */
/*
 * connection: one client of the NBD server: private to nbd-server/.
 *
 *   server.c        listeners, the table of connections, their birth and death, receiving
 *   handshake.c     greeting, option haggling, STARTTLS
 *   meta.c          metadata contexts: listing, selecting, BLOCK_STATUS
 *   transmission.c  requests: parsing, payloads, handing them to the block device
 *   reply.c         replies: collecting those that are done and sending them in batches
 *
 * Flow of bytes. One receive brings up to NBD_RX_BYTES into rx[], out of which as many requests are
 * parsed as there are; the next receive starts when all of it is consumed. The rest of a large
 * WRITE is received straight into its buffer. Parsing stops (blocked) while there is no free slot,
 * no buffer in the pool, or when this connection holds too many bytes of it; whatever frees one
 * defers task, which goes on. A client that does not read its replies therefore stops being read.
 *
 * Life. Nothing is freed from inside a completion: the last one under way defers task, and task
 * frees the connection when it is CLOSED and nothing is under way any more.
 */
#ifndef OFFSITE_NBD_SERVER_CONNECTION_H
#define OFFSITE_NBD_SERVER_CONNECTION_H

#include "nbd-server/nbd_server.h"
#include "protocol/nbd.h"

#define NBD_SLOTS         256u           /* requests under way in one connection */
#define NBD_RX_BYTES      (256u * 1024u) /* receive buffer; also holds a whole option */
#define NBD_RX_SMALL      (4u * 1024u)   /* received at once after a WRITE with a direct payload */
#define NBD_DIRECT_BYTES  (32u * 1024u)  /* payload remainders from here on skip rx[] */
#define NBD_TX_BYTES      (64u * 1024u)  /* headers of one batch; option replies */
#define NBD_TX_HEADER_MAX 256u           /* the longest header with its message */
#define NBD_IOV           512u           /* of one batch */
#define NBD_BATCH_BYTES   (2u * 1024u * 1024u) /* data of one batch, so that replies keep flowing */
#define NBD_OPTIONS_MAX   256u                 /* options that one client may send */
#define NBD_EXTENTS_MAX   256u                 /* descriptors of one BLOCK_STATUS chunk */
#define NBD_CONTEXTS_MAX  8u                   /* metadata contexts that one client may select */

_Static_assert(NBD_OPTION_DATA_MAX + sizeof(struct nbd_option_header) <= NBD_RX_BYTES,
	       "an option fits the receive buffer");
_Static_assert(sizeof(struct nbd_chunk_error) + NBD_MESSAGE_MAX <= NBD_TX_HEADER_MAX,
	       "every header fits");
_Static_assert(NBD_TX_BYTES > 4 * NBD_STRING_MAX, "an option's reply fits");
_Static_assert(NBD_EXTENTS_MAX * sizeof(struct block_extent) <= 8192, "smallest buffer class");
_Static_assert(sizeof(struct nbd_status_extent) <= sizeof(struct block_extent), "turned in place");

/*
 *  state         what holds                                          next
 *  GREETING      greeting sent, 4 bytes of client flags awaited      OPTION, CLOSED
 *  OPTION        an option's header or data is awaited               REPLY, CLOSED
 *  REPLY         a reply is made or sent, nothing is received        OPTION, TLS, TRANSMISSION, CLOSED
 *  TLS           TLS handshake under way, nothing received or sent   OPTION, CLOSED
 *  TRANSMISSION  block is open, terms are fixed                      DRAINING, CLOSED
 *  DRAINING      DISC came: nothing is read, replies go out          CLOSED
 *  CLOSED        stream given up; waits for what is under way        (freed)
 */
enum nbd_state {
	NBD_GREETING,
	NBD_OPTION,
	NBD_REPLY,
	NBD_TLS,
	NBD_TRANSMISSION,
	NBD_DRAINING,
	NBD_CLOSED,
};
#define NBD_STATES 7u

/* What the parser of the transmission phase is at. */
enum nbd_parse {
	NBD_PARSE_REQUEST, /* the next request's header */
	NBD_PARSE_PAYLOAD, /* payload of filling */
	NBD_PARSE_SPLIT,   /* split: the next part of a request longer than BUF_SIZE_MAX */
	NBD_PARSE_DRAIN,   /* drain_bytes of a refused WRITE */
};

/* The form of a finished slot's reply. */
enum nbd_reply {
	NBD_REPLY_STATUS,  /* success or error without data */
	NBD_REPLY_DATA,    /* the whole answer to a READ */
	NBD_REPLY_PART,    /* an OFFSET_DATA chunk, more to come unless slot->last */
	NBD_REPLY_FIRST,   /* simple reply's header for the whole split READ, and the first data */
	NBD_REPLY_MORE,    /* only data: the next bytes after FIRST */
	NBD_REPLY_EXTENTS, /* a BLOCK_STATUS chunk, descriptors in buf */
};

struct nbd_connection;

/* One request under way, or one part of a split one. */
struct nbd_slot {
	union {
		struct block_request block;
		struct block_status status; /* BLOCK_STATUS */
	};
	struct nbd_connection *connection;
	struct nbd_slot *next;   /* in free list, reply queue, or list of those being sent */
	struct nbd_slot *parent; /* part of a split request; else NULL */
	struct buf *buf;         /* counted in connection->held_bytes */
	struct nbd_request request;
	enum nbd_reply reply;
	enum nbd_error error;
	const char *reason; /* static text beside error, or NULL */
	unsigned parts;     /* parent: parts under way */
	uint32_t issued;    /* parent: bytes, of BLOCK_STATUS contexts, given to parts */
	uint32_t filled;    /* WRITE: payload bytes in buf */
	uint32_t extents;   /* BLOCK_STATUS: descriptors in buf */
	uint32_t context;   /* BLOCK_STATUS: which of the contexts selected */
	bool submitted;     /* under way in the block device, which uses buf */
	bool last;          /* part: completes the reply */
	bool started;       /* parent in simple mode: its header is in the queue */
};

/* A metadata context that was selected. */
struct nbd_context {
	uint32_t id;
	struct block_map *map; /* NULL: base:allocation */
};

struct nbd_connection {
	struct nbd_server *server;
	struct nbd_adopted *adopted; /* the kernel's client; NULL: one that shook hands */
	int adopted_fd;              /* the stream's, while there is one */
	bool holding;                /* its replies are held back: see server_quiesce() */
	uint64_t stopping_ns;        /* when its stop began */
	struct env *env;
	struct stream *stream;
	struct nbd_connection *previous, *next; /* server's list, oldest first */
	enum nbd_state state;
	uint64_t accepted_ns;
	struct env_timer deadline; /* handshake; later the end of a stop */
	struct env_task task;

	struct env_op recv_op, send_op, tls_op;
	bool recv_busy, send_busy, tls_busy;
	bool recv_direct; /* the receive under way goes into filling->buf */
	bool stopping;    /* server stops: answer ESHUTDOWN (not to the kernel), close when idle */
	uint32_t rx_start, rx_end;
	uint32_t rx_limit; /* how much the next receive asks for */

	/* handshake */
	uint32_t client_flags;
	unsigned options; /* received so far */
	uint32_t option, option_length;
	bool option_pending;   /* header consumed, data awaited */
	uint32_t option_drain; /* bytes of a refused option still to be read away */
	enum nbd_state after;  /* REPLY: where to go when it is sent */
	bool listing;          /* LIST: more exports to be told from list_index on */
	unsigned list_index;
	/* What goes on when an export was looked up, or a map; data: the option's, in rx[]. */
	bool looking; /* one of the three is under way */
	struct block_lookup lookup;
	struct block_map_open map_open;
	struct block_map_list map_list;
	void (*found)(struct nbd_connection *connection, struct block *block, bool held, int error,
		      const char *why);
	const uint8_t *option_data;
	struct nbd_meta_request meta_request; /* SET: what is still to be selected */
	const char *meta_query;
	size_t meta_query_length;
	bool meta_opening;                             /* the server is being asked for a map */
	struct nbd_context contexts[NBD_CONTEXTS_MAX]; /* selected ... */
	unsigned context_count;
	struct block *meta_block; /* ... for this export */
	bool meta_held;           /* ... which is held until they are dropped */
	struct block *list_block; /* LIST: until its maps were listed */
	bool list_held;
	struct block *block; /* open from TRANSMISSION until freed (adopted: its owner opened it) */
	bool block_held;
	struct nbd_terms terms;
	struct block_info info;

	/* transmission: requests */
	enum nbd_parse parse;
	struct nbd_slot *filling;
	uint64_t received_ns; /* the last bytes came, or filling was set */
	struct nbd_slot *split;
	uint64_t drain_bytes;
	struct nbd_slot *drained; /* its error reply goes out when drain_bytes are read */
	bool blocked;
	bool waiting_buffer; /* waiter is queued at the pool */
	struct buf_waiter waiter;
	unsigned slots_used, slots_fresh; /* slots[slots_fresh...] were never used */
	unsigned submitted;               /* under way in the block device */
	size_t held_bytes;                /* capacity of the buffers held */
	struct nbd_slot *free_slots;

	/* transmission: replies */
	struct nbd_slot *replies, **replies_tail;
	struct nbd_slot *sending; /* buffers in use by the send under way */
	uint64_t send_started_ns;
	unsigned tx_used;
	unsigned iov_count;
	struct iovec iov[NBD_IOV];

	struct nbd_slot slots[NBD_SLOTS];
	uint8_t tx[NBD_TX_BYTES];
	uint8_t rx[NBD_RX_BYTES];
};

struct nbd_server {
	struct env *env;
	struct nbd_server_config config;
	struct env_listener **listeners;
	unsigned listener_count;
	struct nbd_connection *first, *last;
	struct nbd_server_stats stats;
	size_t held_bytes_max;  /* pool bytes that one connection may hold */
	struct env_timer stall; /* runs while a connection waits for a buffer */
	bool stopping;
	bool braced; /* the pool is: a device was attached */
	struct env_task stopped_task;
	void (*stopped)(void *context);
	void *stopped_context;
	/* lines that clients cause: a few in a second, the others are counted */
	uint64_t log_second;
	unsigned log_count, log_suppressed;
};

/* ---- server.c ----------------------------------------------------------------------------- */

void nbd_connection_set_state(struct nbd_connection *connection, enum nbd_state state);
/* Receives into rx[] behind rx_end. */
void nbd_connection_receive(struct nbd_connection *connection);
/* Receives into the buffer of filling. */
void nbd_connection_receive_direct(struct nbd_connection *connection, void *to, size_t length);
/* Gives the stream up; freed later. No effect when closed already. */
void nbd_connection_close(struct nbd_connection *connection);
/* As close, for a client that broke the protocol: counted, and said at debug level. */
void nbd_connection_reject(struct nbd_connection *connection, const char *reason);
/* A connection waits for a buffer: clients that hold theirs without moving may have to go. */
void nbd_server_watch_stalls(struct nbd_server *server);
/* Whether one more client may look something up. One that is gone stays in the table until that was answered,
 * which a store can delay for minutes: those must not be so many as there is room for. */
bool nbd_server_may_look(const struct nbd_server *server);
/* A line that a client caused: rate-limited. */
void nbd_server_log(struct nbd_server *server, enum env_log_level level, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* A client's text made fit for a log line: cut, and unprintable bytes replaced. Returns to. */
#define NBD_PRINTABLE_BYTES 68u
const char *nbd_printable(char to[NBD_PRINTABLE_BYTES], const char *text, size_t length);

/* ---- handshake.c -------------------------------------------------------------------------- */

void nbd_handshake_start(struct nbd_connection *connection);
/* rx[] has new bytes. */
void nbd_handshake_advance(struct nbd_connection *connection);
/* The send under way has ended well. */
void nbd_handshake_sent(struct nbd_connection *connection);
void nbd_handshake_tls_done(struct env_op *op, int64_t result);
/* Asks the device, and brings what it says into terms that the protocol allows. structured is what
 * was negotiated so far. */
void nbd_take_terms(struct block *block, struct block_info *info, struct nbd_terms *terms);

/* Building the answer to an option in tx[], and sending it; after: the state when all of it is out. */
void nbd_option_bytes(struct nbd_connection *connection, const void *bytes, size_t length);
void nbd_option_reply(struct nbd_connection *connection, uint32_t type, size_t length);
void nbd_option_error(struct nbd_connection *connection, uint32_t type, const char *message);
void nbd_option_send(struct nbd_connection *connection, enum nbd_state after);
/* Looks the export up, and calls found() with it: from inside, or when it was found. */
void nbd_option_find(struct nbd_connection *connection, const char *name, size_t length,
		     void (*found)(struct nbd_connection *connection, struct block *block,
				   bool held, int error, const char *why));
/* The error to answer with where found() got one. */
uint32_t nbd_option_error_of(int error);

/* ---- meta.c ------------------------------------------------------------------------------- */

/* LIST_META_CONTEXT and SET_META_CONTEXT. */
void nbd_meta_option(struct nbd_connection *connection, const uint8_t *data, uint32_t length);
/* What was selected is so no more. */
void nbd_meta_drop(struct nbd_connection *connection);
/* Asks for one context's extents; the slot is then answered by nbd_status_answered(). */
void nbd_meta_status(struct nbd_slot *slot);

/* ---- transmission.c ----------------------------------------------------------------------- */

/* Parses and submits what rx[] holds, then receives or becomes blocked. */
void nbd_transmission_advance(struct nbd_connection *connection);
/* Bytes received straight into filling->buf. */
void nbd_transmission_direct(struct nbd_connection *connection, uint32_t length);
void nbd_transmission_resume(struct buf_waiter *waiter);
/* The stream is gone: gives back every buffer that the block device is not using. */
void nbd_transmission_abandon(struct nbd_connection *connection);
/* Gives slot and buffer back, and lets a blocked parser go on. */
void nbd_slot_release(struct nbd_slot *slot);
void nbd_slot_drop_buffer(struct nbd_slot *slot);
/* A BLOCK_STATUS has its descriptors, or an error. */
void nbd_status_answered(struct nbd_slot *slot, int error);

/* ---- reply.c ------------------------------------------------------------------------------ */

/* Queues the slot's reply; takes the slot over. */
void nbd_reply_queue(struct nbd_slot *slot);
/* Sends a batch if none is under way. */
void nbd_reply_send(struct nbd_connection *connection);
void nbd_reply_sent(struct nbd_connection *connection);

#endif
