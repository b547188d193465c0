/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store_sim: simulated object stores. A store belongs to the world, not to a node: it survives
 * crashes. In a simulated environment store_open() opens one by any URL; the same URL is the same
 * store. An acknowledged put is durable; one under way when its node dies is there whole or not.
 */
#ifndef OFFSITE_TESTS_SIM_STORE_SIM_H
#define OFFSITE_TESTS_SIM_STORE_SIM_H

#include "daemon/store/store.h"
#include "tests/sim/env_sim.h"

enum store_sim_op {
	STORE_SIM_PUT = 1,
	STORE_SIM_GET = 2,
	STORE_SIM_SIZE = 4,
	STORE_SIM_LIST = 8,
	STORE_SIM_DELETE = 16,
	STORE_SIM_ALL = 31,
};

struct store_sim_options {
	uint64_t latency_min_ns, latency_max_ns;
	uint32_t stall_ppm; /* chance in a million that an operation takes longer, by up to */
	uint64_t stall_max_ns;
	uint64_t capacity_bytes; /* 0: no limit; beyond: ENOSPC */
	uint32_t error_ppm;      /* chance in a million that an operation fails ... */
	uint32_t effect_ppm;     /* ... and that a failed put or delete took effect all the same */
	int error;               /* with this; 0: one of EIO, ETIMEDOUT, ECONNRESET */
};

/* Opens a store for a node without store_open(). */
struct store *store_sim_open(struct env *env, const char *url);

void store_sim_get_options(struct sim *sim, const char *url, struct store_sim_options *options);
void store_sim_set_options(struct sim *sim, const char *url,
			   const struct store_sim_options *options);
/* The k-th operation of these types from now (1: the next) fails with error. effect: a put or delete
 * takes effect nevertheless. k 0: disarm. */
void store_sim_fail_at(struct sim *sim, const char *url, unsigned types, uint64_t k, int error,
		       bool effect);

/* What is in a store, for checks: object number index in byte order; NULL after the last. */
const char *store_sim_object(struct sim *sim, const char *url, unsigned index, const void **data,
			     size_t *size_bytes);
/* All objects of a store of one world, as of now, into one of another world. */
void store_sim_copy(struct sim *to, struct sim *from, const char *url);
uint64_t store_sim_bytes(struct sim *sim, const char *url);      /* of its capacity */
uint64_t store_sim_operations(struct sim *sim, const char *url); /* so far */
bool store_sim_remove(struct sim *sim, const char *url, const char *name);
bool store_sim_corrupt(struct sim *sim, const char *url, const char *name, size_t offset,
		       uint8_t xor_with);

#endif
