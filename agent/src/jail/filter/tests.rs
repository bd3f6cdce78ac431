//! Filters as libseccomp tells them: a pseudo code with a line for each comparison.

use std::io::{Read as _, Seek as _};

use serde_json::{Value, json};

use super::*;

/// The filter's pseudo code, without its comments.
fn told(profile: Value) -> String {
    let filter = filter(&serde_json::from_value(profile).unwrap()).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    filter.export_pfc(&file).unwrap();
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.starts_with('#'))
        .collect::<Vec<_>>()
        .join("\n")
}

fn rule(names: &[&str], action: &str) -> Value {
    json!({"names": names, "action": action})
}

fn has(text: &str, call: RawSyscall, action: &str) -> bool {
    text.contains(&format!("if ($syscall == {call})\naction {action};"))
}

#[test]
fn rules_and_the_default_have_their_actions_and_numbers() {
    let mut mkdir = rule(&["mkdir"], "SCMP_ACT_ERRNO");
    let mut clone3 = rule(&["clone3", "from_the_future"], "SCMP_ACT_ERRNO");
    clone3["errnoRet"] = json!(38);
    mkdir["errnoRet"] = Value::Null;
    let text = told(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [mkdir, clone3]}));
    assert!(has(&text, 83, "ERRNO(1)"), "{text}");
    assert!(has(&text, 435, "ERRNO(38)"), "{text}");
    assert!(text.contains("\naction ALLOW;"), "{text}");
    // What is not denied stays as the kernel has it.
    assert!(!text.contains("$syscall == 463"), "{text}");
}

#[test]
fn a_masked_comparison_takes_the_value_for_the_mask() {
    let mut clone = rule(&["clone"], "SCMP_ACT_ALLOW");
    clone["args"] = json!([
        {"index": 0, "value": 0x7e02_0000_u32, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    ]);
    let text = told(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [clone]}));
    assert!(text.contains("$a0.lo32 & 0x7e020000 == 0"), "{text}");
}

#[test]
fn comparisons_of_several_arguments_hold_together_and_of_one_argument_each_alone() {
    let args = |second: u32| {
        let mut call = rule(&["socket"], "SCMP_ACT_ALLOW");
        call["args"] = json!([
            {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
            {"index": second, "value": 2, "op": "SCMP_CMP_EQ"},
        ]);
        told(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [call]}))
    };
    assert_eq!(args(1).matches("action ALLOW;").count(), 1, "{}", args(1));
    assert_eq!(args(0).matches("action ALLOW;").count(), 2, "{}", args(0));
}

#[test]
fn newer_calls_are_known_and_later_ones_are_as_if_the_kernel_had_none() {
    let names = ["read", "fchmodat2", "mseal"];
    let rules = [rule(&names, "SCMP_ACT_ALLOW")];
    let text = told(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    }));
    assert!(
        has(&text, 452, "ALLOW") && has(&text, 462, "ALLOW"),
        "{text}"
    );
    assert!(has(&text, 463, "ERRNO(38)") && has(&text, 511, "ERRNO(38)"));
    // Below the highest in the profile it is the profile's own decision.
    assert!(!text.contains("$syscall == 461"), "{text}");
    assert_eq!(number("fchmodat2"), Some(452));
    assert_eq!(number("from_the_future"), None);
}

#[test]
fn a_rule_that_says_the_default_is_none() {
    let rules = [rule(&["mkdir"], "SCMP_ACT_ALLOW")];
    let text = told(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}));
    assert!(!text.contains("$syscall =="), "{text}");
}

#[test]
fn no_new_privs_stays_the_processs_own() {
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW"});
    let filter = filter(&serde_json::from_value(profile).unwrap()).unwrap();
    assert!(!filter.get_ctl_nnp().unwrap());
}

#[test]
fn what_is_not_served_is_no_filter() {
    let profile = json!({"defaultAction": "SCMP_ACT_NOTIFY"});
    let error = filter(&serde_json::from_value(profile).unwrap()).unwrap_err();
    assert!(error.to_string().contains("SCMP_ACT_NOTIFY"), "{error}");
    let mut trace = rule(&["mkdir"], "SCMP_ACT_TRACE");
    trace["errnoRet"] = json!(65536);
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [trace]});
    let error = filter(&serde_json::from_value(profile).unwrap()).unwrap_err();
    assert!(error.to_string().contains("65536"), "{error}");
}
