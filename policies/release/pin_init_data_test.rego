package policy_test

import data.policy

pinned := "0000000000000000000000000000000000000000000000000000000000000000"

token(kind, digest) := {"submods": {"cpu0": {
	"ear.status": "contraindicated",
	"ear.veraison.annotated-evidence": {kind: {"svn": "1"}, "init_data": digest},
}}}

test_the_pinned_guest_gets_a_resource if {
	policy.allow with input as token("sample", pinned) with data.plugin as "resource"
}

test_another_init_data_is_refused_and_named if {
	not policy.allow with input as token("sample", "11") with data.plugin as "resource"
	found := policy.reasons with input as token("sample", "11") with data.plugin as "resource"
	count(found) == 1
	some reason in found
	reason.found == "11"
	reason.expected == pinned
}

test_no_init_data_is_refused if {
	bare := {"submods": {"cpu0": {"ear.veraison.annotated-evidence": {"sample": {"svn": "1"}}}}}
	not policy.allow with input as bare with data.plugin as "resource"
}

test_another_kind_is_refused_and_named if {
	not policy.allow with input as token("snp", pinned) with data.plugin as "resource"
	found := policy.reasons with input as token("snp", pinned) with data.plugin as "resource"
	some reason in found
	reason.expected == "sample"
	reason.found == "snp"
}

test_an_empty_token_is_refused_with_reasons if {
	not policy.allow with input as {} with data.plugin as "resource"
	found := policy.reasons with input as {} with data.plugin as "resource"
	count(found) > 0
}
