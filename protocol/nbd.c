// SPDX-License-Identifier: Apache-2.0
#include "protocol/nbd.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

/* ---- handshake ---------------------------------------------------------------------------- */

const char *nbd_client_flags_invalid(uint32_t flags)
{
	if (flags & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))
		return "unknown client flags";
	return NULL;
}

const char *nbd_option_header_invalid(const struct nbd_option_header *header)
{
	if (from_be64(header->magic) != NBD_MAGIC_OPTION)
		return "bad option magic";
	if (from_be32(header->length) > NBD_OPTION_DRAIN_MAX)
		return "option data far too long";
	return NULL;
}

const char *nbd_name_invalid(const char *name, size_t length)
{
	if (length > NBD_STRING_MAX)
		return "name longer than 4096 bytes";
	if (length > 0 && memchr(name, '\0', length))
		return "name with a NUL byte";
	return NULL;
}

/* Takes one length-prefixed string off *at. */
static bool take_string(const uint8_t **at, const uint8_t *end, const char **text, uint32_t *length)
{
	be32_t be;

	if ((size_t)(end - *at) < sizeof(be))
		return false;
	memcpy(&be, *at, sizeof(be));
	*at += sizeof(be);
	*length = from_be32(be);
	if ((size_t)(end - *at) < *length)
		return false;
	*text = (const char *)*at;
	*at += *length;
	return true;
}

const char *nbd_info_request_parse(const void *data, size_t length,
				   struct nbd_info_request *request)
{
	const uint8_t *at = data, *end = at + length;
	const char *reason;
	be16_t count;

	if (!take_string(&at, end, &request->name, &request->name_length))
		return "name does not fit the option";
	reason = nbd_name_invalid(request->name, request->name_length);
	if (reason)
		return reason;
	if ((size_t)(end - at) < sizeof(count))
		return "no count of information requests";
	memcpy(&count, at, sizeof(count));
	at += sizeof(count);
	request->count = from_be16(count);
	if ((size_t)(end - at) != request->count * sizeof(be16_t))
		return "information requests do not fit the option";
	request->types = (const be16_t *)at;
	return NULL;
}

bool nbd_info_wanted(const struct nbd_info_request *request, enum nbd_info type)
{
	for (unsigned i = 0; i < request->count; i++) {
		if (from_be16(request->types[i]) == (uint16_t)type)
			return true;
	}
	return false;
}

const char *nbd_meta_request_parse(const void *data, size_t length,
				   struct nbd_meta_request *request)
{
	const uint8_t *at = data, *end = at + length;
	const char *reason;
	be32_t count;

	if (!take_string(&at, end, &request->name, &request->name_length))
		return "name does not fit the option";
	reason = nbd_name_invalid(request->name, request->name_length);
	if (reason)
		return reason;
	if ((size_t)(end - at) < sizeof(count))
		return "no count of queries";
	memcpy(&count, at, sizeof(count));
	at += sizeof(count);
	request->count = from_be32(count);
	request->queries = at;
	request->end = end;
	/* Each query takes 4 bytes at least, so the data's limit bounds this loop. */
	for (uint32_t i = 0; i < request->count; i++) {
		const char *query;
		uint32_t query_length;

		if (!take_string(&at, end, &query, &query_length))
			return "queries do not fit the option";
		if (query_length > NBD_STRING_MAX)
			return "query longer than 4096 bytes";
		if (query_length == 0 || !memchr(query, ':', query_length))
			return "query without a namespace";
	}
	if (at != end)
		return "bytes after the last query";
	return NULL;
}

bool nbd_meta_query_next(struct nbd_meta_request *request, const char **query, size_t *length)
{
	uint32_t query_length;

	if (request->queries == request->end)
		return false;
	if (!take_string(&request->queries, request->end, query, &query_length))
		return false;
	*length = query_length;
	return true;
}

bool nbd_meta_query_names(const char *query, size_t length, const char *name, bool prefix_too)
{
	size_t name_length = strlen(name);

	if (length > name_length || memcmp(query, name, length) != 0)
		return false;
	return length == name_length ||
	       (prefix_too && (query[length - 1] == ':' || query[length - 1] == '='));
}

/* ---- transmission ------------------------------------------------------------------------- */

bool nbd_request_decode(const struct nbd_request_wire *wire, struct nbd_request *request)
{
	if (from_be32(wire->magic) != NBD_MAGIC_REQUEST)
		return false;
	request->flags = from_be16(wire->flags);
	request->type = from_be16(wire->type);
	request->cookie = from_be64(wire->cookie);
	request->offset = from_be64(wire->offset);
	request->length = from_be32(wire->length);
	return true;
}

/* What a command may carry and needs. FUA is allowed with every command once it was advertised. */
struct command_rule {
	const char *name;
	uint16_t needs; /* transmission flag that announced it; 0: always there */
	uint16_t flags; /* command flags beside FUA */
	bool writes;    /* refused on a read-only export */
	bool payload;   /* length limited to NBD_PAYLOAD_MAX */
	bool range;     /* offset and length name a part of the export */
	uint8_t beyond; /* enum nbd_error for a range past the end */
};

static const struct command_rule rules[NBD_COMMANDS] = {
	[NBD_CMD_READ] = {"READ", 0, NBD_CMD_FLAG_DF, false, true, true, NBD_EINVAL},
	[NBD_CMD_WRITE] = {"WRITE", 0, 0, true, true, true, NBD_ENOSPC},
	[NBD_CMD_DISC] = {"DISC", 0, 0, false, false, false, 0},
	[NBD_CMD_FLUSH] = {"FLUSH", NBD_FLAG_SEND_FLUSH, 0, false, false, false, 0},
	[NBD_CMD_TRIM] = {"TRIM", NBD_FLAG_SEND_TRIM, 0, true, false, true, NBD_EINVAL},
	[NBD_CMD_CACHE] = {"CACHE", NBD_FLAG_SEND_CACHE, 0, false, false, true, NBD_EINVAL},
	[NBD_CMD_WRITE_ZEROES] = {"WRITE_ZEROES", NBD_FLAG_SEND_WRITE_ZEROES,
				  NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO, true, false, true,
				  NBD_ENOSPC},
	[NBD_CMD_BLOCK_STATUS] = {"BLOCK_STATUS", 0, NBD_CMD_FLAG_REQ_ONE, false, false, true,
				  NBD_EINVAL},
};

static enum nbd_error check_flags(const struct nbd_request *request, const struct nbd_terms *terms,
				  const struct command_rule *rule, const char **reason)
{
	unsigned allowed = rule->flags;

	if (terms->transmission_flags & NBD_FLAG_SEND_FUA)
		allowed |= NBD_CMD_FLAG_FUA;
	if (!(terms->transmission_flags & NBD_FLAG_SEND_DF))
		allowed &= ~(unsigned)NBD_CMD_FLAG_DF;
	if (!(terms->transmission_flags & NBD_FLAG_SEND_FAST_ZERO))
		allowed &= ~(unsigned)NBD_CMD_FLAG_FAST_ZERO;
	if (request->flags & ~allowed) {
		*reason = "flag not allowed with this command";
		return NBD_EINVAL;
	}
	return NBD_OK;
}

static enum nbd_error check_range(const struct nbd_request *request, const struct nbd_terms *terms,
				  const struct command_rule *rule, const char **reason)
{
	if (request->offset > terms->size_bytes ||
	    request->length > terms->size_bytes - request->offset) {
		*reason = "beyond the end of the export";
		return rule->beyond;
	}
	if (request->length == 0) {
		*reason = "length is zero";
		return NBD_EINVAL;
	}
	if ((request->offset | request->length) & (terms->block_min_bytes - 1)) {
		*reason = "not a multiple of the minimum block size";
		return NBD_EINVAL;
	}
	return NBD_OK;
}

enum nbd_error nbd_request_check(const struct nbd_request *request, const struct nbd_terms *terms,
				 const char **reason)
{
	const struct command_rule *rule;
	enum nbd_error error;

	assert(terms->block_min_bytes > 0 &&
	       (terms->block_min_bytes & (terms->block_min_bytes - 1)) == 0);
	if (request->type >= NBD_COMMANDS || request->type == NBD_CMD_DISC) {
		*reason = "unknown command";
		return NBD_EINVAL;
	}
	rule = &rules[request->type];
	if (rule->writes && (terms->transmission_flags & NBD_FLAG_READ_ONLY)) {
		*reason = "the export is read-only";
		return NBD_EPERM;
	}
	if (rule->needs && !(terms->transmission_flags & rule->needs)) {
		*reason = "command not offered by this export";
		return NBD_EINVAL;
	}
	if (request->type == NBD_CMD_BLOCK_STATUS && !terms->contexts) {
		*reason = "no metadata context was selected";
		return NBD_EINVAL;
	}
	error = check_flags(request, terms, rule, reason);
	if (error)
		return error;
	if (rule->payload && request->length > NBD_PAYLOAD_MAX) {
		*reason = "longer than 32 MiB";
		return NBD_EINVAL;
	}
	if (rule->range)
		return check_range(request, terms, rule, reason);
	if (request->offset || request->length) {
		*reason = "offset and length must be zero";
		return NBD_EINVAL;
	}
	return NBD_OK;
}

enum nbd_error nbd_error_from_errno(int error, bool fast_zero)
{
	switch (-error) {
	case 0:
		return NBD_OK;
	case EPERM:
	case EACCES:
	case EROFS:
		return NBD_EPERM;
	case ENOMEM:
		return NBD_ENOMEM;
	case EINVAL:
		return NBD_EINVAL;
	case ENOSPC:
	case EDQUOT:
	case EFBIG:
		return NBD_ENOSPC;
	case EOVERFLOW:
		return NBD_EOVERFLOW;
	case ESHUTDOWN:
		return NBD_ESHUTDOWN;
	case EOPNOTSUPP:
		/* ENOTSUP belongs to FAST_ZERO alone; clients do not expect it elsewhere. */
		return fast_zero ? NBD_ENOTSUP : NBD_EINVAL;
	default:
		return NBD_EIO;
	}
}

const char *nbd_command_name(uint16_t type)
{
	return type < NBD_COMMANDS ? rules[type].name : "?";
}

const char *nbd_option_name(uint32_t option)
{
	static const char *const names[] = {
		[NBD_OPT_EXPORT_NAME] = "EXPORT_NAME",
		[NBD_OPT_ABORT] = "ABORT",
		[NBD_OPT_LIST] = "LIST",
		[NBD_OPT_STARTTLS] = "STARTTLS",
		[NBD_OPT_INFO] = "INFO",
		[NBD_OPT_GO] = "GO",
		[NBD_OPT_STRUCTURED_REPLY] = "STRUCTURED_REPLY",
		[NBD_OPT_LIST_META_CONTEXT] = "LIST_META_CONTEXT",
		[NBD_OPT_SET_META_CONTEXT] = "SET_META_CONTEXT",
	};

	if (option >= sizeof(names) / sizeof(names[0]) || !names[option])
		return "?";
	return names[option];
}

/* ---- encoding ----------------------------------------------------------------------------- */

size_t nbd_put_option_reply(void *to, uint32_t option, uint32_t type, uint32_t length)
{
	struct nbd_option_reply reply = {
		.magic = to_be64(NBD_MAGIC_OPTION_REPLY),
		.option = to_be32(option),
		.type = to_be32(type),
		.length = to_be32(length),
	};

	memcpy(to, &reply, sizeof(reply));
	return sizeof(reply);
}

size_t nbd_put_simple_reply(void *to, enum nbd_error error, uint64_t cookie)
{
	struct nbd_simple_reply reply = {
		.magic = to_be32(NBD_MAGIC_SIMPLE_REPLY),
		.error = to_be32(error),
		.cookie = to_be64(cookie),
	};

	memcpy(to, &reply, sizeof(reply));
	return sizeof(reply);
}

size_t nbd_put_chunk(void *to, uint16_t flags, uint16_t type, uint64_t cookie, uint32_t length)
{
	struct nbd_chunk chunk = {
		.magic = to_be32(NBD_MAGIC_CHUNK),
		.flags = to_be16(flags),
		.type = to_be16(type),
		.cookie = to_be64(cookie),
		.length = to_be32(length),
	};

	memcpy(to, &chunk, sizeof(chunk));
	return sizeof(chunk);
}

size_t nbd_put_chunk_data(void *to, uint16_t flags, uint64_t cookie, uint64_t offset,
			  uint32_t length)
{
	be64_t be = to_be64(offset);
	size_t n = nbd_put_chunk(to, flags, NBD_CHUNK_OFFSET_DATA, cookie,
				 length + (uint32_t)sizeof(be));

	memcpy((uint8_t *)to + n, &be, sizeof(be));
	return n + sizeof(be);
}

size_t nbd_put_chunk_status(void *to, uint16_t flags, uint64_t cookie, uint32_t context_id,
			    uint32_t count)
{
	be32_t be = to_be32(context_id);
	size_t n;

	assert(count > 0);
	n = nbd_put_chunk(to, flags, NBD_CHUNK_BLOCK_STATUS, cookie,
			  (uint32_t)(sizeof(be) + count * sizeof(struct nbd_status_extent)));
	memcpy((uint8_t *)to + n, &be, sizeof(be));
	return n + sizeof(be);
}

size_t nbd_put_chunk_error(void *to, uint64_t cookie, enum nbd_error error, const char *message)
{
	size_t length = strnlen(message, NBD_MESSAGE_MAX);
	struct nbd_chunk_error chunk;

	assert(error != NBD_OK);
	nbd_put_chunk(&chunk.chunk, NBD_CHUNK_FLAG_DONE, NBD_CHUNK_ERROR, cookie,
		      (uint32_t)(sizeof(chunk) - sizeof(chunk.chunk) + length));
	chunk.error = to_be32(error);
	chunk.message_length = to_be16((uint16_t)length);
	memcpy(to, &chunk, sizeof(chunk));
	memcpy((uint8_t *)to + sizeof(chunk), message, length);
	return sizeof(chunk) + length;
}
