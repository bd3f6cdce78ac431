package policy_test

import data.policy

token(status, kind) := {"submods": {"cpu0": {
	"ear.status": status,
	"ear.appraisal-policy-id": "default",
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

part(status, appraiser, kind) := {
	"ear.status": status,
	"ear.appraisal-policy-id": appraiser,
	"ear.veraison.annotated-evidence": {kind: {}},
}

test_every_part_must_be_good if {
	good := part("affirming", "default", "snp")
	policy.allow with input as {"submods": {"cpu0": good, "gpu0": part("affirming", "default", "nvidia")}}
		with data.plugin as "resource"
	every bad in [
		part("warning", "default", "nvidia"),
		part("affirming", "lenient", "nvidia"),
		part("affirming", "default_gpu", "nvidia"),
		part("affirming", null, "nvidia"),
		{},
	] {
		policy.allow == false with input as {"submods": {"cpu0": good, "gpu0": bad}}
			with data.plugin as "resource"
	}
}

test_a_policy_that_the_guest_chose_is_named if {
	guest := {"submods": {"cpu0": part("affirming", "lenient", "snp")}}
	found := policy.judgements with input as guest with data.plugin as "resource"
	[failed] := [judgement | some judgement in found; not judgement.holds]
	failed.claim == ["submods", "cpu0", "ear.appraisal-policy-id"]
	failed.found == "lenient"
}

test_another_plugin_is_refused if {
	not policy.allow with input as token("affirming", "snp") with data.plugin as "other"
}

test_each_cause_is_named if {
	found := policy.judgements with input as token("contraindicated", "sample") with data.plugin as "resource"
	{judgement.claim | some judgement in found; not judgement.holds} == {
		["submods", "cpu0", "ear.status"],
		["submods", "cpu0", "ear.veraison.annotated-evidence"],
	}
}
