// SPDX-License-Identifier: Apache-2.0
/* How a seed's world is made: its options, the nodes' configs, the key. */
#include "tests/sim/world_internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void choose_options(struct world *world)
{
	struct world_options *o = &world->options;
	static const unsigned block_min[] = {1, 512, 4096};

	o->theme = (enum world_theme)world_random(world, world_chance(world, 40) ? 1 : THEMES);
	/* Most have two regions of the maps: what there is of content is copied and compared all the time. */
	o->size_bytes = world_chance(world, 10) ? (1 + world_random(world, 8)) << 20
						: (9 + world_random(world, 8)) << 17;
	if (world_chance(world, 30)) /* an end that is not a multiple of a chunk or region */
		o->size_bytes -= 4096 * world_random(world, 40);
	o->protocol = "ABCCC"[world_random(world, 5)];
	o->block_min_bytes = block_min[world_random(world, 3)];
	o->partial_sectors =
		o->theme != THEME_DISK && o->block_min_bytes == 1 && world_chance(world, 60);
	o->queue_depth = 1 + (unsigned)world_random(world, world_chance(world, 50) ? 4 : 32);
	o->write_max_bytes = 4096u << world_random(world, world_chance(world, 50) ? 3 : 6);
	o->staging_max_bytes = world_chance(world, 50) ? 0 : (64 + world_random(world, 4096)) << 10;
	o->preserve_max_bytes =
		world_chance(world, 60) ? 0 : (128 + world_random(world, 1024)) << 10;
	o->send_queue_max_bytes =
		world_chance(world, 50) ? 0 : (2048 + world_random(world, 4096)) << 10;
	/* The volumes are small: catch-up over blocks as they are would never be seen. */
	o->final_cut_max_bytes = world_chance(world, 30) ? 0 : (4 + world_random(world, 512)) << 10;
	o->keep_last = world_chance(world, 50) ? 0 : 1 + (unsigned)world_random(world, 4);
	if (world_chance(world, 50)) {
		o->max_lag_bytes = world_chance(world, 80) ? 4096u << world_random(world, 7) : 0;
		o->max_lag_ns = world_chance(world, 30) ? WORLD_SECOND : 0;
		o->max_lag_leave = world_chance(world, 60);
	}
	o->start_wait_ns = world_chance(world, 50) ? 0 : world_random(world, 4 * WORLD_SECOND);
	o->latency_percent = world_chance(world, 50) ? 0 : 110 + (unsigned)world_random(world, 200);
	o->strict = world_chance(world, 2);
	o->suspend = world_chance(world, 20);
	o->detach = o->theme == THEME_DISK || (o->theme == THEME_NONE && world_chance(world, 40));
	o->encrypted = world->seed % 3 == 0;
	if (world->seed % 5 < 2) {
		o->after_sb_0pri = (unsigned)(world->seed / 5 % AFTER_SB_0PRIS);
		o->after_sb_1pri = (unsigned)(world->seed / 15 % AFTER_SB_1PRIS);
	}
	o->keep = world->seed % 2;
	o->no_store = world->seed % 10 == 1;
	o->keep_within_ns = world->seed % 4 == 1 ? 2 * WORLD_SECOND : 0;
}

/* A fault of the config, not of the world: what is slow, small or often. */
static void choose_more_options(struct world *world)
{
	struct world_options *o = &world->options;
	uint64_t *rates[] = {&o->stream_rate, &o->catch_up_rate, &o->snapshot_rate, &o->verify_rate,
			     &o->hydrate_rate};

	world->extra_state = world->seed * UINT64_C(0xa0761d6478bd642f) + 1;
	for (unsigned i = 0; i < sizeof(rates) / sizeof(rates[0]); i++)
		if (world_extra(world, 8) == 0)
			*rates[i] = RATE_MIN << world_extra(world, 6);
	if (world_extra(world, 5) == 0)
		o->peer_timeout_s =
			1 + (unsigned)world_extra(world, world_extra(world, 2) ? 8 : 60);
	if (world_extra(world, 10) == 0)
		o->snapshot_every_ns = (20 + world_extra(world, 100)) * WORLD_SECOND;
	o->fence = world_extra(world, 5) == 0;
	o->far = world_extra(world, 6) == 0;
	o->read_by_spec = world_extra(world, 2);
	o->slow_store = world_extra(world, 8) == 0;
	o->damage_ppm = world_extra(world, 8) ? 0 : 1 + (uint32_t)world_extra(world, 20000);
	o->strangers = world_extra(world, 10) == 0;
}

static void make_net_and_store(struct world *world)
{
	struct store_sim_options store;
	struct sim_net_options net;

	sim_net_get(world->sim, &net);
	if (world->options.far) {
		net.latency_min_ns = world_extra(world, 100000000);
		net.latency_max_ns = net.latency_min_ns + world_extra(world, 100000000);
		net.detour_max_ns = world_extra(world, 2) * world_extra(world, 300000000);
	}
	net.damage_ppm = world->options.damage_ppm;
	sim_net_set(world->sim, &net);
	store_sim_get_options(world->sim, WORLD_STORE, &store);
	if (world->options.slow_store) {
		store.stall_ppm = (uint32_t)world_extra(world, 100000);
		store.stall_max_ns = (1 + world_extra(world, 10)) * WORLD_SECOND;
	}
	store_sim_set_options(world->sim, WORLD_STORE, &store);
}

/* A file without a name, with the same content for all seeds. */
static void make_key(struct world *world)
{
	static const uint8_t key[32] = "a key for all simulated worlds.";

	world->key_fd = -1;
	if (!world->options.encrypted)
		return;
	world->key_fd = memfd_create("key", 0);
	if (world->key_fd < 0 || write(world->key_fd, key, sizeof(key)) != (ssize_t)sizeof(key))
		abort();
	snprintf(world->key_path, sizeof(world->key_path), "/proc/self/fd/%d", world->key_fd);
	world->key_file = world->key_path;
}

static void make_config(struct world *world, unsigned index)
{
	static const char *const names[] = {"a", "b"}, *const addresses[] = {"a:7000", "b:7000"};
	struct world_node *n = &world->nodes[index];
	const struct world_options *o = &world->options;

	n->world = world;
	n->index = index;
	n->env = sim_node(world->sim, names[index]);
	n->config = (struct config){
		.path = (char *)"simulated",
		.node = {.name = (char *)(uintptr_t)names[index],
			 .state_dir = (char *)"/var/offsite",
			 .peer_listen = (char *)(uintptr_t)addresses[index],
			 .peer_plaintext = true,
			 .log_level = ENV_LOG_INFO},
		.volumes = &n->volume,
		.volume_count = 1,
	};
	n->volume = (struct config_volume){
		.name = (char *)WORLD_VOLUME,
		.backing = (char *)WORLD_BACKING,
		.size_bytes = o->size_bytes,
		.primary = index == A,
		.peer = (char *)(uintptr_t)addresses[1 - index],
		.protocol = o->protocol,
		.staging_max_bytes = o->staging_max_bytes,
		.preserve_max_bytes = o->preserve_max_bytes,
		.final_cut_max_bytes = o->final_cut_max_bytes,
		.send_queue_max_bytes = o->send_queue_max_bytes,
		.suspend_on_loss = o->suspend,
		.after_sb_0pri = o->after_sb_0pri,
		.after_sb_1pri = o->after_sb_1pri,
		.max_lag_bytes = o->max_lag_bytes,
		.latency_percent = o->latency_percent,
		.max_lag_ns = o->max_lag_ns,
		.max_lag_action = o->max_lag_leave ? PACE_CATCH_UP : PACE_SLOW,
		.start_wait_ns = o->start_wait_ns,
		.block_min_bytes = o->block_min_bytes,
		.store = o->no_store ? NULL : (char *)WORLD_STORE,
		.store_key_file = (char *)(uintptr_t)world->key_file,
		.keep_last = o->keep_last,
		.keep_within_ns = o->keep_within_ns,
		.detach_on_error = o->detach,
		.compression_level = 1,
		.stream_rate = {.rate = o->stream_rate},
		.catch_up_rate = {.rate = o->catch_up_rate},
		.snapshot_rate = {.rate = o->snapshot_rate},
		.verify_rate_bytes = o->verify_rate,
		.hydrate_rate_bytes = o->hydrate_rate,
		.peer_timeout_s = o->peer_timeout_s,
		.snapshot_every_ns = o->snapshot_every_ns,
		.fence_command = o->fence ? (char *)"/fence" : NULL,
		.fence_timeout_ns = 30 * WORLD_SECOND,
	};
}

void world_new_pool(struct world *world)
{
	static const unsigned counts[3] = {WORLD_CLIENTS_MAX, WORLD_CLIENTS_MAX, WORLD_CLIENTS_MAX};

	world->pool = buf_pool_new(counts);
	if (world->pool == NULL)
		abort();
}

struct world *world_new(uint64_t seed, bool trace)
{
	struct world *world = calloc(1, sizeof(*world));

	if (world == NULL)
		abort();
	world->seed = seed;
	world->random_state = seed ^ UINT64_C(0x5851f42d4c957f2d);
	world->sim = sim_new(seed);
	if (trace)
		sim_trace(world->sim, stderr);
	choose_options(world);
	choose_more_options(world);
	make_net_and_store(world);
	make_key(world);
	world->size_bytes = world->options.size_bytes;
	world->model = model_new(world->size_bytes);
	for (unsigned i = 0; i < NODES; i++)
		make_config(world, i);
	if (world->options.strangers)
		world->stranger = sim_node(world->sim, "stranger");
	world_new_pool(world);
	sim_note(world->sim,
		 "rates %llu %llu %llu %llu %llu, peer-timeout %u, snapshot-every %llu s%s%s%s",
		 (unsigned long long)world->options.stream_rate,
		 (unsigned long long)world->options.catch_up_rate,
		 (unsigned long long)world->options.snapshot_rate,
		 (unsigned long long)world->options.verify_rate,
		 (unsigned long long)world->options.hydrate_rate, world->options.peer_timeout_s,
		 (unsigned long long)(world->options.snapshot_every_ns / WORLD_SECOND),
		 world->options.fence ? ", fence" : "", world->options.far ? ", far" : "",
		 world->options.slow_store ? ", slow store" : "");
	sim_note(world->sim,
		 "seed %llu: %llu bytes, protocol %c, block %u%s, depth %u, staging %llu, "
		 "preserve %llu, final %llu, queue %llu, lag %llu %s, keep %u%s, theme %u",
		 (unsigned long long)seed, (unsigned long long)world->options.size_bytes,
		 world->options.protocol, world->options.block_min_bytes,
		 world->options.partial_sectors ? " partial" : "", world->options.queue_depth,
		 (unsigned long long)world->options.staging_max_bytes,
		 (unsigned long long)world->options.preserve_max_bytes,
		 (unsigned long long)world->options.final_cut_max_bytes,
		 (unsigned long long)world->options.send_queue_max_bytes,
		 (unsigned long long)world->options.max_lag_bytes,
		 world->options.max_lag_leave ? "leave" : "slow", world->options.keep_last,
		 world->options.encrypted ? ", encrypted" : "", world->options.theme);
	return world;
}

void world_end(struct world *world)
{
	if (world->key_fd >= 0)
		close(world->key_fd);
}
