# Releases only to guests of one kind whose launch bound one init-data. Since init-data holds the
# agent's policy and the broker's identity, this pins what the guest obeys.
# The two values below are what the owner pins; a simulated kind is accepted only when it is the one.
package policy

expected_init_data := "0000000000000000000000000000000000000000000000000000000000000000"
expected_tee := "sample"

simulated := {"sample", "sampledevice", "sim-snp", "sim-tdx"}

# Members of the evidence that are no TEE.
common := {"report_data", "init_data", "runtime_data_claims", "init_data_claims"}

default allow := false

allow if {
	data.plugin == "resource"
	evidence[expected_tee]
	lower(evidence.init_data) == expected_init_data
	trusted
}

cpu := object.get(object.get(input, "submods", {}), "cpu0", {})

evidence := object.get(cpu, "ear.veraison.annotated-evidence", {})

status := object.get(cpu, "ear.status", "absent")

trusted if status == "affirming"

trusted if expected_tee in simulated

reasons contains {
	"claim": "submods.cpu0.ear.veraison.annotated-evidence",
	"expected": expected_tee,
	"found": concat(" ", object.keys(evidence) - common),
	"fix": "start the pod in this kind of TEE, or pin the kind that it has: kbs policy pin --tee KIND",
} if {
	not evidence[expected_tee]
}

reasons contains {
	"claim": "submods.cpu0.ear.veraison.annotated-evidence.init_data",
	"expected": expected_init_data,
	"found": found,
	"fix": "start the pod with the init-data that has this digest, or pin the digest of the one that it has: kbs policy pin --init-data-digest HEX",
} if {
	found := object.get(evidence, "init_data", "absent")
	lower(found) != expected_init_data
}

reasons contains {
	"claim": "submods.cpu0.ear.status",
	"expected": "affirming",
	"found": status,
	"fix": "register reference values for what this guest runs",
} if {
	not trusted
}

reasons contains {
	"claim": "data.plugin",
	"expected": "resource",
	"found": data.plugin,
	"fix": "this policy releases resources only: write a rule for this plugin",
} if {
	data.plugin != "resource"
}
