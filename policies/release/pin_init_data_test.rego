package policy_test

import data.policy

pinned := "0000000000000000000000000000000000000000000000000000000000000000"

token(kind, digest) := {"submods": {"cpu0": {
	"ear.status": "contraindicated",
	"ear.appraisal-policy-id": "default",
	"ear.veraison.annotated-evidence": {kind: {"svn": "1"}, "init_data": digest},
}}}

failed(guest) := [judgement |
	found := policy.judgements with input as guest with data.plugin as "resource"
	some judgement in found
	not judgement.holds
]

test_the_pinned_guest_gets_a_resource if {
	policy.allow with input as token("sample", pinned) with data.plugin as "resource"
	failed(token("sample", pinned)) == []
}

test_another_init_data_is_refused_and_named if {
	not policy.allow with input as token("sample", "11") with data.plugin as "resource"
	[judgement] := failed(token("sample", "11"))
	judgement.found == "11"
	judgement.expected == pinned
}

test_no_init_data_is_refused if {
	bare := {"submods": {"cpu0": {
		"ear.status": "contraindicated",
		"ear.appraisal-policy-id": "default",
		"ear.veraison.annotated-evidence": {"sample": {"svn": "1"}},
	}}}
	not policy.allow with input as bare with data.plugin as "resource"
	[judgement] := failed(bare)
	judgement.found == "absent"
}

test_another_kind_is_refused_and_named if {
	not policy.allow with input as token("snp", pinned) with data.plugin as "resource"
	[judgement] := failed(token("snp", pinned))
	judgement.expected == "sample"
	judgement.found == {"snp"}
}

test_a_policy_that_the_guest_chose_is_refused_and_named if {
	guest := {"submods": {"cpu0": object.union(
		token("sample", pinned).submods.cpu0,
		{"ear.appraisal-policy-id": "lenient"},
	)}}
	not policy.allow with input as guest with data.plugin as "resource"
	[judgement] := failed(guest)
	judgement.found == "lenient"
}

test_another_plugin_is_refused if {
	not policy.allow with input as token("sample", pinned) with data.plugin as "other"
}

test_an_empty_token_is_refused_with_judgements if {
	not policy.allow with input as {} with data.plugin as "resource"
	count(failed({})) == 4
}
