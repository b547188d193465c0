/* SPDX-License-Identifier: Apache-2.0 */
/* replication_pair.c in the simulator. */
#define WORLD_SIM
#include "tests/unit/replication_pair.c"
