package agent_policy_test

import data.agent_policy

test_containers_can_be_made if {
	agent_policy.CreateSandboxRequest
	agent_policy.CreateContainerRequest with input as {"container_id": "a"}
	agent_policy.StartContainerRequest
}

test_what_is_not_named_is_not_allowed if not agent_policy.SomethingNewRequest

test_failures_are_not_passed_over if not agent_policy.AllowRequestsFailingPolicy
