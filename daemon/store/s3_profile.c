/* SPDX-License-Identifier: Apache-2.0 */
/* See s3_profile.h. */
#include "daemon/store/s3_profile.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *trim(char *text)
{
	size_t length;

	while (isspace((unsigned char)*text))
		text++;
	length = strlen(text);
	while (length && isspace((unsigned char)text[length - 1]))
		text[--length] = '\0';
	return text;
}

static bool is_section(char *line, const char *section)
{
	char *end = strchr(line, ']');

	if (!end)
		return false;
	*end = '\0';
	return !strcmp(trim(line + 1), section);
}

char *s3_profile_read(const char *path, const char *section, const char *name, bool *found)
{
	FILE *file = fopen(path, "re");
	char *line = NULL, *value = NULL;
	size_t room = 0;
	bool inside = false;

	if (found)
		*found = false;
	if (!file)
		return NULL;
	while (!value && getline(&line, &room, file) >= 0) {
		char *equals;

		if (*line == '[') {
			inside = is_section(line, section);
			if (inside && found)
				*found = true;
			continue;
		}
		equals = strchr(line, '=');
		if (!inside || !equals || isspace((unsigned char)*line) || *line == '#' ||
		    *line == ';')
			continue;
		*equals = '\0';
		if (!strcmp(trim(line), name))
			value = strdup(trim(equals + 1));
	}
	free(line);
	fclose(file);
	return value;
}
