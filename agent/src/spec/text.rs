//! The strings of a process. The kernel takes them up to their first NUL: one that has another meaning
//! to whoever allowed it than to the program is refused.

use agent_api::{GuestError, oci};

use crate::fault::invalid;

/// Checks arguments, environment and working directory.
///
/// # Errors
///
/// Names the place, and of a variable no more than its name.
pub(super) fn check(phase: &str, process: &oci::Process) -> Result<(), GuestError> {
    let has_nul = |text: &&String| text.contains('\0');
    let place = |list: &[String]| list.iter().position(|text| has_nul(&text));
    let found = if let Some(index) = place(&process.Args) {
        format!("Process.Args[{index}]")
    } else if let Some(index) = place(&process.Env) {
        let name = process.Env[index].split(['=', '\0']).next();
        format!("Process.Env[{index}] ({})", name.unwrap_or_default())
    } else if has_nul(&&process.Cwd) {
        "Process.Cwd".to_owned()
    } else {
        return Ok(());
    };
    let message = format!("{found} contains a NUL, which ends a string: remove it");
    Err(invalid(phase, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nul_is_refused_by_its_place_and_values_are_not_told() {
        let with = |args: &[&str], env: &[&str], cwd: &str| {
            let mut process = oci::Process::new();
            process.Args = args.iter().map(|&text| text.to_owned()).collect();
            process.Env = env.iter().map(|&text| text.to_owned()).collect();
            process.Cwd = cwd.to_owned();
            check("create", &process).map_err(|error| error.to_string())
        };
        assert_eq!(with(&["a"], &["A=b"], "/"), Ok(()));
        assert!(
            with(&["a", "b\0c"], &[], "/")
                .unwrap_err()
                .contains("Process.Args[1]")
        );
        let error = with(&["a"], &["A=b", "KEY=hidden\0more"], "/").unwrap_err();
        assert!(error.contains("Process.Env[1] (KEY)"), "{error}");
        assert!(!error.contains("hidden"), "{error}");
        assert!(
            with(&["a"], &[], "/a\0b")
                .unwrap_err()
                .contains("Process.Cwd")
        );
    }
}
