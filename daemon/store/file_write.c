/* SPDX-License-Identifier: Apache-2.0 */
/* See file_write.h. */
#include "daemon/store/file_write.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PIECE_BYTES  (1024u * 1024) /* of one write */
#define GENTLE_BYTES (256u * 1024)  /* what others may have to wait for on the disk */
#define GRID_BYTES   4096u /* of memory and file, past the page cache: all devices have it */

/* An object on its way: its content is gathered piece by piece, then written. */
struct writing {
	int fd;
	bool direct; /* past the page cache */
	bool gentle;
	const struct iovec *iov; /* what is left, and how much of the first is gone */
	unsigned count;
	size_t at;
	uint8_t *piece;
	size_t piece_bytes;
	uint64_t offset;
};

static void set_direct(struct writing *w, bool direct)
{
	int flags = fcntl(w->fd, F_GETFL);

	w->direct = flags >= 0 &&
		    !fcntl(w->fd, F_SETFL, direct ? flags | O_DIRECT : flags & ~O_DIRECT) && direct;
}

/* How much of the next piece there is. */
static size_t gather(struct writing *w)
{
	size_t length = 0;

	while (w->count && length < w->piece_bytes) {
		size_t left = w->iov->iov_len - w->at, room = w->piece_bytes - length;
		size_t now = left < room ? left : room;

		memcpy(w->piece + length, (const char *)w->iov->iov_base + w->at, now);
		length += now;
		w->at += now;
		if (w->at < w->iov->iov_len)
			break;
		w->iov++;
		w->count--;
		w->at = 0;
	}
	return length;
}

static int put_bytes(struct writing *w, const uint8_t *data, size_t length)
{
	while (length) {
		ssize_t done = pwrite(w->fd, data, length, (off_t)w->offset);

		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0 && errno == EINVAL && w->direct) { /* it cannot after all */
			set_direct(w, false);
			continue;
		}
		if (done < 0)
			return -errno;
		data += done;
		length -= (size_t)done;
		w->offset += (uint64_t)done;
	}
	return 0;
}

/* The end of an object is off the grid. */
static int put_piece(struct writing *w, size_t length)
{
	size_t even = w->direct ? length - length % GRID_BYTES : length;
	int error = put_bytes(w, w->piece, even);

	if (error || even == length)
		return error;
	set_direct(w, false);
	return put_bytes(w, w->piece + even, length - even);
}

static uint64_t monotonic_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Has what was written last on the disk before there is more of it, and leaves the disk alone for as long as that
 * took: an fsync of all at the end would be a queue that others stand behind. An error of what was written is told
 * once: the fsync at the end does not say it again. */
static int make_room(struct writing *w, uint64_t begun_ns, size_t length)
{
	uint64_t took;
	struct timespec pause;

	if (!w->direct && sync_file_range(w->fd, (off_t)(w->offset - length), (off_t)length,
					  SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
						  SYNC_FILE_RANGE_WAIT_AFTER))
		return errno == ENOSYS || errno == EINVAL || errno == ESPIPE ? 0 : -errno;
	took = monotonic_ns() - begun_ns;
	pause = (struct timespec){(time_t)(took / 1000000000u), (long)(took % 1000000000u)};
	nanosleep(&pause, NULL);
	return 0;
}

static int put_all(struct writing *w)
{
	size_t length;

	while ((length = gather(w))) {
		uint64_t begun = monotonic_ns();
		int error = put_piece(w, length);

		if (!error && w->gentle)
			error = make_room(w, begun, length);
		if (error)
			return error;
	}
	return 0;
}

int file_write(int fd, const struct iovec *iov, unsigned count, bool gentle)
{
	struct writing w = {.fd = fd, .gentle = gentle, .iov = iov, .count = count};
	size_t total = 0;
	int error;

	for (unsigned i = 0; i < count; i++)
		total += iov[i].iov_len;
	if (!total)
		return 0;
	w.piece_bytes = gentle ? GENTLE_BYTES : PIECE_BYTES;
	if (total < w.piece_bytes)
		w.piece_bytes = total;
	w.piece = mmap(NULL, w.piece_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		       0);
	if (w.piece == MAP_FAILED)
		return -ENOMEM;
	set_direct(&w, total >= GENTLE_BYTES);
	error = put_all(&w);
	munmap(w.piece, w.piece_bytes);
	return error;
}
