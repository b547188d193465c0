/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config: the INI file of a node ([node] and one [volume NAME] each). Every option stands in one
 * table (config.c) with its section, type, default and one line of help; the same table makes
 * `offsite config check`, the nearest-name hint, and the option list in docs/.
 * All strings are owned by the config. Sizes in bytes, durations in nanoseconds.
 */
#ifndef OFFSITE_CONFIG_H
#define OFFSITE_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "daemon/io/rate.h"

enum config_nbd_tls { CONFIG_TLS_OFF, CONFIG_TLS_ON, CONFIG_TLS_REQUIRE };
#define CONFIG_ATTACH_NO  (-2)
#define CONFIG_ATTACH_ANY (-1)
enum config_io { CONFIG_IO_AUTO, CONFIG_IO_URING, CONFIG_IO_AIO };

struct config_node {
	char *name;          /* name */
	char *state_dir;     /* state-dir */
	char *control;       /* control: path of the unix socket */
	char **nbd_listen;   /* nbd-listen: addresses, separated by blanks; NULL-terminated */
	char *peer_listen;   /* peer-listen: HOST:PORT, or NULL */
	bool peer_plaintext; /* peer-plaintext = yes|no: without TLS between the nodes */
	char *psk_file;      /* psk-file: key between the nodes (offsite keygen) */
	char *tls_cert, *tls_key, *tls_ca; /* certificates, for peers and NBD alike */
	enum config_nbd_tls nbd_tls;       /* nbd-tls */
	char *nbd_psk_file;                /* nbd-psk-file: IDENTITY:HEXKEY lines for NBD clients */
	bool nbd_verify_client;            /* nbd-verify-client: demand a certificate of nbd-ca */
	char *nbd_ca;                      /* nbd-ca, else tls-ca; NULL: neither */
	enum config_io io;                 /* io */
	unsigned log_level; /* log-level = error|warning|info|debug (enum env_log_level) */
	unsigned threads;   /* threads: helpers; 0: number of cores, at most 4 */
};

struct config_volume {
	char *name;
	char *backing;
	uint64_t size_bytes;           /* size; 0: the backing's */
	bool primary;                  /* role = primary|secondary, at first start */
	char *peer;                    /* peer: HOST:PORT, or NULL */
	char *peer_name;               /* peer-name, else the host of peer; NULL: neither */
	char protocol;                 /* protocol = A|B|C */
	uint64_t staging_max_bytes;    /* staging-max; 0: by the size of the volume */
	uint64_t final_cut_max_bytes;  /* final-cut-max */
	uint64_t preserve_max_bytes;   /* preserve-max */
	uint64_t send_queue_max_bytes; /* send-queue-max */
	unsigned peer_timeout_s;       /* peer-timeout; 0: the default */
	bool suspend_on_loss;          /* on-peer-loss = continue|suspend */
	bool detach_on_error;          /* on-io-error = error|detach */
	uint64_t hydrate_rate_bytes;   /* hydrate-rate, a second; 0: unlimited */
	uint64_t hydrate_timeout_ns;   /* hydrate-timeout; 0: none */
	char *fence_command;           /* fence-command, or NULL */
	uint64_t fence_timeout_ns;     /* fence-timeout */
	uint64_t max_lag_bytes;        /* max-lag; 0: none */
	uint64_t max_lag_ns;           /* max-lag-time; 0: none */
	unsigned max_lag_action;       /* max-lag-action = slow|catch-up (enum pace_action) */
	unsigned latency_percent;      /* catch-up-latency-factor; 0: off */
	uint64_t catch_up_min_rate;    /* catch-up-min-rate */
	uint64_t snapshot_min_rate;    /* snapshot-min-rate */
	struct rate_schedule stream_rate, catch_up_rate, snapshot_rate; /* stream-rate, ... */
	uint64_t start_wait_ns;      /* start-wait; 0: not at all */
	unsigned after_sb_0pri;      /* after-sb-0pri (enum hello_after_sb_0pri) */
	unsigned after_sb_1pri;      /* after-sb-1pri (enum hello_after_sb_1pri) */
	uint64_t verify_rate_bytes;  /* verify-rate, a second; 0: unlimited */
	unsigned block_min_bytes;    /* block-size = 1|512|4096 */
	int attach;                  /* attach = no|yes|/dev/nbdN: CONFIG_ATTACH_..., or N */
	unsigned attach_timeout_s;   /* attach-timeout */
	unsigned attach_connections; /* attach-connections */
	unsigned attach_request_s;   /* attach-request-timeout */
	char *store;                 /* store: URL, or NULL */
	char *store_passphrase_file; /* store-passphrase-file: opens an encrypted store ... */
	char *store_key_file;        /* store-key-file: ... or this does ... */
	char *store_key_command;     /* store-key-command: ... or this; at most one is set */
	uint64_t snapshot_every_ns;  /* snapshot-every; 0: never */

	/* snapshot-from = primary|secondary; commands: NULL: none */
	bool snapshot_from_secondary;
	char *snapshot_before_command, *snapshot_after_command;
	uint64_t snapshot_command_timeout_ns;
	bool snapshot_command_continue; /* snapshot-on-command-failure = abort|continue */
	/* proof-every, 0: never; proof-dir, proof-command: NULL: none */
	uint64_t proof_every_ns, proof_timeout_ns;
	char *proof_dir, *proof_command;
	struct rate_schedule proof_rate;

	unsigned keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly; /* keep-... */
	uint64_t keep_within_ns;                                                  /* keep-within */
	unsigned keep_last;         /* keep-last; 0: all */
	unsigned lock;              /* lock = none|governance|compliance (enum store_lock) */
	uint64_t lock_for_ns;       /* lock-for, else by the keep-... rules */
	int compression_level;      /* compression-level: zstd */
	bool repack;                /* repack = yes|no: packs that are mostly dead */
	uint64_t store_list_lag_ns; /* store-list-lag */
	char *description;          /* shown to NBD clients */
};

struct config {
	char *path;
	struct config_node node;
	struct config_volume *volumes;
	unsigned volume_count;
};

/* Reads and checks a file. On failure NULL, and every problem found, one line each, in *errors
 * (caller frees): "FILE:LINE: [volume pgdata] unknown option 'protocoll' (nearest: protocol)". */
struct config *config_load(const char *path, char **errors);
void config_free(struct config *config);
/* Changes an option of a running volume, if it is one that can be (none of those is a text). False and
 * the reason. */
bool config_volume_set(struct config_volume *volume, const char *option, const char *text,
		       char *why, size_t why_size);
/* All options with their help and defaults, for --help and the manual. */
void config_print_options(FILE *out);

#endif
