# What evidence is worth: each judgement below compares one verified claim with a fixed value, or with
# what the owner registered under Trustee's name for it, and a part is affirmed where all of its
# judgements hold. What cannot be judged is not affirmed: 33 unrecognised executables, 36 unknown
# configuration, 97 hardware that proves nothing. Simulated evidence keeps 97 for ever, since no hardware
# is behind it.
# A judgement that is optional holds where nothing is registered, and the part is then worth a little
# less (save for a TD without a value for RTMR0, which is worth the same); once a value is registered it
# must match. Written out rather than looped over: every attestation
# evaluates this, and a loop costs four times as much.
package policy

trust_claims := appraised.trust_claims

judgements := appraised.judgements

# Evidence of two kinds at once is none.
present := object.keys(input) & {"sample", "snp", "sim-snp", "tdx", "sim-tdx"}

appraised := sample if {
	present == {"sample"}
} else := snp("snp", []) if {
	present == {"snp"}
} else := tdx("tdx", []) if {
	present == {"tdx"}
} else := snp("sim-snp", [simulated("sim-snp")]) if {
	present == {"sim-snp"}
} else := tdx("sim-tdx", [simulated("sim-tdx")]) if {
	present == {"sim-tdx"}
} else := {
	"trust_claims": {"executables": 33, "configuration": 36, "hardware": 97},
	"judgements": [{
		"claim": "tee",
		"expected": "evidence of exactly one of snp, tdx, sim-snp, sim-tdx, sample",
		"found": object.keys(input),
		"holds": false,
		"rule": "appraised",
		"fix": "set an appraisal policy that judges this kind",
	}],
}

simulated(kind) := {
	"claim": kind,
	"expected": "evidence of a hardware TEE",
	"found": concat(" ", ["simulated evidence of kind", kind]),
	"holds": false,
	"rule": "hardware",
	"fix": "run the guest in a TEE, or for development pin this kind in the release policy: kbs policy pin --tee KIND",
}

sample := {
	"trust_claims": {
		"executables": {true: 3, false: 33}[h1],
		"configuration": {true: 2, false: 36}[h2],
		"hardware": 97,
	},
	"judgements": [
		simulated("sample"),
		{"claim": ["sample", "launch_digest"], "found": f1, "expected": r1, "holds": h1, "rule": "executables", "reference": "launch_digest"},
		{"claim": ["sample", "debug"], "found": f2, "expected": false, "holds": h2, "rule": "configuration"},
	],
} if {
	f1 := object.get(input.sample, "launch_digest", null)
	r1 := query_reference_values("launch_digest")
	h1 := f1 in r1
	f2 := object.get(input.sample, "debug", null)
	h2 := f2 == false
}

# `told` is what is already known against this kind. A claim that is absent is null, and matches nothing;
# the broker's own verifier leaves none out, so that it is asked without them first.
snp(kind, told) := judged if {
	judged := judged_snp(kind, told, input[kind])
} else := judged_snp(kind, told, object.union(absent, input[kind]))

absent := {
	"measurement": null,
	"reported_tcb_bootloader": null,
	"reported_tcb_microcode": null,
	"reported_tcb_snp": null,
	"reported_tcb_tee": null,
	"policy_debug_allowed": null,
	"policy_migrate_ma": null,
	"platform_smt_enabled": null,
	"platform_tsme_enabled": null,
	"policy_abi_major": null,
	"policy_abi_minor": null,
	"policy_single_socket": null,
	"policy_smt_allowed": null,
}

judged_snp(kind, told, e) := {
	"trust_claims": {
		"executables": {true: 3, false: 33}[h1],
		"configuration": {true: {true: 3, false: 2}[[] in [r8, r9, r10, r11, r12, r13]], false: 36}[{h6, h7, h8, h9, h10, h11, h12, h13} == {true}],
		"hardware": {true: 2, false: 97}[{h2, h3, h4, h5, told == []} == {true}],
	},
	"judgements": array.concat(told, [
		{"claim": [kind, "measurement"], "found": e.measurement, "expected": r1, "holds": h1, "rule": "executables", "reference": "snp_launch_measurement"},
		{"claim": [kind, "reported_tcb_bootloader"], "found": e.reported_tcb_bootloader, "expected": r2, "holds": h2, "rule": "hardware", "reference": "snp_bootloader"},
		{"claim": [kind, "reported_tcb_microcode"], "found": e.reported_tcb_microcode, "expected": r3, "holds": h3, "rule": "hardware", "reference": "snp_microcode"},
		{"claim": [kind, "reported_tcb_snp"], "found": e.reported_tcb_snp, "expected": r4, "holds": h4, "rule": "hardware", "reference": "snp_snp_svn"},
		{"claim": [kind, "reported_tcb_tee"], "found": e.reported_tcb_tee, "expected": r5, "holds": h5, "rule": "hardware", "reference": "snp_tee_svn"},
		{"claim": [kind, "policy_debug_allowed"], "found": e.policy_debug_allowed, "expected": false, "holds": h6, "rule": "configuration"},
		{"claim": [kind, "policy_migrate_ma"], "found": e.policy_migrate_ma, "expected": false, "holds": h7, "rule": "configuration"},
		{"claim": [kind, "platform_smt_enabled"], "found": e.platform_smt_enabled, "expected": r8, "holds": h8, "rule": "configuration", "reference": "snp_smt_enabled"},
		{"claim": [kind, "platform_tsme_enabled"], "found": e.platform_tsme_enabled, "expected": r9, "holds": h9, "rule": "configuration", "reference": "snp_tsme_enabled"},
		{"claim": [kind, "policy_abi_major"], "found": e.policy_abi_major, "expected": r10, "holds": h10, "rule": "configuration", "reference": "snp_guest_abi_major"},
		{"claim": [kind, "policy_abi_minor"], "found": e.policy_abi_minor, "expected": r11, "holds": h11, "rule": "configuration", "reference": "snp_guest_abi_minor"},
		{"claim": [kind, "policy_single_socket"], "found": e.policy_single_socket, "expected": r12, "holds": h12, "rule": "configuration", "reference": "snp_single_socket"},
		{"claim": [kind, "policy_smt_allowed"], "found": e.policy_smt_allowed, "expected": r13, "holds": h13, "rule": "configuration", "reference": "snp_smt_allowed"},
	]),
} if {
	r1 := query_reference_values("snp_launch_measurement")
	h1 := e.measurement in r1
	r2 := query_reference_values("snp_bootloader")
	h2 := e.reported_tcb_bootloader in r2
	r3 := query_reference_values("snp_microcode")
	h3 := e.reported_tcb_microcode in r3
	r4 := query_reference_values("snp_snp_svn")
	h4 := e.reported_tcb_snp in r4
	r5 := query_reference_values("snp_tee_svn")
	h5 := e.reported_tcb_tee in r5
	h6 := e.policy_debug_allowed == false
	h7 := e.policy_migrate_ma == false
	r8 := query_reference_values("snp_smt_enabled")
	h8 := true in [r8 == [], e.platform_smt_enabled in r8]
	r9 := query_reference_values("snp_tsme_enabled")
	h9 := true in [r9 == [], e.platform_tsme_enabled in r9]
	r10 := query_reference_values("snp_guest_abi_major")
	h10 := true in [r10 == [], e.policy_abi_major in r10]
	r11 := query_reference_values("snp_guest_abi_minor")
	h11 := true in [r11 == [], e.policy_abi_minor in r11]
	r12 := query_reference_values("snp_single_socket")
	h12 := true in [r12 == [], e.policy_single_socket in r12]
	r13 := query_reference_values("snp_smt_allowed")
	h13 := true in [r13 == [], e.policy_smt_allowed in r13]
}

# RTMR0 is judged with the executables: its ACPI tables are code that the guest's kernel runs.
tdx(kind, told) := {
	"trust_claims": {
		"executables": {true: {true: 4, false: 3}[[] in [r3, r4]], false: 33}[{h0, h1, h2, h3, h4} == {true}],
		"configuration": {true: 2, false: 36}[{h10, h11} == {true}],
		"hardware": {true: 2, false: 97}[{h5, h6, h7, h8, h9, told == []} == {true}],
	},
	"judgements": array.concat(told, [
		{"claim": [kind, "quote", "body", "rtmr_0"], "found": f0, "expected": r0, "holds": h0, "rule": "executables", "reference": "rtmr_0"},
		{"claim": [kind, "quote", "body", "rtmr_1"], "found": f1, "expected": r1, "holds": h1, "rule": "executables", "reference": "rtmr_1"},
		{"claim": [kind, "quote", "body", "rtmr_2"], "found": f2, "expected": r2, "holds": h2, "rule": "executables", "reference": "rtmr_2"},
		{"claim": [kind, "uefi_event_logs", "kernel"], "found": f3, "expected": r3, "holds": h3, "rule": "executables", "reference": "tdvfkernel"},
		{"claim": [kind, "uefi_event_logs", "parameters"], "found": f4, "expected": r4, "holds": h4, "rule": "executables", "reference": "tdvfkernelparams"},
		{"claim": [kind, "quote", "header", "tee_type"], "found": f5, "expected": "81000000", "holds": h5, "rule": "hardware"},
		{"claim": [kind, "quote", "header", "vendor_id"], "found": f6, "expected": "939a7233f79c4ca9940a0db3957f0607", "holds": h6, "rule": "hardware"},
		{"claim": [kind, "quote", "body", "mr_td"], "found": f7, "expected": r7, "holds": h7, "rule": "hardware", "reference": "mr_td"},
		{"claim": [kind, "tcb_status"], "found": f8, "expected": "UpToDate", "holds": h8, "rule": "hardware"},
		{"claim": [kind, "collateral_expiration_status"], "found": f9, "expected": "0", "holds": h9, "rule": "hardware"},
		{"claim": [kind, "td_attributes", "debug"], "found": f10, "expected": false, "holds": h10, "rule": "configuration"},
		{"claim": [kind, "quote", "body", "xfam"], "found": f11, "expected": r11, "holds": h11, "rule": "configuration", "reference": "xfam"},
	]),
} if {
	e := input[kind]
	f0 := object.get(e, ["quote", "body", "rtmr_0"], null)
	f1 := object.get(e, ["quote", "body", "rtmr_1"], null)
	f2 := object.get(e, ["quote", "body", "rtmr_2"], null)
	f5 := object.get(e, ["quote", "header", "tee_type"], null)
	f6 := object.get(e, ["quote", "header", "vendor_id"], null)
	f7 := object.get(e, ["quote", "body", "mr_td"], null)
	f8 := object.get(e, ["tcb_status"], null)
	f9 := object.get(e, ["collateral_expiration_status"], null)
	f10 := object.get(e, ["td_attributes", "debug"], null)
	f11 := object.get(e, ["quote", "body", "xfam"], null)
	logs := object.get(e, "uefi_event_logs", [])
	f3 := kernel(logs)
	f4 := parameters(logs)
	r0 := query_reference_values("rtmr_0")
	h0 := true in [r0 == [], f0 in r0]
	r1 := query_reference_values("rtmr_1")
	h1 := f1 in r1
	r2 := query_reference_values("rtmr_2")
	h2 := f2 in r2
	r3 := query_reference_values("tdvfkernel")
	h3 := true in [r3 == [], f3 & {digest | some digest in r3} != set()]
	r4 := query_reference_values("tdvfkernelparams")
	h4 := true in [r4 == [], f4 & {digest | some digest in r4} != set()]
	h5 := f5 == "81000000"
	h6 := f6 == "939a7233f79c4ca9940a0db3957f0607"
	r7 := query_reference_values("mr_td")
	h7 := f7 in r7
	h8 := f8 == "UpToDate"
	h9 := f9 == "0"
	h10 := f10 == false
	r11 := query_reference_values("xfam")
	h11 := f11 in r11
}

# An event's text counts only where its digest, which the hardware holds, was taken over it.
kernel(logs) := {digest.digest |
	some event in logs
	event.type_name == "EV_EFI_BOOT_SERVICES_APPLICATION"
	event.digest_matches_event == true
	"File(kernel)" in event.details.device_paths
	some digest in event.digests
}

parameters(logs) := {digest.digest |
	some event in logs
	event.type_name == "EV_EVENT_TAG"
	event.digest_matches_event == true
	event.details.string == "LOADED_IMAGE::LoadOptions"
	some digest in event.digests
}
