package agent_policy_test

import data.agent_policy

test_nothing_can_be_made if {
	not agent_policy.CreateSandboxRequest
	not agent_policy.CreateContainerRequest with input as {"container_id": "a"}
	not agent_policy.ExecProcessRequest
}

test_the_host_cannot_bring_a_policy if not agent_policy.SetPolicyRequest

test_failures_are_not_passed_over if not agent_policy.AllowRequestsFailingPolicy
