# What evidence is worth: each rule below compares one verified claim with a fixed value or with what
# the owner registered under Trustee's name for it, and the worst rule of a part decides the part.
# What cannot be judged is not affirmed: 33 unrecognised executables, 36 unknown configuration, 97
# hardware that proves nothing. Simulated evidence keeps 97 for ever, since no hardware is behind it.
# A rule with `without` may lack a registered value, and the part is then worth that number; once a
# value is registered it must match.
package policy

trust_claims := {
	"executables": executables,
	"configuration": configuration,
	"hardware": hardware,
}

default executables := 33

executables := max(array.concat([3], weaker("executables"))) if passed("executables")

default configuration := 36

configuration := max(array.concat([2], weaker("configuration"))) if passed("configuration")

default hardware := 97

hardware := 2 if {
	kind in {"snp", "tdx"}
	passed("hardware")
}

families := {"snp": "snp", "sim-snp": "snp", "tdx": "tdx", "sim-tdx": "tdx", "sample": "sample"}

present := [name | some name, _ in families; input[name]]

# Evidence of two kinds at once is none.
kind := present[0] if count(present) == 1

rules := {
	"sample": [
		{"part": "executables", "path": ["launch_digest"], "reference": "launch_digest"},
		{"part": "configuration", "path": ["debug"], "value": false},
	],
	"snp": [
		{"part": "executables", "path": ["measurement"], "reference": "snp_launch_measurement"},
		{"part": "hardware", "path": ["reported_tcb_bootloader"], "reference": "snp_bootloader"},
		{"part": "hardware", "path": ["reported_tcb_microcode"], "reference": "snp_microcode"},
		{"part": "hardware", "path": ["reported_tcb_snp"], "reference": "snp_snp_svn"},
		{"part": "hardware", "path": ["reported_tcb_tee"], "reference": "snp_tee_svn"},
		{"part": "configuration", "path": ["policy_debug_allowed"], "value": false},
		{"part": "configuration", "path": ["policy_migrate_ma"], "value": false},
		{"part": "configuration", "path": ["platform_smt_enabled"], "reference": "snp_smt_enabled", "without": 3},
		{"part": "configuration", "path": ["platform_tsme_enabled"], "reference": "snp_tsme_enabled", "without": 3},
		{"part": "configuration", "path": ["policy_abi_major"], "reference": "snp_guest_abi_major", "without": 3},
		{"part": "configuration", "path": ["policy_abi_minor"], "reference": "snp_guest_abi_minor", "without": 3},
		{"part": "configuration", "path": ["policy_single_socket"], "reference": "snp_single_socket", "without": 3},
		{"part": "configuration", "path": ["policy_smt_allowed"], "reference": "snp_smt_allowed", "without": 3},
	],
	"tdx": [
		{"part": "executables", "path": ["quote", "body", "rtmr_1"], "reference": "rtmr_1"},
		{"part": "executables", "path": ["quote", "body", "rtmr_2"], "reference": "rtmr_2"},
		{"part": "executables", "path": ["uefi_event_logs"], "event": "kernel", "reference": "tdvfkernel", "without": 4},
		{"part": "executables", "path": ["uefi_event_logs"], "event": "parameters", "reference": "tdvfkernelparams", "without": 4},
		{"part": "hardware", "path": ["quote", "header", "tee_type"], "value": "81000000"},
		{"part": "hardware", "path": ["quote", "header", "vendor_id"], "value": "939a7233f79c4ca9940a0db3957f0607"},
		{"part": "hardware", "path": ["quote", "body", "mr_td"], "reference": "mr_td"},
		{"part": "hardware", "path": ["tcb_status"], "value": "UpToDate"},
		{"part": "hardware", "path": ["collateral_expiration_status"], "value": "0"},
		{"part": "configuration", "path": ["td_attributes", "debug"], "value": false},
		{"part": "configuration", "path": ["quote", "body", "xfam"], "reference": "xfam"},
	],
}

# One judgement for each rule of the kind.
judged := [judgement |
	some rule in rules[families[kind]]
	wanted := expected(rule)
	found := claim(rule)
	judgement := {"rule": rule, "wanted": wanted, "found": found, "holds": holds(rule, wanted, found)}
]

expected(rule) := [rule.value] if not rule.reference

expected(rule) := values(query_reference_value(rule.reference)) if rule.reference

values(value) := value if is_array(value)

values(value) := [] if is_null(value)

values(value) := [value] if {
	not is_array(value)
	not is_null(value)
}

claim(rule) := object.get(input[kind], rule.path, null) if not rule.event

claim(rule) := events[rule.event] if rule.event

default holds(_, _, _) := false

holds(rule, wanted, found) if {
	not rule.event
	found != null
	found in wanted
}

holds(rule, wanted, found) if {
	rule.event
	some digest in found
	digest in wanted
}

holds(rule, wanted, _) if {
	rule.without
	count(wanted) == 0
}

# An event's text counts only where its digest, which the hardware holds, was taken over it.
believed := [event |
	some event in object.get(input[kind], ["uefi_event_logs"], [])
	event.digest_matches_event == true
]

events["kernel"] := [digest.digest |
	some event in believed
	event.type_name == "EV_EFI_BOOT_SERVICES_APPLICATION"
	"File(kernel)" in event.details.device_paths
	some digest in event.digests
]

events["parameters"] := [digest.digest |
	some event in believed
	event.type_name == "EV_EVENT_TAG"
	event.details.string == "LOADED_IMAGE::LoadOptions"
	some digest in event.digests
]

passed(part) if {
	kind
	count([judgement | some judgement in judged; judgement.rule.part == part; not judgement.holds]) == 0
}

# What a part is worth where a value that may be missing is.
weaker(part) := [judgement.rule.without |
	some judgement in judged
	judgement.rule.part == part
	judgement.rule.without
	count(judgement.wanted) == 0
]

reasons contains {
	"claim": concat(".", array.concat([kind], judgement.rule.path)),
	"expected": wanted_text(judgement),
	"found": found_text(judgement),
	"fix": fix(judgement.rule),
} if {
	some judgement in judged
	not judgement.holds
}

reasons contains {
	"claim": kind,
	"expected": "evidence of a hardware TEE",
	"found": sprintf("simulated evidence of kind %s", [kind]),
	"fix": "run the guest in a TEE, or for development pin this kind in the release policy: kbs policy pin --tee KIND",
} if {
	not kind in {"snp", "tdx"}
}

reasons contains {
	"claim": "tee",
	"expected": "evidence of exactly one of snp, tdx, sim-snp, sim-tdx, sample",
	"found": concat(" ", [name | some name, _ in input]),
	"fix": "set an appraisal policy that judges this kind",
} if {
	count(present) != 1
}

wanted_text(judgement) := sprintf("a registered `%s`", [judgement.rule.reference]) if {
	judgement.rule.reference
	count(judgement.wanted) == 0
}

wanted_text(judgement) := concat(" or ", [sprintf("%v", [value]) | some value in judgement.wanted]) if {
	count(judgement.wanted) > 0
}

found_text(judgement) := "absent" if judgement.found in [null, []]

found_text(judgement) := sprintf("%v", [judgement.found]) if not judgement.found in [null, []]

fix(rule) := sprintf("start the guest with what is registered, or register the found value as reference value `%s` (%s)", [rule.reference, rule.part]) if rule.reference

fix(rule) := sprintf("the default policy fixes this value (%s): change the platform or the guest, or set an appraisal policy", [rule.part]) if not rule.reference
