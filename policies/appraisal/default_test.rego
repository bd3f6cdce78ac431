package policy_test

import data.policy

test_a_sample_is_contraindicated if {
	claims := policy.trust_claims with input as {"sample": {"svn": "1"}}
	claims.hardware == 97
}

test_unknown_evidence_is_not_affirmed if {
	claims := policy.trust_claims with input as {}
	every _, value in claims {
		value > 31
	}
}
