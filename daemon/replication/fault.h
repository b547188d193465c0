/* SPDX-License-Identifier: Apache-2.0 */
/* MUTATE(name): faults built in on purpose, to see the tests fail; false in every real build. */
#ifndef OFFSITE_REPLICATION_FAULT_H
#define OFFSITE_REPLICATION_FAULT_H

#if __has_include("daemon/mutate.h")
#include "daemon/mutate.h"
#endif
#ifndef MUTATE
#define MUTATE(name) false
#endif

#endif
