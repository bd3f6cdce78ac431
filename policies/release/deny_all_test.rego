package policy_test

import data.policy

affirmed := {"submods": {"cpu0": {
	"ear.status": "affirming",
	"ear.veraison.annotated-evidence": {"snp": {"measurement": "00"}},
}}}

test_even_the_best_guest_gets_nothing if not policy.allow with input as affirmed with data.plugin as "resource"

test_the_refusal_is_explained if count(policy.reasons) == 1
