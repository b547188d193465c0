/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scenario: one seed's story. A phase with faults, in which anything may happen at any time, then
 * one without, in which everything must come right within a bound.
 */
#ifndef OFFSITE_TESTS_SIM_SCENARIO_H
#define OFFSITE_TESTS_SIM_SCENARIO_H

#include "tests/sim/world.h"

void scenario_run(struct world *world);

#endif
