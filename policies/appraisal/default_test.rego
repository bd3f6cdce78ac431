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

# Of a TD whose other values are registered, RTMR0 counts from its first reference value on.

test_a_td_is_affirmed_where_no_rtmr_0_is_registered if {
	claims := policy.trust_claims with input as {"tdx": td} with data.references as registered
	claims == {"executables": 4, "configuration": 2, "hardware": 2}
}

test_a_td_is_affirmed_with_a_registered_rtmr_0 if {
	all := object.union(registered, {"rtmr_0": ["0f", "00"]})
	claims := policy.trust_claims with input as {"tdx": td} with data.references as all
	claims == {"executables": 4, "configuration": 2, "hardware": 2}
}

test_a_td_with_another_rtmr_0_than_registered_is_refused_for_it_alone if {
	all := object.union(registered, {"rtmr_0": ["0f"]})
	claims := policy.trust_claims with input as {"tdx": td} with data.references as all
	claims == {"executables": 33, "configuration": 2, "hardware": 2}
	judged := policy.judgements with input as {"tdx": td} with data.references as all
	{judgement.reference | some judgement in judged; not judgement.holds} == {"rtmr_0"}
}

test_a_td_without_rtmr_0_is_refused_where_one_is_registered if {
	all := object.union(registered, {"rtmr_0": ["00"]})
	body := object.remove(td.quote.body, ["rtmr_0"])
	quote := {"header": td.quote.header, "body": body}
	bare := object.union(object.remove(td, ["quote"]), {"quote": quote})
	claims := policy.trust_claims with input as {"tdx": bare} with data.references as all
	claims.executables == 33
}

test_an_rtmr_0_alone_affirms_nothing if {
	claims := policy.trust_claims with input as {"tdx": td} with data.references as {"rtmr_0": ["00"]}
	claims == {"executables": 33, "configuration": 36, "hardware": 97}
}

registered := {"rtmr_1": ["01"], "rtmr_2": ["02"], "mr_td": ["dd"], "xfam": ["e7"]}

td := {
	"quote": {
		"header": {"tee_type": "81000000", "vendor_id": "939a7233f79c4ca9940a0db3957f0607"},
		"body": {"rtmr_0": "00", "rtmr_1": "01", "rtmr_2": "02", "mr_td": "dd", "xfam": "e7"},
	},
	"tcb_status": "UpToDate",
	"collateral_expiration_status": "0",
	"td_attributes": {"debug": false},
}
