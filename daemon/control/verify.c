// SPDX-License-Identifier: Apache-2.0
/*
 * verify: the calls that begin and end a comparison with the peer.
 */
#include "daemon/control/internal.h"

enum control_outcome verify_post_start(struct control *control, struct control_request *request)
{
	struct node_volume *volume = api_find_replicated(control, request);
	const char *repair_from = NULL;
	json_int_t rate = -1;
	char why[512] = "";

	if (!volume || !BODY_UNPACK(control, request, "{s?s, s?I}", "repair_from", &repair_from,
				    "rate_bytes", &rate))
		return CONTROL_ANSWERED;
	if (rate < -1) {
		control_refuse(control, request, 400, "rate_bytes: negative");
		return CONTROL_ANSWERED;
	}
	int error = replication_verify(volume->replication, repair_from,
				       rate < 0 ? UINT64_MAX : (uint64_t)rate, why, sizeof(why));
	return api_answer_verb(control, request, volume, error, why);
}

enum control_outcome verify_post_cancel(struct control *control, struct control_request *request)
{
	struct node_volume *volume = api_find_replicated(control, request);
	char why[512] = "";

	if (!volume || !BODY_UNPACK(control, request, "{}"))
		return CONTROL_ANSWERED;
	int error = replication_verify_cancel(volume->replication, why, sizeof(why));
	return api_answer_verb(control, request, volume, error, why);
}
