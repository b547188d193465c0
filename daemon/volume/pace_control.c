/* SPDX-License-Identifier: Apache-2.0 */
/* Background work by the clients' latency. See pace_control.h. */
#include "daemon/volume/pace_control.h"

#include "daemon/io/rate.h"

#define START_RATE  (8ull << 20)
#define STEP_RATE   (1ull << 20)
#define WRITES_MIN  10u /* fewer in a long window: no client is at work */
#define WRITES_FIRM 50u /* so many tell a p99 */
#define WINDOW_LONG 4u  /* calls in which a window ends whatever it has */
#define PROBE_EVERY 40u /* windows */
#define MAX_RATE    (1ull << 40)

static const char *const reasons[] = {
	[PACE_FREE] = "no client writes",
	[PACE_SETTLE] = "measuring without it",
	[PACE_PROBE] = "measuring without it",
	[PACE_RUN] = "write latency",
};

const char *pace_control_reason(const struct pace_control *control)
{
	return control->percent ? reasons[control->state] : "off";
}

void pace_control_set(struct pace_control *control, unsigned percent, uint64_t min_rate)
{
	control->percent = percent;
	control->min_rate = min_rate > RATE_MIN ? min_rate : RATE_MIN;
	if (!percent)
		control->state = PACE_FREE;
	if (control->rate < control->min_rate)
		control->rate = control->min_rate;
}

static void set_state(struct pace_control *control, enum pace_state state)
{
	control->state = state;
	control->windows = 0;
}

void pace_control_begin(struct pace_control *control)
{
	set_state(control, PACE_FREE);
	control->rate = control->min_rate > START_RATE ? control->min_rate : START_RATE;
	control->slow_start = true;
	control->known = false;
	control->calls = 0;
}

void pace_control_begin_probing(struct pace_control *control)
{
	pace_control_begin(control);
	if (control->percent)
		set_state(control, PACE_PROBE);
}

static uint64_t clamp(const struct pace_control *control, uint64_t rate)
{
	if (rate > MAX_RATE)
		rate = MAX_RATE;
	return rate > control->min_rate ? rate : control->min_rate;
}

/* Slowly where it was too much the last time. */
static uint64_t growth(const struct pace_control *control)
{
	uint64_t rate = control->rate, top = control->too_much;

	if (control->slow_start)
		return rate;
	if (rate >= top - top / 8 && rate < top + top / 8)
		return rate / 128 + STEP_RATE / 16;
	return rate / 16 + STEP_RATE;
}

/* Whether clients waited longer than so many hundredths of what they wait without it. */
static bool beyond(const struct pace_control *control, const struct pace_window *window,
		   unsigned percent)
{
	return (__uint128_t)window->p99_ns * 100 > (__uint128_t)control->baseline_ns * percent;
}

static void adapt(struct pace_control *control, const struct pace_window *window)
{
	uint64_t passed =
		window->length_ns
			? (uint64_t)((__uint128_t)window->bytes * 1000000000u / window->length_ns)
			: 0;

	if (beyond(control, window, control->percent)) {
		uint64_t from = passed < control->rate ? passed : control->rate;
		control->slow_start = false;
		control->too_much = from;
		/* Far beyond it is not worth many windows to find out. */
		control->rate = clamp(control, beyond(control, window, 2 * control->percent)
						       ? from / 2
						       : from / 4 * 3);
		return;
	}
	/* Twice the rate would be beyond the factor: from here in steps. */
	if (control->slow_start && beyond(control, window, (100 + control->percent) / 2)) {
		control->slow_start = false;
		control->too_much = 2 * control->rate;
	}
	if (passed >= control->rate / 4 * 3) /* it was this that held it back */
		control->rate = clamp(control, control->rate + growth(control));
}

bool pace_control_window(struct pace_control *control, const struct pace_window *window)
{
	control->calls++;
	if (window->writes < WRITES_FIRM && control->calls < WINDOW_LONG)
		return false; /* go on with it */
	control->calls = 0;
	control->p99_ns = window->p99_ns;
	if (!control->percent || window->writes < WRITES_MIN) {
		set_state(control, PACE_FREE);
		return true;
	}
	switch (control->state) {
	case PACE_FREE:
		set_state(control, control->known ? PACE_RUN : PACE_SETTLE);
		break;
	case PACE_SETTLE: /* what was under way at the pause is in this window */
		set_state(control, PACE_PROBE);
		break;
	case PACE_PROBE:
		control->baseline_ns = control->known ? (control->baseline_ns + window->p99_ns) / 2
						      : window->p99_ns;
		control->known = true;
		set_state(control, PACE_RUN);
		break;
	case PACE_RUN:
		adapt(control, window);
		if (++control->windows >= PROBE_EVERY)
			set_state(control, PACE_SETTLE);
		break;
	}
	return true;
}

bool pace_control_paused(const struct pace_control *control)
{
	return control->state == PACE_SETTLE || control->state == PACE_PROBE;
}

uint64_t pace_control_rate(const struct pace_control *control)
{
	return control->state == PACE_RUN ? control->rate : 0;
}
