//! An error and its causes as one line that tells each cause once.
//!
//! Libraries differ: some errors print their causes themselves, some leave them to the caller, and
//! libcontainer does both and writes them to its log as well. So the same cause comes up to five
//! times. Here a text is taken apart at `: `, and what was told is not told again.

/// What stands between an error and its cause.
const BECAUSE: &str = ": ";
/// libcontainer appends the failure of its own cleaning up so; it is a further error.
const CLEANUP: &str = ". error during cleanup: ";

/// What was told so far.
#[derive(Debug, Default)]
pub struct Causes {
    text: String,
    told: Vec<String>,
}

impl Causes {
    /// Adds an error's text after `separator`, without what was told already. An error whose last
    /// cause was told adds nothing: it is another account of the same failure.
    pub fn tell(&mut self, error: &str, separator: &str) {
        for (index, error) in error.split(CLEANUP).enumerate() {
            let separator = if index == 0 { separator } else { "; cleanup: " };
            self.tell_one(error, separator);
        }
    }

    fn tell_one(&mut self, error: &str, separator: &str) {
        let error = error.trim();
        let root = essence(error.rsplit(BECAUSE).next().unwrap_or(error));
        if root.is_empty() || self.told.iter().any(|told| told.contains(&root)) {
            return;
        }
        let mut separator = separator;
        for part in error.split(BECAUSE) {
            let key = essence(part);
            if key.is_empty() || self.is_told(&key) {
                continue;
            }
            if !self.text.is_empty() {
                self.text.push_str(separator);
            }
            self.text.push_str(part.trim());
            self.told.push(key);
            separator = BECAUSE;
        }
    }

    /// Whole, or as the end of a longer one: `init failed: mount failed` after `wait: init failed`.
    fn is_told(&self, part: &str) -> bool {
        self.told.iter().any(|told| {
            told.strip_suffix(part)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with(' '))
        })
    }

    /// Whether a line of a log says in other words what was told of the same thing: it ends in a field
    /// with a text, such as `executable="/bin/x"`, which was told, and it has no error of its own.
    fn has_subject_of(&self, line: &str) -> bool {
        let Some((_, subject)) = line.trim().rsplit_once('=') else {
            return false;
        };
        let is_text = subject.len() > 2 && subject.starts_with('"') && subject.ends_with('"');
        let has_error = line.contains(" err=") || line.contains(" e=");
        let subject = essence(subject);
        is_text && !has_error && self.told.iter().any(|told| told.contains(&subject))
    }

    /// The line.
    #[must_use]
    pub fn into_text(self) -> String {
        self.text
    }
}

/// An error and its causes.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut causes = Causes::default();
    let mut next = Some(error);
    while let Some(error) = next {
        causes.tell(&error.to_string(), BECAUSE);
        next = error.source();
    }
    causes.into_text()
}

/// libcontainer's report: the outermost error stands last and comes first here; a line before it
/// follows where it tells a cause that is not told yet.
#[must_use]
pub fn of_report(report: &str) -> String {
    let mut causes = Causes::default();
    for line in report.lines().rev() {
        if !causes.has_subject_of(line) {
            causes.tell(line, "; ");
        }
    }
    causes.into_text()
}

/// What two accounts of one cause have in common: not the case of letters, and not the quotes and
/// brackets of Rust's debugging form.
fn essence(part: &str) -> String {
    let is_frame = |c: char| c.is_whitespace() || "\"'`()[]{}.,".contains(c);
    part.trim_matches(is_frame).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error that prints its causes or not, as libraries do.
    #[derive(Debug, thiserror::Error)]
    enum Sample {
        #[error("read {0}: {1}")]
        Prints(&'static str, #[source] Box<Sample>),
        #[error("read {0}")]
        Leaves(&'static str, #[source] Box<Sample>),
        #[error("{0}")]
        Root(&'static str),
    }

    #[test]
    fn a_chain_tells_each_cause_once_whoever_prints_it() {
        let root = || Box::new(Sample::Root("no such file"));
        let leaves = Sample::Leaves("a", Box::new(Sample::Leaves("b", root())));
        assert_eq!(chain(&leaves), "read a: read b: no such file");
        let prints = Sample::Prints("a", Box::new(Sample::Prints("b", root())));
        assert_eq!(chain(&prints), "read a: read b: no such file");
        let mixed = Sample::Leaves("a", Box::new(Sample::Prints("b", root())));
        assert_eq!(chain(&mixed), "read a: read b: no such file");
    }

    #[test]
    fn a_report_tells_each_cause_once_and_the_outermost_error_first() {
        let report =
            "no such device /dev/x\nfailed to wait: cannot mount\nfailed to run: cannot mount\n\n";
        assert_eq!(
            of_report(report),
            "failed to run: cannot mount; no such device /dev/x"
        );
        assert_eq!(of_report(""), "");
    }

    #[test]
    fn a_real_report_of_libcontainer_is_one_short_line() {
        let report = "failed to run intermediate process cgroup error: v1 error: v1 cgroup feature \
            is required, but was not enabled during compile time\n\
            failed to run container process intermediate process error cgroup error: v1 error: v1 \
            cgroup feature is required, but was not enabled during compile time\n\
            failed to create container: intermediate process error cgroup error: v1 error: v1 \
            cgroup feature is required, but was not enabled during compile time. error during \
            cleanup: v1 error: v1 cgroup feature is required, but was not enabled during compile \
            time\n";
        assert_eq!(
            of_report(report),
            "failed to create container: intermediate process error cgroup error: v1 error: v1 \
             cgroup feature is required, but was not enabled during compile time"
        );
    }

    #[test]
    fn the_log_and_the_error_are_two_accounts_of_one_failure() {
        let report = "failed to mount err=IO(Os { code: 2, message: \"No such file or directory\" })\n\
            failed to create container: prepare rootfs: No such file or directory (os error 2)\n";
        assert_eq!(
            of_report(report),
            "failed to create container: prepare rootfs: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn a_line_of_the_log_about_what_was_told_is_dropped_unless_it_has_an_error() {
        let about = "executable for container process not found executable=\"/bin/x\"";
        let outer = "failed to create container: executable '/bin/x' not found in $PATH";
        assert_eq!(of_report(&format!("{about}\n{outer}\n")), outer);
        let error = "failed to open err=EACCES path=\"/bin/x\"";
        assert_eq!(
            of_report(&format!("{error}\n{outer}\n")),
            format!("{outer}; {error}")
        );
    }

    #[test]
    fn a_failed_cleanup_is_told_where_it_is_another_failure() {
        let mut causes = Causes::default();
        causes.tell("create: no space. error during cleanup: busy", "");
        assert_eq!(causes.into_text(), "create: no space; cleanup: busy");
    }

    #[test]
    fn a_part_that_only_looks_alike_is_kept() {
        let mut causes = Causes::default();
        causes.tell("/a/b: open: /b: denied", "");
        assert_eq!(causes.into_text(), "/a/b: open: /b: denied");
    }
}
