// SPDX-License-Identifier: Apache-2.0
/*
 * Promises 3 and 4 by readers of their own (spec.h): what lies on the disks and in the store has to say the same
 * to whoever reads it by the specifications.
 */
#include "tests/sim/check_internal.h"

#include <stdlib.h>
#include <string.h>

#include "tests/sim/spec.h"

enum sim_crash check_power_cut(struct world *world)
{
	static const enum sim_crash modes[] = {SIM_CRASH_POWER, SIM_CRASH_POWER,
					       SIM_CRASH_POWER_DROP, SIM_CRASH_POWER_KEEP,
					       SIM_CRASH_KILL};

	return modes[world_random(world, 5)];
}

bool check_marked(struct volume *volume, enum volume_consumer consumer, uint64_t offset)
{
	uint64_t start, length;

	return offset < volume_size_bytes(volume) &&
	       volume_dirty_next(volume, consumer, offset, &start, &length) && start <= offset &&
	       offset < start + length;
}

bool check_pages_equal(const uint8_t *a, const uint8_t *b, size_t length)
{
	static const uint8_t zeroes[4096];

	if (a == b)
		return true;
	return memcmp(a != NULL ? a : zeroes, b != NULL ? b : zeroes, length) == 0;
}

bool check_blocks_equal(const struct inode *a, const struct inode *b, uint64_t at)
{
	return check_pages_equal(sim_file_page(a, at / 4096), sim_file_page(b, at / 4096), 4096);
}

/* ---- promise 3 ------------------------------------------------------------------------------------------ */

struct powered_off {
	struct sim *sim;
	struct env *env;
	struct spec_volume volume;
	const struct inode *disk;
	bool known; /* it has metadata */
};

static struct powered_off power_off(struct world *world, unsigned index)
{
	struct powered_off p = {.sim = sim_new(world_random(world, 0))};

	p.env = sim_node_copy(p.sim, "copy", world->nodes[index].env, check_power_cut(world));
	p.known = spec_volume_read(p.env, WORLD_STATE, &p.volume) &&
		  !(p.volume.flags & SPEC_CREATING);
	p.disk = sim_file_find(p.env, WORLD_BACKING);
	return p;
}

static bool same_history(const struct spec_volume *own, const struct spec_volume *peer)
{
	static const uint8_t none[16];

	return memcmp(peer->current, none, 16) != 0 &&
	       (memcmp(peer->current, own->current, 16) == 0 ||
		memcmp(peer->current, own->base, 16) == 0);
}

/* What the peer lacks is marked here, or there what came apart. */
static void check_peer_on_disk(struct world *world, const struct powered_off *own)
{
	struct powered_off peer = power_off(world, 1 - world->primary);
	const struct spec_volume *p = &peer.volume;
	uint64_t size = own->volume.size_bytes;

	/* What its log holds is not on its disk yet; and otherwise all of it will be sent. */
	if (!peer.known || p->disk == SPEC_INCONSISTENT || (p->flags & SPEC_APPLYING) ||
	    peer.disk == NULL || !same_history(&own->volume, p))
		size = 0;
	if (size > p->size_bytes)
		size = p->size_bytes;
	for (uint64_t at = 0; at < size; at += 4096)
		if (!check_blocks_equal(own->disk, peer.disk, at) &&
		    !spec_dirty(&own->volume, WORLD_STATE, SPEC_PEER, at) &&
		    !spec_dirty(p, WORLD_STATE, SPEC_PEER, at))
			world_fail(world,
				   "promise 3, by the specification: block at %llu differs on the "
				   "peer and is not dirty on the disk",
				   (unsigned long long)at);
	sim_free(peer.sim);
}

/* What the snapshot lacks that the store's map is relative to is marked. */
static void check_store_on_disk(struct world *world, const struct powered_off *own)
{
	const struct spec_volume *v = &own->volume;
	uint64_t size;
	uint8_t *content;
	char why[256];

	if (!spec_snapshot_exists(world->sim, WORLD_STORE, v->uuid, v->snapshot))
		return;
	content = spec_snapshot_read(world->sim, WORLD_STORE, v->uuid, v->snapshot, &size, why,
				     sizeof(why));
	if (content == NULL)
		world_fail(world, "promise 4, by the specification: %s", why);
	for (uint64_t at = 0; at < v->size_bytes; at += 4096)
		if (!check_pages_equal(sim_file_page(own->disk, at / 4096),
				       at < size ? content + at : NULL, 4096) &&
		    !spec_dirty(v, WORLD_STATE, SPEC_STORE, at))
			world_fail(world,
				   "promise 3, by the specification: block at %llu differs from "
				   "the snapshot and is not dirty for the store on the disk",
				   (unsigned long long)at);
	free(content);
}

void check_maps_on_disk(struct world *world)
{
	struct world_node *n = &world->nodes[world->primary];
	struct powered_off own;

	if (n->content_lost || n->rolling_back)
		return;
	own = power_off(world, world->primary);
	if (own.known && own.disk != NULL && own.volume.primary &&
	    own.volume.disk != SPEC_INCONSISTENT &&
	    !(own.volume.flags & (SPEC_AT_PEER | SPEC_HYDRATING))) {
		check_peer_on_disk(world, &own);
		if (world->key_file == NULL && !world->options.no_store && world_chance(world, 30))
			check_store_on_disk(world, &own);
	}
	sim_free(own.sim);
}

/* ---- promise 4 ------------------------------------------------------------------------------------------ */

static const uint8_t *content_page(const void *context, uint64_t index)
{
	return (const uint8_t *)context + index * 4096;
}

void check_snapshot_by_spec(struct world *world, const uint8_t volume[16],
			    const uint8_t snapshot[16], uint32_t from, uint32_t to)
{
	struct model_image image = {.page = content_page};
	char why[1024] = "";
	uint8_t *content = spec_snapshot_read(world->sim, WORLD_STORE, volume, snapshot,
					      &image.size_bytes, why, sizeof(why));

	image.context = content;
	if (content == NULL || !model_check_point(world->model, &image, from, to, why, sizeof(why)))
		world_fail(world, "promise 4, by the specification: %s", why);
	free(content);
}
