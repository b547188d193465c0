/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control_http: a plain HTTP client over a unix socket, for tests: it can also send what no library
 * would.
 */
#ifndef OFFSITE_TESTS_CONTROL_HTTP_H
#define OFFSITE_TESTS_CONTROL_HTTP_H

#include <jansson.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int http_connect(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address))) {
		close(fd);
		return -1;
	}
	return fd;
}

/* Sends bytes, reads the answer to its end (or 20 s); the caller's. "" if there was none. */
static char *http_raw(const char *path, const void *bytes, size_t length)
{
	size_t got = 0, size = 1 << 20;
	char *text = malloc(size + 1);
	int fd = http_connect(path);
	ssize_t n;

	text[0] = 0;
	if (fd < 0)
		return text;
	while (length) {
		n = send(fd, bytes, length, MSG_NOSIGNAL);
		if (n <= 0)
			break; /* refused in the middle: the answer may be there */
		bytes = (const char *)bytes + n;
		length -= (size_t)n;
	}
	shutdown(fd, SHUT_WR);
	while (got < size) {
		struct pollfd wait = {.fd = fd, .events = POLLIN};

		if (poll(&wait, 1, 70000) <= 0)
			break;
		n = read(fd, text + got, size - got);
		if (n <= 0)
			break;
		got += (size_t)n;
	}
	text[got] = 0;
	close(fd);
	return text;
}

/* One request; the status and the body (the caller's, NULL if it is no JSON; *text if wanted). */
static int http_call(const char *socket_path, const char *method, const char *path,
		     const char *body, json_t **json, char **text)
{
	char *request = NULL, *answer, *content;
	int status = 0, length;

	length = asprintf(&request,
			  "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
			  "Content-Length: %zu\r\n\r\n%s",
			  method, path, body ? strlen(body) : 0, body ? body : "");
	answer = http_raw(socket_path, request, (size_t)length);
	free(request);
	if (sscanf(answer, "HTTP/1.1 %d", &status) != 1)
		status = 0;
	content = strstr(answer, "\r\n\r\n");
	content = content ? content + 4 : answer + strlen(answer);
	if (json)
		*json = json_loads(content, 0, NULL);
	if (text)
		*text = strdup(content);
	free(answer);
	return status;
}

#endif
