# Releases only to guests of one kind whose launch bound one init-data. Since init-data holds the
# agent's policy and the broker's identity, this pins what the guest obeys.
# The two values below are what the owner pins; a simulated kind is accepted only when it is the one.
package policy

expected_init_data := "0000000000000000000000000000000000000000000000000000000000000000"
expected_tee := "sample"

default allow := false

allow if {judgement.holds | some judgement in judgements} == {true}

cpu := object.get(object.get(input, "submods", {}), "cpu0", {})

evidence := object.get(cpu, "ear.veraison.annotated-evidence", {})

# A simulated kind is never affirmed: to pin it is to accept it as it is.
statuses := ["affirming"] if {
	not expected_tee in {"sample", "sampledevice", "sim-snp", "sim-tdx"}
} else := ["affirming", "warning", "contraindicated", "none"]

judgements := [
	{
		"claim": "data.plugin",
		"expected": "resource",
		"found": data.plugin,
		"holds": data.plugin == "resource",
		"fix": "this policy releases resources only: write a rule for this plugin",
	},
	{
		"claim": "submods.cpu0.ear.veraison.annotated-evidence",
		"expected": expected_tee,
		"found": kinds,
		"holds": expected_tee in kinds,
		"fix": "start the pod in this kind of TEE, or pin the kind that it has: kbs policy pin --tee KIND",
	},
	{
		"claim": "submods.cpu0.ear.veraison.annotated-evidence.init_data",
		"expected": expected_init_data,
		"found": init_data,
		"holds": lower(init_data) == expected_init_data,
		"fix": "start the pod with the init-data that has this digest, or pin the digest of the one that it has: kbs policy pin --init-data-digest HEX",
	},
	{
		"claim": "submods.cpu0.ear.appraisal-policy-id",
		"expected": "default",
		"found": appraiser,
		"holds": appraiser == "default",
		"fix": "start the pod without a policy selector, or set a release policy that accepts this appraisal policy by name",
	},
	{
		"claim": "submods.cpu0.ear.status",
		"expected": statuses,
		"found": status,
		"holds": status in statuses,
		"fix": "register reference values for what this guest runs",
	},
] if {
	kinds := object.keys(evidence) - {"report_data", "init_data", "runtime_data_claims", "init_data_claims"}
	init_data := object.get(evidence, "init_data", "absent")
	appraiser := object.get(cpu, "ear.appraisal-policy-id", null)
	status := object.get(cpu, "ear.status", null)
}
