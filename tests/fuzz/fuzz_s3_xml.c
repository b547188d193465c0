/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzes the reading of a service's answers: the first bytes choose the element, the rest is the text. What is
 * found lies within the input, and the rest behind it.
 */
#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "daemon/store/s3_xml.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const names[] = {"Contents", "Key", "Error", "a"};
	const char *begin = (const char *)data + 1, *end = (const char *)data + size;
	struct s3_xml rest, content;
	const char *name;
	char text[64];

	if (!size)
		return 0;
	name = names[data[0] % 4];
	rest = (struct s3_xml){begin, size - 1};
	while (s3_xml_next(&rest, name, &content)) {
		assert(content.text >= begin && content.text + content.length <= rest.text);
		assert(rest.text > begin && rest.text + rest.length == end);
		begin = rest.text;
		if (s3_xml_text(content, "Key", text, sizeof(text)))
			assert(strlen(text) < sizeof(text));
	}
	assert(rest.text == begin);
	return 0;
}
