/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mutate: places where the code can be broken on purpose, to prove that the simulator notices.
 * MUTATE(name) is false in every normal build; with -DOFFSITE_MUTATIONS the harness decides.
 */
#ifndef OFFSITE_MUTATE_H
#define OFFSITE_MUTATE_H

#include <stdbool.h>

#ifdef OFFSITE_MUTATIONS
bool mutation_is_active(const char *name);
#define MUTATE(name) mutation_is_active(#name)
#else
#define MUTATE(name) false
#endif

#endif
