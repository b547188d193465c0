/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attach_wishes: what the configuration wants attached (attach = yes): looked at every second, and attached whenever it
 * can be opened. What cannot be attached is tried again after a pause that grows; what was detached by hand stays away
 * until it could not be opened.
 */
#ifndef OFFSITE_NBD_SERVER_ATTACH_WISHES_H
#define OFFSITE_NBD_SERVER_ATTACH_WISHES_H

#include "nbd-server/attach_device.h"

struct attach_wishes;

/* attach: what carries them out; owner: of its devices. NULL without memory. */
struct attach_wishes *attach_wishes_new(struct attach *attach, const struct attach_owner *owner);
void attach_wishes_free(struct attach_wishes *wishes); /* stopped */

void attach_wishes_start(struct attach_wishes *wishes);
void attach_wishes_stop(struct attach_wishes *wishes);
/* It is being detached by hand. */
void attach_wishes_hold(struct attach_wishes *wishes, const char *name);

#endif
