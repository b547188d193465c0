/* SPDX-License-Identifier: Apache-2.0 */
/* The tests of io_stream.c on the simulator, whose network delivers in random small pieces. */
#define WORLD_SIM
#include "tests/unit/io_stream.c"
