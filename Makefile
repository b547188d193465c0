# SPDX-License-Identifier: Apache-2.0
# `make help` lists the targets. Everything built goes below $(BUILD).

BUILD  ?= build
PREFIX ?= /usr/local
CC     ?= cc
SAN    ?=
WERROR ?=
V      ?=
DEBUG  ?= -g
OPT    ?= -O2 $(DEBUG)

PKGS := liburing libcurl openssl libnl-3.0 libnl-genl-3.0 libmicrohttpd jansson inih libzstd libisal
# Evaluated only when something is compiled: `make deps` has to work without any of them.
PKG_CFLAGS = $(eval PKG_CFLAGS := $$(shell pkg-config --cflags $(PKGS)))$(PKG_CFLAGS)
PKG_LIBS   = $(eval PKG_LIBS := $$(shell pkg-config --libs $(PKGS)) -laio -lm -pthread)$(PKG_LIBS)

VERSION := 0.1.0

CFLAGS_ALL = -std=gnu17 $(OPT) -D_GNU_SOURCE -I. -DOFFSITE_VERSION='"$(VERSION)"' -pthread \
	-fno-strict-aliasing -fno-omit-frame-pointer \
	-Wall -Wextra -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith \
	-Wno-unused-parameter $(if $(WERROR),-Werror) \
	$(if $(SAN),-fsanitize=$(SAN) -fno-sanitize-recover=all) $(DEFS) $(PKG_CFLAGS) $(CFLAGS)
LDFLAGS_ALL = $(if $(SAN),-fsanitize=$(SAN)) $(LDFLAGS)

Q := $(if $(V),,@)
say = $(if $(V),@:,@printf '  %-6s %s\n' $(1) $(2))

# One archive a folder. Who may use whom: DEPS below, in link order.
protocol_SRC    := $(wildcard protocol/*.c)
io_SRC          := $(wildcard daemon/io/*.c)
nbd_SRC         := $(wildcard nbd-server/*.c)
volume_SRC      := $(wildcard daemon/volume/*.c)
replication_SRC := $(wildcard daemon/replication/*.c)
store_SRC       := $(wildcard daemon/store/*.c)
snapshot_SRC    := $(wildcard daemon/snapshot/*.c)
config_SRC      := $(wildcard daemon/config*.c)
node_SRC        := $(wildcard daemon/node/*.c)
control_SRC     := $(wildcard daemon/control/*.c)
sim_SRC         := $(wildcard tests/sim/env_sim*.c tests/sim/store_sim*.c) tests/sim/mutation.c
libs := protocol io nbd volume replication store snapshot config node control sim

protocol_DEPS    := protocol
io_DEPS          := io protocol
nbd_DEPS         := nbd io protocol
volume_DEPS      := volume io protocol
replication_DEPS := replication volume io protocol
store_DEPS       := store io protocol
snapshot_DEPS    := snapshot store volume io protocol
config_DEPS      := config store io protocol
node_DEPS        := node replication snapshot store volume config io protocol
control_DEPS     := control nbd $(node_DEPS)
sim_DEPS         := sim io protocol

obj = $(patsubst %.c,$(BUILD)/%.o,$(1))
archives = $(foreach l,$(1),$(BUILD)/lib$(l).a)

.PHONY: all help deps deps-test run test unit sim system vm vm-long fuzz bench install clean lint format
all: $(BUILD)/offsited $(BUILD)/offsite ## Build the daemon and the command (default)

help: ## List the targets
	@echo 'Targets:'; awk -F':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  %-14s %s\n",$$1,$$2}' $(filter Makefile%,$(MAKEFILE_LIST))
	@echo 'Variables: BUILD=build PREFIX=/usr/local DESTDIR= CC=cc SAN=address,undefined WERROR=1 V=1'

define archive
$(BUILD)/lib$(1).a: $$(call obj,$$($(1)_SRC))
	$$(call say,AR,$$@)
	$$(Q)rm -f $$@ && ar rcs $$@ $$^
endef
$(foreach l,$(libs),$(eval $(call archive,$(l))))

$(BUILD)/%.o: %.c
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS_ALL) -MMD -MP -c -o $@ $<

link = $(Q)$(CC) $(LDFLAGS_ALL) -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(PKG_LIBS)

$(BUILD)/offsited: $(call obj,daemon/main.c) $(call archives,$(control_DEPS))
	$(call say,LINK,$@)
	$(link)
$(BUILD)/offsite: $(call obj,$(wildcard cli/*.c)) $(call archives,snapshot store volume config io protocol)
	$(call say,LINK,$@)
	$(link)

# Unit tests: tests/unit/MODULE_what.c is linked with the archives of MODULE_DEPS (and the simulator
# where the name ends in _sim).
unit_SRC := $(wildcard tests/unit/*.c)
unit_BIN := $(patsubst tests/unit/%.c,$(BUILD)/tests/unit/%,$(unit_SRC))
# What takes time in them is in the archives; to optimize them takes longer than they run.
$(BUILD)/tests/unit/%.o: OPT = -O0 $(DEBUG)
module_of = $(firstword $(subst _, ,$(notdir $(1))))
define unit_rule
$(BUILD)/tests/unit/$(1): $(BUILD)/tests/unit/$(1).o $(call archives,$($(call module_of,$(1))_DEPS) $(if $(filter %_sim,$(1)),sim))
	$$(call say,LINK,$$@)
	$$(link) -lcmocka
endef
$(foreach t,$(patsubst tests/unit/%.c,%,$(unit_SRC)),$(eval $(call unit_rule,$(t))))

sim_WRAP := -Wl,--wrap=mmap,--wrap=munmap,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=free,--wrap=hook_run
$(BUILD)/tests/sim/sim: $(call obj,$(filter-out $(sim_SRC),$(wildcard tests/sim/*.c))) \
		$(call archives,sim $(node_DEPS))
	$(call say,LINK,$@)
	$(link) $(sim_WRAP)

# The same with the faults of daemon/mutate.h in them. Objects without such a place are the ones that are there; the
# others stand before the archives, so that the linker takes them.
mutated_SRC := $(shell grep -rlwE 'MUTATE|OFFSITE_MUTATIONS' --include='*.c' daemon tests/sim)
mutated_OBJ := $(patsubst %.c,$(BUILD)/mutated/%.o,$(mutated_SRC))
$(BUILD)/mutated/%.o: %.c
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS_ALL) -DOFFSITE_MUTATIONS -MMD -MP -c -o $@ $<
$(BUILD)/mutated/sim: $(call obj,$(filter-out $(sim_SRC) $(mutated_SRC),$(wildcard tests/sim/*.c))) \
		$(mutated_OBJ) $(call archives,sim $(node_DEPS))
	$(call say,LINK,$@)
	$(link) $(sim_WRAP)
$(BUILD)/mutated/%: $(BUILD)/tests/unit/%.o $(filter $(BUILD)/mutated/daemon/%,$(mutated_OBJ)) \
		$(call archives,sim $(node_DEPS))
	$(call say,LINK,$@)
	$(link) -lcmocka

# Helper programs of the system tests and the benchmarks.
tool_SRC := $(wildcard tests/system/*.c bench/*.c)
tool_BIN := $(patsubst %.c,$(BUILD)/%,$(tool_SRC))
$(tool_BIN): $(BUILD)/%: $(BUILD)/%.o $(call archives,nbd volume io protocol)
	$(call say,LINK,$@)
	$(link) $(TOOL_LIBS)

# A daemon whose kernel is a program: what it attaches is handed to nbd_device. Its object stands before the archives, so
# that the linker takes it instead of nbd-server/kernel.c.
device_BIN := $(addprefix $(BUILD)/tests/device/,offsited nbd_device)
$(BUILD)/tests/device/offsited: $(call obj,daemon/main.c tests/device/kernel.c) \
		$(call archives,$(control_DEPS))
	$(call say,LINK,$@)
	$(link)
$(BUILD)/tests/device/nbd_device: $(call obj,tests/device/nbd_device.c)
	$(call say,LINK,$@)
	$(link)

fuzz_SRC := $(wildcard tests/fuzz/*.c)
fuzz_BIN := $(patsubst %.c,$(BUILD)/%,$(fuzz_SRC))

-include Makefile.targets
-include $(shell test -d $(BUILD) && find $(BUILD) -name '*.d')

clean: ## Remove everything built
	rm -rf $(BUILD)
