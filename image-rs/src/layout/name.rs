//! Names of images in layouts: `path[:tag][@digest]`.
//!
//! A name that is not well written is an error: taken as a path, it would make a directory that nobody meant.

use std::path::PathBuf;

use super::LayoutError;
use crate::digest::Digest;

/// Cap on a tag, in bytes: that of registries, which its name comes from.
const TAG_BYTES_MAX: usize = 128;

/// Takes a name apart. A slash behind the last `@` or `:` says that it is part of the path.
pub(super) fn parse(text: &str) -> Result<(PathBuf, Option<String>, Option<Digest>), LayoutError> {
    let bad = |reason| LayoutError::Name {
        text: text.to_owned(),
        reason,
    };
    let (rest, digest) = match text.rsplit_once('@') {
        Some((rest, digest)) if !digest.contains('/') => {
            let digest = digest.parse().map_err(|_| {
                bad("what is behind \"@\" is no digest; behind a directory with \"@\" in its name, write \"/\"")
            })?;
            (rest, Some(digest))
        }
        _ => (text, None),
    };
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (rest, None),
    };
    if path.is_empty() {
        return Err(bad("it has no path; for this directory, write \".\""));
    }
    if path.contains('\0') {
        return Err(bad("its path has a NUL byte"));
    }
    if !tag.is_none_or(is_tag) {
        return Err(bad(
            "a tag has 1 to 128 letters, digits, \"_\", \".\", \"+\" and \"-\", and begins with none of the last three",
        ));
    }
    Ok((path.into(), tag.map(str::to_owned), digest))
}

fn is_tag(tag: &str) -> bool {
    let inside =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'+' | b'-');
    (1..=TAG_BYTES_MAX).contains(&tag.len())
        && tag.bytes().all(inside)
        && !tag.starts_with(['.', '+', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_path_a_tag_and_a_digest() {
        let digest = Digest::of(b"x");
        let read = |text: &str| {
            let (path, tag, digest) = parse(text).unwrap();
            (path.display().to_string(), tag, digest)
        };
        let tag = |tag: &str| Some(tag.to_owned());
        assert_eq!(read("/a:t"), ("/a".to_owned(), tag("t"), None));
        assert_eq!(
            read(&format!("/a:t@{digest}")),
            ("/a".to_owned(), tag("t"), Some(digest.clone()))
        );
        assert_eq!(
            read(&format!("a@{digest}")),
            ("a".to_owned(), None, Some(digest))
        );
        assert_eq!(
            read("/me@here/a:b/c"),
            ("/me@here/a:b/c".to_owned(), None, None)
        );
        assert_eq!(read("/x@y/:t"), ("/x@y/".to_owned(), tag("t"), None));
    }

    #[test]
    fn what_is_not_well_written_is_refused_and_makes_no_directory() {
        let (short, long) = ("d:t@sha256:abc", format!("d:{}", "t".repeat(129)));
        for text in [
            "",
            ":t",
            "d:",
            "d:t@sha256",
            short,
            "d:@",
            "d:-t",
            "d:a b",
            "d:a\u{202e}",
            &long,
        ] {
            let error = parse(text).unwrap_err();
            assert!(matches!(error, LayoutError::Name { .. }), "{text}: {error}");
        }
    }
}
