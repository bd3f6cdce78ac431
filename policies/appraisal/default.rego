# What evidence is worth before the owner has said what to expect: nothing is affirmed.
# 33 unrecognised executables, 36 unknown configuration, 97 hardware that proves nothing. Simulated
# evidence keeps the last for ever, since no hardware is behind it.
package policy

default executables := 33

default configuration := 36

default hardware := 97

trust_claims := {
	"executables": executables,
	"configuration": configuration,
	"hardware": hardware,
}
