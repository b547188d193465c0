/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mutation: deliberate faults in the engine, compiled in with -DOFFSITE_MUTATIONS only. Each place is
 * marked MUTATE(name) (daemon/mutate.h); one at a time is switched on, and the simulator must catch
 * it: that is how it is known that the checks can fail. In unit tests MUTATION=name in the environment
 * switches one on (mutations.sh).
 */
#ifndef OFFSITE_TESTS_SIM_MUTATION_H
#define OFFSITE_TESTS_SIM_MUTATION_H

#include <stdbool.h>

void mutation_set(const char *name); /* NULL: none, whatever the environment says */
bool mutation_is_active(const char *name);

#endif
