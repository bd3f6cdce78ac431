# Releases to guests of which every part is affirmed by the appraisal and none is simulated.
# A part that could not be judged is no reason to trust, so it is a reason to refuse.
package policy

default allow := false

allow if {
	data.plugin == "resource"
	count(input.submods) > 0
	count(reasons) == 0
}

simulated := {"sample", "sampledevice", "sim-snp", "sim-tdx"}

reasons contains {
	"claim": "submods",
	"expected": "at least one appraised part",
	"found": "none",
	"fix": "the token appraises nothing: attest again",
} if {
	count(object.get(input, "submods", {})) == 0
}

reasons contains {
	"claim": "data.plugin",
	"expected": "resource",
	"found": data.plugin,
	"fix": "the default policy releases resources only: write a rule for this plugin",
} if {
	data.plugin != "resource"
}

reasons contains {
	"claim": sprintf("submods.%s.ear.status", [name]),
	"expected": "affirming",
	"found": status,
	"fix": "register reference values for what this guest runs, or set a release policy that names it",
} if {
	some name, submod in input.submods
	status := object.get(submod, "ear.status", "absent")
	status != "affirming"
}

reasons contains {
	"claim": sprintf("submods.%s.ear.veraison.annotated-evidence.%s", [name, kind]),
	"expected": "evidence of a hardware TEE",
	"found": sprintf("simulated evidence of kind %s", [kind]),
	"fix": "run the guest in a TEE, or for development set a release policy that asks for this kind by name",
} if {
	some name, submod in input.submods
	some kind in simulated
	submod["ear.veraison.annotated-evidence"][kind]
}
