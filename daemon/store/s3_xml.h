/* SPDX-License-Identifier: Apache-2.0 */
/*
 * s3_xml: as much XML as the answers of an S3 service have: elements with text, without the nesting of
 * an element in one of its own name. Works on the bytes received; nothing is allocated, whatever
 * comes is survived.
 */
#ifndef OFFSITE_STORE_S3_XML_H
#define OFFSITE_STORE_S3_XML_H

#include <stdbool.h>
#include <stddef.h>

struct s3_xml {
	const char *text;
	size_t length;
};

/* Finds the next element of that name in *rest: its content in *content, *rest begins behind it. Both may be the same
 * object: then it is the content. */
bool s3_xml_next(struct s3_xml *rest, const char *name, struct s3_xml *content);
/* The text of the first element of that name, entities replaced. False, and "": there is none, or it does
 * not fit or is no text. */
bool s3_xml_text(struct s3_xml xml, const char *name, char *text, size_t text_size);

#endif
