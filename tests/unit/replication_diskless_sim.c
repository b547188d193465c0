/* SPDX-License-Identifier: Apache-2.0 */
/* replication_diskless.c in the simulator: errors of the disk and crashes too. */
#define WORLD_SIM
#include "tests/unit/replication_diskless.c"
