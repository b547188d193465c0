/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kinds of values in a config file: each function returns NULL when the text is good (and its
 * value), else the reason, fit for "OPTION = TEXT: REASON".
 */
#ifndef OFFSITE_CONFIG_VALUES_H
#define OFFSITE_CONFIG_VALUES_H

#include <stdbool.h>
#include <stdint.h>

#define CONFIG_NAME_BYTES_MAX 48u
#define CONFIG_HOST_BYTES_MAX 253u

/* [A-Za-z0-9._-]{1,48}, but "." and "..". */
const char *config_name_invalid(const char *text);
/* Absolute paths; a socket's is at most 107 bytes long. */
const char *config_path_invalid(const char *text);
const char *config_socket_invalid(const char *text);
/* The forms of env_addr_check(). zero_allowed: port 0, for listening on any free one. */
const char *config_address_invalid(const char *text, bool zero_allowed);
/* A host name or address, without a port. */
const char *config_host_invalid(const char *text);
/* The host of a good address; false: it has none (a unix socket), or a monstrous one. */
bool config_address_host(const char *address, char host[CONFIG_HOST_BYTES_MAX + 1]);
/* The form of a store's URL; whether it can be opened is another matter. */
const char *config_store_invalid(const char *text);
/* Digits with K, M, G, T or P behind them (KiB, ...: the same), powers of 1024. */
const char *config_parse_size(const char *text, uint64_t *value);
/* The same, and a multiple of 4096. */
const char *config_parse_blocks(const char *text, uint64_t *value);
/* Digits and one of s m h d w; plain 0. */
const char *config_parse_duration(const char *text, uint64_t *value_ns);
/* 0, or 1.1 to 100 with up to two decimals; the value in hundredths. */
const char *config_parse_factor(const char *text, unsigned *hundredths);
const char *config_parse_number(const char *text, unsigned min, unsigned max, unsigned *value);
/* no (-2), yes (-1), or /dev/nbdN (N). */
const char *config_parse_attach(const char *text, int *index);
/* Position of text in the NULL-terminated choices. */
const char *config_parse_choice(const char *text, const char *const *choices, unsigned *index);

#endif
