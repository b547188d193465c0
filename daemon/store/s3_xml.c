/* SPDX-License-Identifier: Apache-2.0 */
/* See s3_xml.h. */
#include "daemon/store/s3_xml.h"

#include <stdint.h>
#include <string.h>

/* The tag "<NAME ...>" or, closing, "</NAME>" at or after from: its place and the one behind it. */
static bool find_tag(struct s3_xml xml, size_t from, const char *name, bool closing, size_t *begin,
		     size_t *end)
{
	size_t name_length = strlen(name), lead = closing ? 2 : 1;

	while (from < xml.length) {
		const char *open = memchr(xml.text + from, '<', xml.length - from);
		size_t at = open ? (size_t)(open - xml.text) : xml.length;
		const char *close;

		if (xml.length - at < lead + name_length + 1)
			return false;
		from = at + 1;
		if ((open[1] == '/') != closing || memcmp(open + lead, name, name_length) != 0 ||
		    !memchr(" \t\r\n/>", open[lead + name_length], 6))
			continue;
		close = memchr(open, '>', xml.length - at);
		if (!close)
			return false;
		*begin = at;
		*end = (size_t)(close - xml.text) + 1;
		return true;
	}
	return false;
}

bool s3_xml_next(struct s3_xml *rest, const char *name, struct s3_xml *content)
{
	size_t begin, end, close_begin, close_end;
	struct s3_xml inner;

	if (!find_tag(*rest, 0, name, false, &begin, &end))
		return false;
	if (rest->text[end - 2] == '/') {
		close_begin = close_end = end;
	} else if (!find_tag(*rest, end, name, true, &close_begin, &close_end)) {
		return false;
	}
	inner = (struct s3_xml){rest->text + end, close_begin - end};
	rest->text += close_end;
	rest->length -= close_end;
	*content = inner;
	return true;
}

static bool number_entity(const char *digits, size_t length, char *byte)
{
	unsigned value = 0, base = 10;

	if (length && *digits == 'x') {
		base = 16;
		digits++;
		length--;
	}
	if (!length || length > 3)
		return false;
	for (; length; length--, digits++) {
		char c = *digits;
		unsigned digit = c >= '0' && c <= '9'   ? (unsigned)(c - '0')
				 : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a' + 10)
				 : c >= 'A' && c <= 'F' ? (unsigned)(c - 'A' + 10)
							: 99;

		if (digit >= base)
			return false;
		value = value * base + digit;
	}
	*byte = (char)value;
	return value > 0 && value < 128;
}

static bool entity(const char *name, size_t length, char *byte)
{
	static const struct {
		const char *name;
		char byte;
	} known[] = {{"amp", '&'}, {"lt", '<'}, {"gt", '>'}, {"quot", '"'}, {"apos", '\''}};

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (strlen(known[i].name) == length && !memcmp(known[i].name, name, length)) {
			*byte = known[i].byte;
			return true;
		}
	return length > 1 && *name == '#' && number_entity(name + 1, length - 1, byte);
}

static bool decode(struct s3_xml content, char *text, size_t text_size)
{
	size_t used = 0;

	for (size_t i = 0; i < content.length; i++) {
		char byte = content.text[i];

		if (byte == '&') {
			const char *begin = content.text + i + 1;
			const char *end = memchr(begin, ';', content.length - i - 1);

			if (!end || !entity(begin, (size_t)(end - begin), &byte))
				return false;
			i = (size_t)(end - content.text);
		}
		if (!byte || content.text[i] == '<' || used + 1 >= text_size)
			return false;
		text[used++] = byte;
	}
	text[used] = '\0';
	return true;
}

bool s3_xml_text(struct s3_xml xml, const char *name, char *text, size_t text_size)
{
	struct s3_xml content;

	if (s3_xml_next(&xml, name, &content) && decode(content, text, text_size))
		return true;
	text[0] = '\0';
	return false;
}
