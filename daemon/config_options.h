/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config_options: the one table of the config's options: what each is called, what kind of value it takes,
 * where that is stored, its default and its help. Inside daemon/config*.c.
 */
#ifndef OFFSITE_CONFIG_OPTIONS_H
#define OFFSITE_CONFIG_OPTIONS_H

#include <stddef.h>

#include "daemon/config.h"

enum section_kind { SECTION_NONE, SECTION_NODE, SECTION_VOLUME, SECTION_UNKNOWN };

enum option_type {
	TYPE_NAME,      /* char *: [A-Za-z0-9._-]{1,48} */
	TYPE_TEXT,      /* char * */
	TYPE_PATH,      /* char *: absolute */
	TYPE_SOCKET,    /* char *: absolute, short enough for a unix socket */
	TYPE_LISTEN,    /* char *: address, port 0 allowed */
	TYPE_ADDRESS,   /* char *: address */
	TYPE_ADDRESSES, /* char **: listening addresses separated by blanks */
	TYPE_HOST,      /* char *: host name or address without a port */
	TYPE_STORE,     /* char *: URL of an object store */
	TYPE_SIZE,      /* uint64_t, bytes */
	TYPE_BLOCKS,    /* uint64_t, bytes, multiple of 4096 */
	TYPE_FACTOR,    /* unsigned, in hundredths: 0, or 1.1 to 100 */
	TYPE_RATE,      /* struct rate_schedule */
	TYPE_DURATION,  /* uint64_t, nanoseconds */
	TYPE_NUMBER,    /* unsigned, min..max */
	TYPE_LEVEL,     /* int, min..max */
	TYPE_YESNO,     /* bool */
	TYPE_CHOICE,    /* enum or unsigned: the position in choices */
	TYPE_LETTER,    /* char: the choice itself */
	TYPE_SECOND,    /* bool: the second choice */
	TYPE_BLOCKSIZE, /* unsigned: the choice itself */
	TYPE_ATTACH,    /* int: no, yes, or a device's number */
};

struct config_option {
	enum section_kind section;
	const char *name;
	enum option_type type;
	size_t offset;
	const char *fallback; /* the default; NULL: none */
	const char *help;
	const char *const *choices;
	unsigned min, max;
};

#define CONFIG_OPTIONS_MAX 160u
extern const struct config_option config_options[];
extern const size_t config_option_count; /* <= CONFIG_OPTIONS_MAX */

/* NULL: there is none of that name. */
const struct config_option *config_option_find(enum section_kind section, const char *name);
/* The one that is written most like it, or NULL; the same of NULL-terminated words. */
const struct config_option *config_option_nearest(enum section_kind section, const char *name);
const char *config_nearest(const char *const *choices, const char *text);
/* Checks text and stores it in the field of base that the option names. NULL, or what is wrong. */
const char *config_option_set(const struct config_option *option, void *base, const char *text);
/* "OPTION = VALUE: what is wrong", with what would be right. */
void config_option_explain(const struct config_option *option, const char *value, const char *wrong,
			   char *text, size_t size);
/* Frees the texts of a section's struct. */
void config_options_free(enum section_kind section, void *base);

#endif
