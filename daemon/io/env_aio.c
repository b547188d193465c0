/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The libaio + epoll backend, for hosts that switch io_uring off.
 */
#include <errno.h>
#include "daemon/io/env_real.h"

int aio_new(unsigned threads, struct env **env, const char **why)
{
	*why = "libaio";
	return -EOPNOTSUPP;
}
