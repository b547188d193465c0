# SPDX-License-Identifier: Apache-2.0
# man.awk: turns the Markdown of docs/man into man(7), with any awk:
#   awk -f packaging/man.awk docs/man/offsite.1.md > offsite.1
# Knows what stands there: "% NAME(SECTION) SOURCE", "# HEADING", paragraphs, definitions (a line, and
# below it one that begins with ":   "), code indented by four blanks, **bold**, *italic*, `code`.

# Text as troff takes it literally; in what is typed, a minus is no hyphen.
function literal(text, typed) {
	gsub(/\\/, "\\e", text)
	if (typed)
		gsub(/-/, "\\-", text)
	return text
}

function inline(text, out, at, font) {
	out = ""
	font = "R"
	while (match(text, /\*\*|\*|`[^`]*`/)) {
		out = out literal(substr(text, 1, RSTART - 1), font != "R")
		at = substr(text, RSTART, RLENGTH)
		text = substr(text, RSTART + RLENGTH)
		if (at ~ /^`/) {
			out = out "\\fB" literal(substr(at, 2, length(at) - 2), 1) "\\f" font
			continue
		}
		at = at == "**" ? "B" : "I"
		font = font == at ? "R" : at
		out = out "\\f" font
	}
	return line_start(out literal(text, font != "R"))
}

# A dot or quote in front would be a request.
function line_start(text) {
	return text ~ /^[.']/ ? "\\&" text : text
}

# The line held back: only the next one tells whether it is a term.
function flush_held() {
	if (held == "")
		return
	if (fresh)
		print ".PP"
	if (heading == "NAME")
		sub(/ - /, " \\- ", held) # what whatis(1) looks for
	print heading == "NAME" ? held : inline(held)
	held = ""
	fresh = 0
}

function end_code() {
	if (code)
		print ".EE\n.RE"
	code = 0
}

BEGIN { fresh = 0 }

/^% / {
	title = $2
	section = title
	sub(/\(.*/, "", title)
	gsub(/.*\(|\)/, "", section)
	printf ".TH %s %s \"\" \"%s\"\n", title, section, $3
	next
}

/^# / {
	flush_held()
	end_code()
	heading = substr($0, 3)
	print ".SH " heading
	fresh = 0
	next
}

/^$/ {
	flush_held()
	gap = 1
	fresh = 1
	next
}

/^:   / {
	print ".TP\n" inline(held)
	held = ""
	print inline(substr($0, 5))
	fresh = 1
	next
}

/^    / {
	flush_held()
	if (!code)
		print ".PP\n.RS 4\n.EX"
	else if (gap)
		print ""
	code = 1
	gap = 0
	print line_start(literal(substr($0, 5), 1))
	next
}

{
	flush_held()
	end_code()
	gap = 0
	held = $0
}

END {
	flush_held()
	end_code()
}
