package policy_test

import data.policy

token(status, kind) := {"submods": {"cpu0": {
	"ear.status": status,
	"ear.veraison.annotated-evidence": {kind: {"svn": "1"}},
}}}

test_an_affirmed_guest_gets_a_resource if {
	policy.allow with input as token("affirming", "snp") with data.plugin as "resource"
}

test_a_contraindicated_guest_is_refused if {
	not policy.allow with input as token("contraindicated", "snp") with data.plugin as "resource"
}

test_a_warning_is_refused if {
	not policy.allow with input as token("warning", "tdx") with data.plugin as "resource"
}

test_an_unjudged_guest_is_refused if {
	not policy.allow with input as token("none", "tdx") with data.plugin as "resource"
	not policy.allow with input as {"submods": {}} with data.plugin as "resource"
	not policy.allow with input as {} with data.plugin as "resource"
}

test_simulated_evidence_is_refused_however_it_is_appraised if {
	not policy.allow with input as token("affirming", "sample") with data.plugin as "resource"
	not policy.allow with input as token("affirming", "sim-snp") with data.plugin as "resource"
}

test_one_bad_part_is_enough if {
	parts := {"submods": {
		"cpu0": {"ear.status": "affirming", "ear.veraison.annotated-evidence": {"snp": {}}},
		"gpu0": {"ear.status": "warning", "ear.veraison.annotated-evidence": {"nvidia": {}}},
	}}
	not policy.allow with input as parts with data.plugin as "resource"
}

test_another_plugin_is_refused if {
	not policy.allow with input as token("affirming", "snp") with data.plugin as "other"
}

test_each_cause_is_named if {
	found := policy.reasons with input as token("contraindicated", "sample") with data.plugin as "resource"
	{reason.claim | some reason in found} == {
		"submods.cpu0.ear.status",
		"submods.cpu0.ear.veraison.annotated-evidence.sample",
	}
}
